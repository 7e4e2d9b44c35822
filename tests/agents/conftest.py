"""Weights in files, for commands that read such."""

import pytest

from agents.linear import LinearController, save_linear
from wm_env.weights import save_world


@pytest.fixture(scope="module")
def files(world, tmp_path_factory):
    """Paths of a world and of a controller."""
    folder = tmp_path_factory.mktemp("weights")
    save_world(world, folder / "world.safetensors")
    save_linear(LinearController.zeros(), folder / "controller.safetensors")
    return {
        "world": str(folder / "world.safetensors"),
        "controller": str(folder / "controller.safetensors"),
    }
