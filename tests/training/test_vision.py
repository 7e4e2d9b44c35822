"""One update of V: the same however its images are grouped, and it makes the loss smaller."""

from dataclasses import replace

import equinox as eqx
import jax
import numpy as np
import pytest

from training.vision import VisionConfig, make_train_step, new_state
from wm_env.vae import VAEConfig

SMALL = VAEConfig(latent_size=8, encoder_channels=(4, 8, 8, 8), decoder_channels=(8, 8, 4))
pytestmark = pytest.mark.usefixtures("lenient_dtypes")  # optax divides floats by integers
CONFIG = VisionConfig(vae=SMALL, batch=6, steps=40, learning_rate=1e-2)


@pytest.fixture(scope="module")
def images():
    shades = np.random.default_rng(0).integers(0, 100, (6, 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(shades, (6, 64, 64, 3))


def _update(config, images):
    return make_train_step(config)(new_state(config), images, jax.random.key(1))


@pytest.mark.parametrize("group", [2, 3, 4])  # 4 does not divide 6: one group
def test_groups_do_not_change_the_update(images, group):
    # The optimizer keeps the mean gradient; Adam's step itself is its sign on the first update.
    expected, expected_metrics = _update(replace(CONFIG, group=6), images)
    state, metrics = _update(replace(CONFIG, group=group), images)
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    moments, expected_moments = (
        jax.tree.leaves(eqx.filter(one.optimizer, eqx.is_inexact_array))
        for one in (state, expected)
    )
    for moment, wanted in zip(moments, expected_moments, strict=True):
        np.testing.assert_allclose(moment, wanted, rtol=1e-2, atol=1e-2 * np.abs(wanted).max())


def test_the_loss_falls_on_images_seen_again(images):
    train_step, state = make_train_step(CONFIG), new_state(CONFIG)
    losses = []
    for step in range(20):
        state, metrics = train_step(state, images, jax.random.key(step))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
