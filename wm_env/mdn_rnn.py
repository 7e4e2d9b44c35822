"""M: the recurrent model that dreams on, an LSTM with a mixture density head.

Source: Ha & Schmidhuber 2018, "World models", appendix A.2; tiles and off-field heads are ours.
"""

import dataclasses
import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from wm_env.mdn import Mixture
from wm_env.motion import MOTION_SIZE, SEEN_MOTION, Motion

# No car crosses more than a few tiles in one frame; the bound keeps exp(log rate) finite.
TILES_PER_STEP_LIMIT = 8.0


@dataclasses.dataclass(frozen=True)
class MDNRNNConfig:
    """Sizes and heads of M; the sizes are the paper's.

    `shared_mixture` gives all latent dimensions one choice of component, as the seed project does,
    instead of one each. `correlated` lets them vary together, in a way that M says anew at each
    step: independent ones draw roads that are none. `tiles` says what the head of that name is: the
    log of a Poisson rate, the expected number itself ("squared"), or what the step pays for tiles,
    in tiles of a typical track ("reward": the seed's plain regression of the reward). Of a task
    without tiles it is the reward itself, of either sign, in the task's unit ("signed"). With
    `motion` M keeps track of how the car moves, and sees that in place of the action: see
    `wm_env.motion`.
    """

    latent_size: int = 32  # Ha & Schmidhuber 2018, table of CarRacing sizes
    action_size: int = 3  # steer, gas, brake; of other tasks as many as they have
    hidden_size: int = 256  # Ha & Schmidhuber 2018
    mixtures: int = 5  # Ha & Schmidhuber 2018
    shared_mixture: bool = False
    correlated: bool = False
    tiles: Literal["poisson", "squared", "reward", "signed"] = "poisson"
    motion: bool = False
    dropout: float = 0.0  # of h, in training; one mask an episode (Gal & Ghahramani 2016)


class Carry(eqx.Module):
    """LSTM state: output `h` in [-1, 1] and cell `c`; and how the car moves, if M follows that."""

    h: Float[Array, "h"]
    c: Float[Array, "h"]
    motion: Float[Array, "m"] | None = None


class Prediction(eqx.Module):
    """What M expects of one step: the next latent, tiles hit, and the car leaving the field."""

    mixture: Mixture
    tiles: Float[Array, ""]  # the head's output, see `MDNRNN.expected_tiles`
    off_field: Float[Array, ""]  # logit


