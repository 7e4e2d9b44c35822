"""The world model: V sees, M dreams on, and start states say where a dream may begin.

Source: Ha & Schmidhuber 2018, "World models", section 2 and appendix A.
"""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from wm_env import mdn
from wm_env.mdn_rnn import MDNRNN, Carry, Prediction
from wm_env.task import CAR_RACING, Task
from wm_env.vae import VAE, PackedDecoder

# V's KL term holds latents near a standard normal, so a value of 10 is far outside anything V gave
# M to learn from. Clipping there keeps a long wild dream, whose errors feed on themselves, finite.
Z_LIMIT = 10.0

# What M's weights may be multiplied in.
PRECISIONS = ("float32", "bfloat16")

# The least number above -1: erf_inv is infinite at -1 itself.
_UNIFORM_LOW = float(np.nextafter(np.float32(-1.0), np.float32(0.0)))

# Images that are decoded at once on a CPU: their layers then stay in its caches (measured on two
# cores, docs/performance.md).
_DECODED_AT_ONCE = 32


def check_precision(precision: str) -> None:
    """Refuse what M's weights cannot be multiplied in.

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}.")


class Metadata(Mapping):
    """JSON-able facts about a world: data, training, scores.

    Always equal to any other and of one hash. Metadata is a static field, thus part of the key of
    compiled programs; two worlds of one shape must share one program whatever is told about them.
    """

    def __init__(self, facts: Mapping[str, Any] | None = None):
        self._facts = json.loads(json.dumps(dict(facts or {})))

    def __getitem__(self, name: str) -> Any:
        return self._facts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Metadata)

    def __hash__(self) -> int:
        return hash(Metadata)

    def __repr__(self) -> str:
        return f"Metadata({self._facts!r})"


class StartStates(eqx.Module):
    """Where dreams begin: `first` real first frames (with h = 0), and `middle` moments of real
    episodes with the carry that M had there."""

    first_z: Float[Array, "first z"]
    z: Float[Array, "middle z"]
    h: Float[Array, "middle h"]
    c: Float[Array, "middle h"]
    motion: Float[Array, "middle m"] | None = None

    def moment(self, index: Array) -> tuple[Float[Array, "z"], Carry]:
        """The latent and the carry of one of the `middle` moments."""
        motion = None if self.motion is None else self.motion[index]
        return self.z[index], Carry(h=self.h[index], c=self.c[index], motion=motion)


class Step(eqx.Module):
    """One dreamt step: what the world is after it, and what happened during it."""

    z: Float[Array, "z"]  # next latent, in +-Z_LIMIT
    tiles: Float[Array, ""]  # expected number of tiles hit, or reward in the task's unit
    off_field: Bool[Array, ""]  # whether the car left the playing field, or the episode ended
    carry: Carry
    prediction: Prediction
    noise: Float[Array, "n"]  # what drew it, which may last


class WorldModel(eqx.Module):
    """V + M + start states. Unbatched; callers vmap.

    Alignment: at time t the agent sees (z_t, h_t) and acts a_t. `advance` consumes (z_t, a_t) and
    gives z_{t+1}, the tiles hit and off-field during that very step, and the carry after it. What
    M's heads of these names foretell of another task than CarRacing, the task says.
    """

    vae: VAE
    mdn_rnn: MDNRNN
    starts: StartStates
    metadata: Metadata = eqx.field(static=True, default_factory=Metadata)
    task: Task = eqx.field(static=True, default=CAR_RACING)

    def __check_init__(self):
        config = self.mdn_rnn.config
        if (config.action_size, config.tiles != "signed") != (
            self.task.action_size,
            self.task.pays_tiles,
        ):
            kinds = "poisson, squared or reward" if self.task.pays_tiles else "signed"
            raise ValueError(
                f"M's action_size is {config.action_size} and its tiles {config.tiles!r}; expected "
                f"{self.task.action_size} and {kinds} for {self.task.id}. Build M from a config of "
                "that kind, or name the world's task."
            )
        latent, hidden = self.mdn_rnn.config.latent_size, self.mdn_rnn.config.hidden_size
        sizes = {
            "vae latent_size": (self.vae.config.latent_size, latent),
            "starts.first_z": (self.starts.first_z.shape[-1], latent),
            "starts.z": (self.starts.z.shape[-1], latent),
            "starts.h": (self.starts.h.shape[-1], hidden),
        }
        for name, (size, expected) in sizes.items():
            if size != expected:
                raise ValueError(
                    f"{name} is {size} but M expects {expected}; build V, M and the start states "
                    "from configs of the same latent_size and hidden_size."
                )
        if 0 in (self.starts.first_z.shape[0], self.starts.z.shape[0]):
            raise ValueError(
                "a world needs at least one first frame and one middle to start from, got "
                f"{self.starts.first_z.shape[0]} and {self.starts.z.shape[0]}; "
                "encode some real frames (a first frame with h = c = 0 may serve as a middle)."
            )

    def save(self, path: str | os.PathLike) -> None:
        """Write this world to a file, in float16; `wm_env.save_world` has more options.

        Raises:
            WeightsError: a weight is not finite, or overflows float16.
        """
        from wm_env.weights import save_world  # which imports this module, as the next ones do

        save_world(self, path)

    @staticmethod
    def load(path_or_shipped_name: str | os.PathLike = "carracing") -> "WorldModel":
        """Read a world, as `wm_env.load_world` does.

        Raises:
            WeightsError: there is none, or it is damaged.
        """
        from wm_env.weights import load_world

        return load_world(path_or_shipped_name)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload this world with a card to the Hugging Face Hub; gives the address.

        `options` are those of `wm_env.hub.push_to_hub`: evaluation, fidelity, private and token.

        Raises:
            WeightsError: the Hub refuses or cannot be reached, or huggingface_hub is not installed.
        """
        from wm_env.hub import push_to_hub

        return push_to_hub(self, repo_id, **options)

    @staticmethod
    def from_pretrained(
        repo_id_or_folder: str | os.PathLike, *, revision: str | None = None
    ) -> "WorldModel":
        """Read a world from the Hugging Face Hub, OWNER/NAME, or from a local copy of such.

        Raises:
            WeightsError: it cannot be fetched, or is not a world.
        """
        from wm_env.hub import from_pretrained

        return from_pretrained(repo_id_or_folder, revision=revision)

    @property
    def latent_size(self) -> int:
        return self.mdn_rnn.config.latent_size

    @property
    def hidden_size(self) -> int:
        return self.mdn_rnn.config.hidden_size

    def encode(self, image: UInt8[Array, "64 64 3"] | Float[Array, "64 64 3"]) -> Float[Array, "z"]:
        """The latent that driver and M see, in +-Z_LIMIT as in the dream."""
        return jnp.clip(self.vae.latent(image), -Z_LIMIT, Z_LIMIT)

    def decode(self, z: Float[Array, "z"]) -> UInt8[Array, "64 64 3"]:
        """The image of a latent."""
        # uint8 has no gradient; told so, JAX does not ask `custom_vmap` for one, which it has not.
        return _image(*jax.lax.stop_gradient((self.vae, z)))

    def with_precision(self, precision: str) -> "WorldModel":
        """This world with the weights of M's matmuls in "float32" or "bfloat16".

        Sums, what is remembered and what is drawn stay float32. bfloat16 is faster where the device
        multiplies it faster: GPUs, and processors with AVX512-BF16 or AMX.

        Raises:
            ValueError: an unknown precision.
        """
        check_precision(precision)
        m, dtype = self.mdn_rnn, jnp.dtype(precision)
        if m.gate_weight.dtype == m.head_weight.dtype == dtype:
            return self
        weights = m.gate_weight.astype(dtype), m.head_weight.astype(dtype)
        return eqx.tree_at(lambda w: (w.mdn_rnn.gate_weight, w.mdn_rnn.head_weight), self, weights)

    def features(self, z: Float[Array, "z"], h: Float[Array, "h"]) -> Float[Array, "zh"]:
        """[z, h]: what a driver of Ha & Schmidhuber 2018 (section 2.3) sees."""
        return jnp.concatenate([z, h])

    def advance(
        self,
        z: Float[Array, "z"],
        a: Float[Array, "a"],
        carry: Carry,
        *,
        key: PRNGKeyArray,
        temperature: float | Float[Array, ""] = 1.0,
        mask: Float[Array, "h"] | None = None,
        noise: Float[Array, "n"] | None = None,
        persistence: float | Float[Array, ""] = 0.0,
    ) -> Step:
        """Dream one step. `mask` is M's dropout mask, fixed for an episode.

        `noise`, that of the step before (`initial_noise` at first), lasts with a correlation of
        `persistence` in [0, 1); without it each step draws its own.
        """
        prediction, carry = self.mdn_rnn.step(z, a, carry, mask=mask)
        # One block of random bits a step instead of a key and a call for each draw.
        size = self.latent_size
        draws = jax.random.uniform(key, (2 * size + 1,), minval=_UNIFORM_LOW, maxval=1.0)
        before = self.initial_noise() if noise is None else noise
        # A branch, unless lanes have a persistence of their own: most dreams forget their noise.
        normal, unit, drawn = jax.lax.cond(
            jnp.asarray(persistence) > 0.0,
            lambda: _lasting(draws[:-1], before, jnp.asarray(persistence, jnp.float32)),
            lambda: (_normal(draws[:size]), _unit(draws[size:-1]), before),
        )
        next_z = mdn.sample_from_noise(prediction.mixture, unit, normal, temperature=temperature)
        return Step(
            z=jnp.clip(next_z, -Z_LIMIT, Z_LIMIT),
            tiles=self.mdn_rnn.expected_tiles(prediction),
            off_field=_unit(draws[-1]) < jax.nn.sigmoid(prediction.off_field),
            carry=carry,
            prediction=prediction,
            noise=drawn,
        )

    def initial_noise(self) -> Float[Array, "n"]:
        """The noise before the first step: none."""
        return jnp.zeros(2 * self.latent_size)

    def burn_in(self, z: Float[Array, "t z"], actions: Float[Array, "t1 a"]) -> Carry:
        """The carry on arriving at z[-1] after a real beginning.

        `actions[i]` was taken at `z[i]` and led to `z[i + 1]`, so there is one action fewer.
        """

        def body(carry: Carry, inputs: tuple[Array, Array]) -> tuple[Carry, None]:
            return self.mdn_rnn.advance_carry(*inputs, carry), None

        carry, _ = jax.lax.scan(body, self.mdn_rnn.initial_carry(), (z[:-1], actions))
        return carry


