"""One change of M at a time: what each M begins from, and what is kept from one run to the next."""

import json
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.fits import MEMORY, VISION, write_data
from training import sweep
from training.latents import encode_store
from training.sweep import CHANGES, SweepConfig, begun_from, changed
from training.vision import fit_vision, load_vision
from wm_env.mdn_rnn import MDNRNN, MDNRNNConfig
from wm_env.weights import load_world

SMALL = MDNRNNConfig(latent_size=4, hidden_size=8)


@pytest.fixture(scope="module")
def begin():
    return MDNRNN(SMALL, key=jax.random.key(0))


def outputs(mdn_rnn):
    prediction = mdn_rnn.predict(jnp.linspace(-1.0, 1.0, 8))
    return prediction.mixture.mu, prediction.tiles, prediction.off_field


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (SMALL, [True, True, True]),
        (replace(SMALL, shared_mixture=True), [False, True, True]),
        (replace(SMALL, mixtures=2), [False, True, True]),
        (replace(SMALL, tiles="squared"), [True, False, True]),
    ],
)
def test_what_means_the_same_is_taken_over(begin, config, kept):
    grown = begun_from(begin, config, mixture=True, seed=1)
    np.testing.assert_array_equal(grown.gate_weight, begin.gate_weight)
    pairs = zip(outputs(begin), outputs(grown), strict=True)
    assert [a.shape == b.shape and bool(jnp.allclose(a, b)) for a, b in pairs] == kept


def test_what_follows_the_motion_goes_on_as_it_did_or_without(begin):
    following = MDNRNN(replace(SMALL, motion=True), key=jax.random.key(2))
    same = begun_from(following, following.config, mixture=True, seed=1)
    assert eqx.tree_equal(same, following)
    for one, config in ((following, SMALL), (begin, following.config)):
        other = begun_from(one, config, mixture=True, seed=1)
        assert (other.motion is None) == (not config.motion)
        for kept in (slice(4), slice(-8, None)):  # what z and h say, with a and the motion between
            np.testing.assert_array_equal(other.gate_weight[kept], one.gate_weight[kept])
        np.testing.assert_array_equal(other.head_weight, one.head_weight)


def test_the_mixture_can_be_drawn_anew_alone(begin):
    grown = begun_from(begin, SMALL, mixture=False, seed=1)
    pairs = zip(outputs(begin), outputs(grown), strict=True)
    assert [bool(jnp.allclose(a, b)) for a, b in pairs] == [False, True, True]


def test_every_change_is_a_config_other_than_the_base_or_another_dream_of_it():
    sizes = replace(MEMORY.mdn_rnn, motion=True, correlated=True)  # as the preset onward's
    base = replace(MEMORY, mdn_rnn=sizes, own_foretold=False)
    fits = [changed(base, change) for change in CHANGES.values() if not change.fits]
    again = {name for change in CHANGES.values() for name in change.fits}
    assert again <= set(CHANGES)
    assert len(set(fits)) == len(fits) - 1  # "mixture anew" is the base's own
    assert changed(base, CHANGES["batch 256, half the steps"]).steps == base.steps // 2


@pytest.fixture
def run_folder(tmp_path, lenient_dtypes):  # optax divides floats by integers
    shards, _ = write_data(tmp_path)
    fit_vision(shards, VISION, tmp_path / "vision")
    encode_store(shards, load_vision(VISION, tmp_path / "vision"), tmp_path / "latents")
    return tmp_path


def test_what_is_finished_is_kept_until_something_it_follows_from_changes(run_folder, monkeypatch):
    asked = []

    def told(config):
        asked.append((config.world, config.temperature))
        config.json.write_text(json.dumps({"row": {"spearman": len(asked)}}))

    def rows(**changes):
        config = SweepConfig(
            ("base", "temperature 0.5", "ensemble of two"), steps=3, begin_from=None
        )
        return sweep.run(replace(config, **changes), MEMORY, VISION, run_folder)

    monkeypatch.setattr(sweep, "report", told)
    monkeypatch.setattr(sweep, "check_same_v", lambda *_: None)  # the shipped driver's is another
    first = rows()
    assert [row["spearman"] for row in first] == [1, 2, 3]
    (base, plain), (same, cool), (both, _) = asked
    assert (same, both[0], plain, cool) == (base, base[0], 1.0, 0.5)
    assert load_world(both[1]).metadata["memory"]["seed"] == 1
    assert rows() == first and len(asked) == 3
    rows(steps=2)
    assert len(asked) == 6 and asked[3][0] != base


def test_an_unknown_change_is_named(tmp_path):
    with pytest.raises(ValueError, match="changes are .'bigger'.; expected some of 'base'"):
        sweep.run(SweepConfig(("bigger",)), MEMORY, VISION, tmp_path)


def test_a_driver_of_another_v_is_refused_before_anything_is_fitted(run_folder):
    with pytest.raises(ValueError, match="begin_from carracing_motion has V .*expected the same V"):
        sweep.run(SweepConfig(), MEMORY, VISION, run_folder)
    assert not (run_folder / "sweep").exists()
