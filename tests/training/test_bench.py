"""Rates of collecting and of training V."""

import jax
import jax.numpy as jnp

from training.bench import forward_flops, peak_memory
from wm_env.vae import VAE


def test_memory_grows_with_the_number_of_workers():
    assert 0 < peak_memory(0) <= peak_memory(2)


def test_the_operations_of_v_are_those_that_xla_counts_less_padding():
    vae = VAE(key=jax.random.key(0))
    there_and_back = jax.jit(lambda image: vae.decode(vae.encode_mean(image)))
    analysis = there_and_back.lower(jnp.zeros((64, 64, 3))).cost_analysis()
    counted = (analysis[0] if isinstance(analysis, list) else analysis)["flops"]
    assert 0.7 * counted < forward_flops(vae) < counted
