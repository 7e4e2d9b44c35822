"""Where a linear controller is searched for: axes along which what drivers see has variance 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.linear import LinearController
from agents.principal_axes import Coordinates, PrincipalAxes

FEATURES = 288

pytestmark = pytest.mark.usefixtures("lenient_dtypes")


@pytest.fixture(scope="module")
def origin():
    weight = 0.1 * jax.random.normal(jax.random.key(0), (3, FEATURES))
    return LinearController(weight=weight, bias=jnp.array([0.1, 0.2, -0.3]))


def test_the_moments_of_a_world_have_unit_variance_along_its_axes(world, origin):
    axes = PrincipalAxes.of(origin, world, 5)
    seen = np.concatenate([world.starts.z, world.starts.h], axis=1)
    along = (seen - axes.mean) @ axes.axes
    np.testing.assert_allclose(np.cov(along.T), np.eye(5), atol=1e-4)
    # The first axes are those that vary most: in their own units the longest.
    lengths = np.linalg.norm(axes.axes, axis=0)
    assert np.all(np.diff(lengths) > 0.0)


def test_a_coordinate_changes_what_the_driver_does_by_its_axis_and_not_in_the_mean(world, origin):
    axes = PrincipalAxes.of(origin, world, 5)
    start = axes.controller(axes.start)
    np.testing.assert_array_equal(start.weight, origin.weight)
    moved = axes.controller(Coordinates(axes.start.weight.at[0, 2].set(0.7), axes.start.bias))
    seen = jnp.concatenate([world.starts.z, world.starts.h], axis=1)
    change = seen @ (moved.weight - origin.weight).T + moved.bias - origin.bias
    np.testing.assert_allclose(change.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(np.std(change, axis=0, ddof=1), [0.7, 0.0, 0.0], atol=1e-4)


@pytest.mark.parametrize("count", [0, 10, 300])
def test_more_axes_than_the_moments_span_are_refused(world, origin, count):
    with pytest.raises(ValueError, match=f"axes is {count}; expected 1 to 9, which the 10 moments"):
        PrincipalAxes.of(origin, world, count)
