"""Caution: danger is told from what a driver sees, and he brakes where there is some."""

import dataclasses

import jax
import numpy as np
import pytest

from agents.caution import CautionConfig, fit_danger, run, with_caution
from agents.laps import LOST_FRAMES
from agents.linear import LinearController, load_linear, save_linear
from agents.principal_axes import PrincipalAxes
from wm_env.weights import save_world

pytestmark = pytest.mark.usefixtures("lenient_dtypes")

STEPS = 120


@pytest.fixture(scope="module")
def axes(world):
    return PrincipalAxes.of(LinearController.zeros(), world, 6)


def made_up(axes, dreams=200):
    """What is seen, of which the third axis rises to 4 in the 20 frames before the road is lost."""
    rng = np.random.default_rng(0)
    along = 0.5 * rng.normal(size=(dreams, STEPS, 6))
    lost = np.zeros((dreams, STEPS), bool)
    for dream in range(0, dreams, 2):
        at = int(rng.integers(40, 60))
        along[dream, at - 20 : at, 2] += 4.0
        lost[dream, at + LOST_FRAMES :] = True
    back = np.linalg.pinv(np.asarray(axes.axes))
    return (np.asarray(axes.mean) + along @ back).astype(np.float32), lost


def test_danger_is_read_from_what_comes_before_the_loss(axes):
    seen, lost = made_up(axes)
    danger, share = fit_danger(seen, lost, axes)
    assert 0.05 < share < 0.3
    score = seen @ np.asarray(danger.weight) + float(danger.bias)
    calm = score[1::2, :60]
    assert abs(calm.mean()) < 0.2 and 0.6 < calm.std() < 1.4
    ahead = [score[dream, np.argmax(lost[dream]) - LOST_FRAMES - 14] for dream in range(0, 200, 2)]
    assert np.mean(np.array(ahead) > 2.0) > 0.95


def test_a_cautious_driver_brakes_in_danger_only_and_steers_as_before(axes):
    seen, lost = made_up(axes)
    danger, _ = fit_danger(seen, lost, axes)
    controller = LinearController.zeros()
    cautious = with_caution(controller, danger, CautionConfig("C"))
    act = jax.vmap(cautious)
    calm = act(seen[1::2, :60].reshape(-1, 288))
    ahead = act(
        np.stack([seen[d, np.argmax(lost[d]) - LOST_FRAMES - 14] for d in range(0, 200, 2)])
    )
    assert np.mean(calm[:, 2] > 0.0) < 0.15 and np.mean(ahead[:, 2] > 0.1) > 0.9
    assert ahead[:, 1].mean() < calm[:, 1].mean() - 0.1
    np.testing.assert_allclose(
        calm[:, 0], jax.vmap(controller)(seen[:1, :1].reshape(-1, 288))[0, 0]
    )


@pytest.mark.parametrize("lost", [False, True])
def test_dreams_that_hold_no_danger_or_nothing_else_are_refused(axes, lost):
    seen, none = made_up(axes, dreams=4)
    with pytest.raises(ValueError, match="0 % of .* dreamt frames are dangerous; expected some"):
        fit_danger(seen, np.full_like(none, lost), axes)


def test_the_command_gives_a_driver_of_the_shipped_world_a_brake(tmp_path, capsys):
    controller, _ = load_linear("carracing_controller")
    fast = dataclasses.replace(controller, bias=controller.bias.at[1].add(0.5))
    save_linear(fast, tmp_path / "fast.safetensors")
    config = CautionConfig(
        controller=str(tmp_path / "fast.safetensors"), out=tmp_path / "out.safetensors", moments=96
    )
    cautious = run(config)
    assert "dangerous frames" in capsys.readouterr().out
    kept, facts = load_linear(config.out)
    np.testing.assert_array_equal(kept.weight, cautious.weight)
    np.testing.assert_array_equal(kept.weight[0], fast.weight[0])
    assert facts["caution"]["threshold"] == 1.5
    assert not np.allclose(kept.weight[2], fast.weight[2])


def test_a_world_whose_moments_are_too_few_for_the_axes_is_refused(world, tmp_path):
    save_world(world, tmp_path / "world.safetensors")
    config = CautionConfig("carracing_controller", str(tmp_path / "world.safetensors"))
    with pytest.raises(ValueError, match="axes is 120; expected 1 to 9"):
        run(config)
