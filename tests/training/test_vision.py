"""One update of V: the same however its images are grouped, and it makes the loss smaller."""

from dataclasses import replace
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.vision import (
    VisionConfig,
    make_batch_loss,
    make_train_step,
    new_state,
    vision_loss,
)
from wm_env.task import CAR_RACING, LUNAR_LANDER
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


def test_groups_do_not_change_the_update(images):
    # The optimizer keeps the mean gradient; Adam's step itself is its sign on the first update.
    expected, expected_metrics = _update(replace(CONFIG, group=6), images)
    for group in (2, 3, 4):  # 4 does not divide 6: one group
        state, metrics = _update(replace(CONFIG, group=group), images)
        for name, value in expected_metrics.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=f"{name}, {group}")
        moments, wanted = (
            jax.tree.leaves(eqx.filter(one.optimizer, eqx.is_inexact_array))
            for one in (state, expected)
        )
        for one, other in zip(moments, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-2 * np.abs(other).max())


def test_the_loss_falls_on_images_seen_again(images):
    train_step, state = make_train_step(CONFIG), new_state(CONFIG)
    losses = []
    for step in range(20):
        state, metrics = train_step(state, images, jax.random.key(step))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]


def test_below_its_tolerance_the_kl_costs_what_the_tolerance_would_and_has_no_gradient(images):
    vae, image = new_state(CONFIG).vae, jnp.asarray(images[0])

    @eqx.filter_jit
    @partial(eqx.filter_value_and_grad, has_aux=True)
    def slope(vae, tolerance, beta):
        return vision_loss(vae, image, key=jax.random.key(0), beta=beta, tolerance=tolerance)

    def loss(tolerance, beta=0.5):
        (total, parts), gradient = slope(vae, jnp.float32(tolerance), jnp.float32(beta))
        return float(total - parts["squared_error"]), float(parts["kl"]), gradient.to_posterior.bias

    (plain, kl, paid), (tight, _, free), (_, _, error) = loss(0.0), loss(80.0), loss(0.0, beta=0.0)
    assert kl < 8 * 80
    assert plain == pytest.approx(0.5 * kl, rel=1e-3)
    assert tight == pytest.approx(0.5 * 8 * 80, rel=1e-5)
    np.testing.assert_allclose(free, error, rtol=1e-5, atol=1e-6)
    assert not np.allclose(paid, error, atol=1e-4)


@pytest.mark.parametrize(("ground", "beside"), [(1, 3.0), (None, 1.0)])
def test_errors_beside_the_ground_count_more_and_all_alike_where_there_is_none(ground, beside):
    vae = new_state(CONFIG).vae
    image = np.full((64, 64, 3), (100, 200, 100), np.uint8)  # grass
    image[:32] = (105, 105, 105)  # road
    fixed = {"key": jax.random.key(0), "beta": 0.0, "emphasis": 3.0, "ground": ground}
    loss, parts = jax.jit(partial(vision_loss, vae, **fixed))(jnp.asarray(image))
    see = jax.jit(lambda image: vae.decode(vae.encode(image).sample(key=fixed["key"])))
    seen = see(jnp.asarray(image))
    errors = np.square(np.asarray(seen) - image / 255.0)
    assert float(loss) == pytest.approx(beside * errors[:32].sum() + errors[32:].sum(), rel=1e-5)
    assert float(parts["squared_error"]) == pytest.approx(errors.sum(), rel=1e-5)


def test_half_a_pixel_of_road_is_no_ground():
    grass = np.full((64, 64, 3), (102, 204, 102), np.uint8)  # the darker one
    road = grass.copy()
    road[5, 5] = (103, 153, 103)
    vae = new_state(CONFIG).vae

    def emphasised(image):
        fixed = {"key": jax.random.key(0), "beta": 0.0, "ground": 1}
        one, two = (
            vision_loss(vae, jnp.asarray(image), emphasis=e, **fixed)[0] for e in (1.0, 2.0)
        )
        return float(two - one)

    assert emphasised(grass) == 0.0 and emphasised(road) > 1e-3


@pytest.mark.parametrize(("task", "counts"), [(CAR_RACING, True), (LUNAR_LANDER, False)])
def test_the_fits_emphasis_is_that_of_its_task(task, counts, images):
    vae, keys = new_state(CONFIG).vae, jax.random.split(jax.random.key(0), len(images))
    plain, more = (
        make_batch_loss(replace(CONFIG, emphasis=e), task)(vae, images, keys)[0] for e in (1.0, 3.0)
    )
    assert (float(more) > 1.1 * float(plain)) == counts