class MDNRNN(eqx.Module):
    """LSTM over (z, a), or (z, motion), whose output predicts z', tiles and off-field.

    Unbatched; callers vmap.
    """

    gate_weight: Float[Array, "i gates"]
    gate_bias: Float[Array, "gates"]
    head_weight: Float[Array, "h heads"]
    head_bias: Float[Array, "heads"]
    motion: Motion | None
    config: MDNRNNConfig = eqx.field(static=True)

    def __init__(self, config: MDNRNNConfig = MDNRNNConfig(), *, key: PRNGKeyArray):  # noqa: B008
        """Weights uniform in +-1/sqrt(hidden_size), as PyTorch and Equinox initialise an LSTM."""
        key_gates, key_heads = jax.random.split(key)
        given = SEEN_MOTION if config.motion else config.action_size
        inputs = config.latent_size + given + config.hidden_size
        hidden = config.hidden_size
        choices = 1 if config.shared_mixture else config.latent_size
        heads = config.mixtures * (choices + 2 * config.latent_size) + 2
        couplings = couplings_of(config)
        bound = hidden**-0.5
        self.config = config
        self.gate_weight = jax.random.uniform(
            key_gates, (inputs, 4 * hidden), minval=-bound, maxval=bound
        )
        # A forget gate that starts open lets gradients reach far back (Jozefowicz et al. 2015).
        self.gate_bias = jnp.zeros(4 * hidden).at[hidden : 2 * hidden].set(1.0)
        head_weight = jax.random.uniform(key_heads, (hidden, heads), minval=-bound, maxval=bound)
        # Dimensions begin independent.
        self.head_weight = jnp.pad(head_weight, ((0, 0), (couplings, 0)))
        self.head_bias = jnp.zeros(couplings + heads)
        self.motion = None
        if config.motion:
            self.motion = Motion(config.latent_size + hidden)

    def initial_carry(self) -> Carry:
        """The carry before anything was seen: zeros."""
        zeros = jnp.zeros(self.config.hidden_size)
        motion = jnp.zeros(MOTION_SIZE) if self.config.motion else None
        return Carry(h=zeros, c=zeros, motion=motion)

    def initial_carries(self, *lanes: int) -> Carry:
        """`initial_carry` for each of many dreams: h and c are [*lanes, h]."""
        return jax.tree.map(lambda zeros: jnp.zeros((*lanes, *zeros.shape)), self.initial_carry())

    def advance_carry(
        self,
        z: Float[Array, "z"],
        a: Float[Array, "a"],
        carry: Carry,
        *,
        mask: Float[Array, "h"] | None = None,
        told: Float[Array, "m"] | None = None,
    ) -> Carry:
        """The carry after (z, a). `mask`, of 0 and 1/(1 - rate), multiplies h before the gates.

        `told` is the motion after it, where that is known; of the ground M keeps its own opinion.

        Source: Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000.
        """
        h = carry.h if mask is None else carry.h * mask
        motion, given = None, a
        if self.motion is not None and carry.motion is not None:
            seen = jnp.concatenate([z, h])
            if told is None:
                motion = self.motion(carry.motion, a, seen)
            else:
                motion = jnp.append(told[:-1], self.motion.ground(seen))
            given = motion[:SEEN_MOTION]
        # One matmul for input and recurrence: in a scan on a CPU two smaller ones are slower.
        gates = _product(jnp.concatenate([z, given, h]), self.gate_weight) + self.gate_bias
        entry, forget, candidate, output = jnp.split(gates, 4)
        c = jax.nn.sigmoid(forget) * carry.c + jax.nn.sigmoid(entry) * jnp.tanh(candidate)
        h = jax.nn.sigmoid(output) * jnp.tanh(c)
        return Carry(h=h, c=c, motion=motion)

    def unroll(
        self,
        z: Float[Array, "t z"],
        actions: Float[Array, "t a"],
        *,
        mask: Float[Array, "h"] | None = None,
        told: Float[Array, "t m"] | None = None,
    ) -> Carry:
        """The carries after each (z_t, a_t) from h = 0, where the motion is `told`: h, c [t, h]."""

        def advance(carry: Carry, inputs: tuple[Array, Array, Any]) -> tuple[Carry, Carry]:
            seen, action, told = inputs
            carry = self.advance_carry(seen, action, carry, mask=mask, told=told)
            return carry, carry

        return jax.lax.scan(advance, self.initial_carry(), (z, actions, told))[1]

    def predict(self, h: Float[Array, "h"]) -> Prediction:
        """What `h` (the output after the step's z and a) expects of that step."""
        heads = _product(h, self.head_weight) + self.head_bias
        couplings, heads = jnp.split(heads, [couplings_of(self.config)])
        size = self.config.mixtures * self.config.latent_size
        # Component-major rows keep each component's latents contiguous, which sampling reads.
        parts = jnp.split(heads[:-2], [len(heads) - 2 - 2 * size, len(heads) - 2 - size])
        logits, mu, raw_log_sigma = (part.reshape(self.config.mixtures, -1).T for part in parts)
        mixture = Mixture(
            logits=logits,
            mu=mu,
            raw_log_sigma=raw_log_sigma,
            whitening=_unit_triangular(couplings) if self.config.correlated else None,
        )
        return Prediction(mixture=mixture, tiles=heads[-2], off_field=heads[-1])

    def expected_tiles(self, prediction: Prediction) -> Float[Array, ""]:
        """Tiles that a step is expected to hit, in 0..TILES_PER_STEP_LIMIT; signed, the reward."""
        if self.config.tiles == "signed":
            return prediction.tiles
        if self.config.tiles == "poisson":
            return jnp.minimum(jnp.exp(prediction.tiles), TILES_PER_STEP_LIMIT)
        return jnp.clip(prediction.tiles, 0.0, TILES_PER_STEP_LIMIT)

    def step(
        self,
        z: Float[Array, "z"],
        a: Float[Array, "a"],
        carry: Carry,
        *,
        mask: Float[Array, "h"] | None = None,
        told: Float[Array, "m"] | None = None,
    ) -> tuple[Prediction, Carry]:
        """Consume (z_t, a_t): the prediction for this step and the carry after it."""
        carry = self.advance_carry(z, a, carry, mask=mask, told=told)
        return self.predict(carry.h), carry


def _product(x: Float[Array, "i"], weight: Float[Array, "i o"]) -> Float[Array, "o"]:
    """`x @ weight`, multiplied in the precision of the weight and summed in float32."""
    return jnp.matmul(x.astype(weight.dtype), weight, preferred_element_type=jnp.float32)


def couplings_of(config: MDNRNNConfig) -> int:
    """How many entries of the whitening M says: those below its diagonal, which its heads begin."""
    return config.latent_size * (config.latent_size - 1) // 2 if config.correlated else 0


def _unit_triangular(entries: Float[Array, "n"]) -> Float[Array, "z z"]:
    """1 on the diagonal, the `entries` below it in an order that needs no gather, 0 above."""
    side = (math.isqrt(8 * len(entries) + 1) - 1) // 2
    # The entries and then, backwards, all but the first `side` fill a square; those of its lower
    # triangle are each entry once.
    square = jnp.concatenate([entries[side:], entries[::-1]]).reshape(side, side)
    return jnp.eye(side + 1) + jnp.pad(jnp.tril(square), ((1, 0), (0, 1)))
