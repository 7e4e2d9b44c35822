"""The matmul-lowered layers are the convolutions that they claim to be."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wm_env.convolution import Conv2x, ConvTranspose2x

_NHWC = ("NHWC", "HWIO", "NHWC")


def _plain_conv(layer: Conv2x, x: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x[None], layer.kernel, (2, 2), "VALID", dimension_numbers=_NHWC
    )[0]


def _plain_transpose(layer: ConvTranspose2x, x: jax.Array) -> jax.Array:
    flipped = layer.kernel[::-1, ::-1]  # lax paints with the kernel turned around
    return jax.lax.conv_transpose(x[None], flipped, (2, 2), "VALID", dimension_numbers=_NHWC)[0]


def _cases() -> list:
    cases = []
    key = jax.random.key(0)
    for size in (2, 4, 6):
        cases.append(pytest.param(Conv2x(3, 5, size, key=key), _plain_conv, id=f"conv{size}"))
    for size in (4, 5, 6):
        layer = ConvTranspose2x(3, 5, size, key=key)
        cases.append(pytest.param(layer, _plain_transpose, id=f"transpose{size}"))
    return cases


@eqx.filter_jit
def _outcome_and_gradients(paint, layer, x):
    """What `paint(layer, x)` is, and how it changes with both, by one program."""

    def loss(both):
        painted = paint(*both)
        weight = jax.random.normal(jax.random.key(2), painted.shape)
        return jnp.sum(weight * painted), painted

    (_, painted), gradients = eqx.filter_value_and_grad(loss, has_aux=True)((layer, x))
    return painted, gradients


@pytest.mark.parametrize(("layer", "plain"), _cases())
@pytest.mark.parametrize("height, width", [(8, 8), (9, 7), (31, 14)])
def test_values_and_gradients_equal_those_of_lax(layer, plain, height, width):
    x = jax.random.normal(jax.random.key(1), (height, width, 3))
    ours, theirs = (
        _outcome_and_gradients(paint, layer, x)
        for paint in (
            lambda layer, x: layer(x),
            lambda layer, x: plain(layer, x) + layer.bias[None, None],
        )
    )
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)
    for mine, other in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(theirs[1]), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [4, 5, 6])
def test_a_single_pixel_is_painted_as_lax_does(size):
    layer = ConvTranspose2x(3, 5, size, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (4, 1, 1, 3))
    plain = np.asarray(jax.vmap(lambda pixel: _plain_transpose(layer, pixel))(x))
    np.testing.assert_allclose(jax.vmap(layer)(x), plain + np.asarray(layer.bias), atol=1e-6)
    ours, theirs = (
        eqx.filter_grad(lambda lx, paint=paint: jnp.sum(jnp.sin(paint(*lx))))((layer, x[0]))
        for paint in (
            lambda layer, pixel: layer(pixel),
            lambda layer, pixel: _plain_transpose(layer, pixel) + layer.bias[None, None],
        )
    )
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), ours, theirs)


def test_an_odd_kernel_is_refused_by_the_strided_convolution():
    with pytest.raises(ValueError, match="kernel size 5"):
        Conv2x(3, 5, 5, key=jax.random.key(0))
