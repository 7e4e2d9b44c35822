"""Worlds on the Hugging Face Hub, each with a card that tells where it comes from and how it does.

A repository holds `world.safetensors` and its card, `README.md`. `world_model="hf://OWNER/NAME"`,
or `hf://OWNER/NAME@REVISION`, fetches it wherever a file may be given; what was fetched once is
kept in the Hub's cache.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from wm_env.evaluation import Evaluation
from wm_env.fidelity.result import Fidelity
from wm_env.storage import write_atomically
from wm_env.weights import WeightsError, load_world, save_world
from wm_env.weights_file import HUB_SCHEME
from wm_env.world_model import WorldModel

WORLD_FILE = "world.safetensors"
CARD_FILE = "README.md"


def save_pretrained(
    world: WorldModel,
    folder: str | os.PathLike,
    *,
    name: str = "OWNER/NAME",
    evaluation: Evaluation | None = None,
    fidelity: Fidelity | None = None,
) -> Path:
    """Write what a repository holds into a folder: the world and its card.

    Args:
        world: to be written, in float16.
        folder: made where there is none; files of these names in it are replaced.
        name: of the repository to be, for the card.
        evaluation: how a controller from this dream drives the real car, for the card.
        fidelity: what `wm_env.fidelity` measured of the dream, for the card.

    Raises:
        WeightsError: a weight is not finite.
    """
    folder = Path(folder)
    save_world(world, folder / WORLD_FILE)
    write_atomically(folder / CARD_FILE, model_card(world, name, evaluation, fidelity).encode())
    return folder


def push_to_hub(
    world: WorldModel,
    repo_id: str,
    *,
    evaluation: Evaluation | None = None,
    fidelity: Fidelity | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Upload a world and its card to the repository OWNER/NAME, made if need be; gives its address.

    `evaluation` and `fidelity` are those of `save_pretrained`; `private` and `token` those of
    huggingface_hub.

    Raises:
        WeightsError: a weight is not finite, or the Hub refuses or cannot be reached.
    """
    hub = _huggingface_hub()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(world, folder, name=repo_id, evaluation=evaluation, fidelity=fidelity)
        try:
            api = hub.HfApi(token=token)
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder)
        except Exception as error:  # errors of the network differ from version to version
            raise WeightsError(
                f"{repo_id!r} cannot be uploaded ({error}). Log in with `hf auth login`, and look "
                "whether HF_HUB_OFFLINE is set; save_pretrained writes the same into a folder."
            ) from error
    return str(address)


def from_pretrained(
    repo_id_or_folder: str | os.PathLike, *, revision: str | None = None
) -> WorldModel:
    """Load a world from the repository OWNER/NAME, or from a folder of `save_pretrained`.

    A folder that is there comes first, unless a `revision` (branch, tag or commit) is asked for.

    Raises:
        WeightsError: it cannot be fetched, or is not a world.
    """
    if revision is None and Path(repo_id_or_folder).is_dir():
        return load_world(Path(repo_id_or_folder) / WORLD_FILE)
    at = f"@{revision}" if revision else ""
    return load_world(f"{HUB_SCHEME}{str(repo_id_or_folder).removeprefix(HUB_SCHEME)}{at}")


def fetch(address: str) -> Path:
    """The file of the world at hf://OWNER/NAME[@REVISION], fetched unless it is in the cache.

    Raises:
        WeightsError: it cannot be fetched; the message tells why.
    """
    hub = _huggingface_hub()
    repo_id, _, revision = address.removeprefix(HUB_SCHEME).partition("@")
    try:
        return Path(hub.hf_hub_download(repo_id, WORLD_FILE, revision=revision or None))
    except Exception as error:  # errors of the network differ from version to version
        raise WeightsError(
            f"{address} cannot be fetched ({error}). Expected hf://OWNER/NAME or "
            f"hf://OWNER/NAME@REVISION of a repository that holds {WORLD_FILE}, or, without hf://, "
            "a folder that is there; offline, a repository that was fetched before."
        ) from error


def model_card(
    world: WorldModel,
    name: str = "OWNER/NAME",
    evaluation: Evaluation | None = None,
    fidelity: Fidelity | None = None,
) -> str:
    """The card of a world in Markdown: provenance, score, fidelity, and how to use it."""
    task = world.task
    return "\n".join(
        (
            "---",
            "library_name: wm_env",
            "pipeline_tag: reinforcement-learning",
            f"tags: [world-model, reinforcement-learning, {task.id}, jax]",
            "---",
            f"# A world model of {task.id}",
            "",
            f"A VAE and an MDN-RNN that dream {task.id.split('-')[0]}, for `{task.dream_id}` of "
            "`wm_env`:",
            "",
            "```python",
            "import gymnasium as gym, wm_env",
            f'env = gym.make("{task.dream_id}", world_model="hf://{name}")',
            "```",
            "",
            "## Score",
            "",
            "```\n" + evaluation.summary() + "\n```" if evaluation else "Not measured.",
            "",
            "## Fidelity",
            "",
            _table(fidelity.row()) if fidelity else "Not measured.",
            "",
            "## Provenance",
            "",
            "```json\n" + json.dumps(dict(world.metadata), indent=1) + "\n```",
            "",
        )
    )


def _table(figures: dict[str, float]) -> str:
    rows = [f"| {name} | {value:.3g} |" for name, value in figures.items()]
    return "\n".join(["| figure | value |", "|---|---|", *rows])


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise WeightsError(
            f"the Hugging Face Hub needs huggingface_hub ({error}): `uv sync --extra hub`; "
            "elsewhere `pip install huggingface-hub`."
        ) from error
    return huggingface_hub