def _image_alone(vae: VAE | PackedDecoder, z: Float[Array, "z"]) -> UInt8[Array, "64 64 3"]:
    return jnp.round(255.0 * vae.decode(z)).astype(jnp.uint8)


_image = jax.custom_batching.custom_vmap(_image_alone)


@_image.def_vmap
def _images(count: int, batched: Any, vae: VAE | PackedDecoder, z: Array) -> tuple[Array, bool]:
    """Images of many latents, or worlds; of one world packed, and on a CPU group by group.

    Where vmaps are nested the groups are of the innermost axis. Several devices may share the
    latents, and would have to gather each group.
    """
    if any(jax.tree.leaves(batched[0])):
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, batched)
        return jax.vmap(_image_alone, in_axes=axes)(vae, z), True
    if count > _DECODED_AT_ONCE:  # packing costs 2 ms, which more than a group soon repays
        vae = vae.packed()
        if jax.default_backend() == "cpu" and jax.device_count() == 1:
            return _in_groups(vae, z, _DECODED_AT_ONCE), True
    return jax.vmap(functools.partial(_image_alone, vae))(z), True


@functools.partial(jax.jit, static_argnames="size")
def _in_groups(decoder: PackedDecoder, z: Array, size: int) -> Array:
    return jax.lax.map(functools.partial(_image_alone, decoder), z, batch_size=size)


def _normal(draws: Float[Array, "n"]) -> Float[Array, "n"]:
    """Standard normal numbers, of such that are uniform in (-1, 1)."""
    return jnp.sqrt(2.0) * jax.lax.erf_inv(draws)


def _unit(draws: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The same in [0, 1)."""
    return 0.5 * (draws + 1.0)


def _lasting(
    draws: Float[Array, "n"], before: Float[Array, "n"], persistence: Float[Array, ""]
) -> tuple[Float[Array, "z"], Float[Array, "z"], Float[Array, "n"]]:
    """Normal and uniform numbers whose noise is a first-order autoregression; and that noise."""
    noise = persistence * before + jnp.sqrt(1.0 - persistence**2) * _normal(draws)
    normal, choice = jnp.split(noise, 2)
    return normal, jax.scipy.special.ndtr(choice), noise
