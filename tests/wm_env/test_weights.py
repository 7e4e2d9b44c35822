"""Weights on disk: save -> load identity, and a helpful error for every way a file can be wrong."""

import dataclasses
import json

import equinox as eqx
import jax
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wm_env import weights, weights_file
from wm_env.weights import WeightsError
from wm_env.world_model import Metadata


@pytest.fixture(scope="module")
def saved(world, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "world.safetensors"
    weights.save_world(world, path, dtype="float16", metadata={"data": "none"})
    return path


def rewrite(source, target, *, tensors=None, header=None, drop=()):
    """Copy a file with some header fields or tensors replaced, the checksum made right again."""
    with safetensors.safe_open(source, framework="numpy") as file:
        old_header = file.metadata()
        old = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    new = {name: array for name, array in {**old, **(tensors or {})}.items() if name not in drop}
    checksum = weights_file.tensors_checksum(new)
    content = safetensors.numpy.save(new, {**old_header, "checksum": checksum, **(header or {})})
    target.write_bytes(content)
    return target


def test_float32_round_trip_is_the_identity(world, tmp_path):
    path = tmp_path / "world.safetensors"
    weights.save_world(world, path, dtype="float32")
    loaded = weights.load_world(path)
    assert jax.tree.structure(loaded) == jax.tree.structure(world)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(world), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert loaded.vae.config == world.vae.config
    assert loaded.mdn_rnn.config == world.mdn_rnn.config


def test_float16_rounds_once_and_is_float32_in_memory(saved, tmp_path):
    loaded = weights.load_world(saved)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(loaded))
    weights.save_world(loaded, tmp_path / "again.safetensors", dtype="float16")
    again = weights.load_world(tmp_path / "again.safetensors")
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "sizes",
    [
        {"latent_size": 4, "hidden_size": 8, "mixtures": 1},
        {"latent_size": 16, "hidden_size": 32, "mixtures": 3, "dropout": 0.05},
        {"latent_size": 4, "hidden_size": 8, "motion": True, "correlated": True},
    ],
)
def test_other_sizes_round_trip(random_world, tmp_path, sizes):
    world = random_world(1, mdn_rnn=sizes, first=1, middle=3)
    weights.save_world(world, tmp_path / "w.safetensors", dtype="float32")
    loaded = weights.load_world(tmp_path / "w.safetensors")
    assert loaded.mdn_rnn.config == world.mdn_rnn.config
    np.testing.assert_array_equal(loaded.starts.c, world.starts.c)
    np.testing.assert_array_equal(loaded.mdn_rnn.gate_weight, world.mdn_rnn.gate_weight)
    assert jax.tree.structure(loaded.starts) == jax.tree.structure(world.starts)
    assert eqx.tree_equal(loaded.starts.motion, world.starts.motion)
    assert eqx.tree_equal(loaded.mdn_rnn.motion, world.mdn_rnn.motion)


def test_metadata_of_world_and_call_are_kept(world, tmp_path):
    told = dataclasses.replace(world, metadata=Metadata({"data": "random", "score": 1}))
    weights.save_world(told, tmp_path / "w.safetensors", metadata={"score": 906.5})
    assert dict(weights.load_world(tmp_path / "w.safetensors").metadata) == {
        "data": "random",
        "score": 906.5,
    }


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    arrays=st.dictionaries(
        st.text("abcdefgh_", min_size=1, max_size=8),
        hnp.arrays(
            np.float32,
            hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
            elements=st.floats(-1e6, 1e6, width=32),
        ),
        min_size=1,
        max_size=4,
    ),
    facts=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
)
def test_controllers_round_trip(tmp_path, arrays, facts):
    weights.save_controller(arrays, tmp_path / "c.safetensors", facts)
    loaded, metadata = weights.load_controller(tmp_path / "c.safetensors")
    assert metadata == facts
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].shape == array.shape


def test_missing_file_lists_the_shipped_names(tmp_path, monkeypatch):
    (tmp_path / "nurburgring.safetensors").touch()
    monkeypatch.setattr(weights_file, "ASSETS", tmp_path)
    with pytest.raises(WeightsError, match=r"'nowhere'.*\['nurburgring'\]"):
        weights.load_world("nowhere")


def test_shipped_names_resolve_to_the_assets(saved, monkeypatch, tmp_path):
    rewrite(saved, tmp_path / "mine.safetensors")
    monkeypatch.setattr(weights_file, "ASSETS", tmp_path)
    assert weights.load_world("mine").metadata["data"] == "none"


@pytest.fixture
def sibling(world, random_world, monkeypatch, tmp_path):
    """A world of the V of the one that is shipped as `mine`, and where it is to be saved."""
    monkeypatch.setattr(weights_file, "ASSETS", tmp_path)
    weights.save_world(world, tmp_path / "mine.safetensors")
    other = dataclasses.replace(random_world(seed=9), vae=world.vae)
    return other, tmp_path / "sibling.safetensors"


def test_a_world_may_leave_its_v_to_a_shipped_one(sibling, tmp_path):
    world, path = sibling
    weights.save_world(world, path, vae_of="mine")
    weights.save_world(world, tmp_path / "whole.safetensors")
    assert path.stat().st_size < 0.5 * (tmp_path / "whole.safetensors").stat().st_size
    alone, whole = (weights.load_world(name) for name in ("sibling", "whole"))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_is_the_same_world_for_whoever_asks_by_checksum(sibling, tmp_path):
    world, path = sibling
    weights.save_world(world, path, vae_of="mine")
    weights.save_world(world, tmp_path / "whole.safetensors")
    assert weights.checksum_of("sibling") == weights.checksum_of("whole")


def test_a_world_of_another_v_cannot_leave_it_out(sibling, random_world, tmp_path):
    world, path = sibling
    with pytest.raises(WeightsError, match="'mine' is not this world's.*without vae_of"):
        weights.save_world(random_world(seed=9), path, vae_of="mine")
    with pytest.raises(WeightsError, match=r"no weights at 'yours'.*\['mine'\]"):
        weights.save_world(world, path, vae_of="yours")
    with pytest.raises(WeightsError, match="cannot leave its V to itself"):
        weights.save_world(world, tmp_path / "mine.safetensors", vae_of="mine")
    assert not path.exists()
    assert weights.load_world("mine")


def test_a_shipped_v_that_is_gone_or_another_is_noticed(sibling, random_world, tmp_path):
    world, path = sibling
    weights.save_world(world, path, vae_of="mine")
    weights.save_world(random_world(seed=9), tmp_path / "mine.safetensors")
    with pytest.raises(WeightsError, match="sibling.*or the V of 'mine' is another"):
        weights.load_world(path)
    (tmp_path / "mine.safetensors").unlink()
    with pytest.raises(WeightsError, match="no weights at 'mine'"):
        weights.load_world(path)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
def test_truncated_file_is_refused(saved, tmp_path, share):
    content = saved.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        weights.load_world(path)


def test_foreign_bytes_are_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(b"PK\x03\x04 this is a zip, or so it says" * 10)
    with pytest.raises(WeightsError, match="another format"):
        weights.load_world(path)


def test_safetensors_of_other_software_is_refused(tmp_path):
    path = tmp_path / "bert.safetensors"
    safetensors.numpy.save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(WeightsError, match="format is None; expected 'wm_env'"):
        weights.load_world(path)


def test_a_directory_is_no_world(tmp_path):
    with pytest.raises(WeightsError, match="no weights at"):
        weights.load_world(tmp_path)


def test_wrong_kind_is_refused(saved, tmp_path):
    with pytest.raises(WeightsError, match="kind is 'world'; expected 'controller'.*load_world"):
        weights.load_controller(saved)
    weights.save_controller({"weight": np.zeros(3)}, tmp_path / "c.safetensors")
    with pytest.raises(WeightsError, match="kind is 'controller'; expected 'world'"):
        weights.load_world(tmp_path / "c.safetensors")


def test_wrong_version_is_refused(saved, tmp_path):
    path = rewrite(saved, tmp_path / "w.safetensors", header={"format_version": "99"})
    with pytest.raises(WeightsError, match="format_version is '99'; expected '1'"):
        weights.load_world(path)


def test_one_flipped_bit_is_noticed(saved, tmp_path):
    content = bytearray(saved.read_bytes())
    content[-1000] ^= 1
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged"):
        weights.load_world(path)


def test_tensor_of_another_shape_is_refused(saved, tmp_path):
    bias = {"mdn_rnn.gate_bias": np.zeros(7, np.float16)}
    path = rewrite(saved, tmp_path / "w.safetensors", tensors=bias)
    with pytest.raises(WeightsError, match=r"gate_bias has shape \(7,\).*\(1024,\)"):
        weights.load_world(path)


def test_missing_and_unexpected_tensors_are_named(saved, tmp_path):
    extra = {"mdn_rnn.surprise": np.zeros(1, np.float16)}
    path = rewrite(saved, tmp_path / "w.safetensors", tensors=extra, drop=("mdn_rnn.gate_bias",))
    with pytest.raises(WeightsError, match=r"lacks.*gate_bias.*unexpected.*surprise"):
        weights.load_world(path)


@pytest.mark.parametrize("config", ["{}", '{"vae": {"wings": 2}}', "not json", "[1]"])
def test_config_that_describes_no_world_is_refused(saved, tmp_path, config):
    path = rewrite(saved, tmp_path / "w.safetensors", header={"config": config})
    with pytest.raises(WeightsError):
        weights.load_world(path)


def test_config_whose_sizes_disagree_is_refused(saved, tmp_path):
    with safetensors.safe_open(saved, framework="numpy") as file:
        config = json.loads(file.metadata()["config"])
    config["vae"]["latent_size"] = 31
    path = rewrite(saved, tmp_path / "w.safetensors", header={"config": json.dumps(config)})
    with pytest.raises(WeightsError, match="latent_size is 31 but M expects 32"):
        weights.load_world(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_weights_that_float16_cannot_hold_are_refused_and_leave_no_file(world, tmp_path, value):
    bad = dataclasses.replace(
        world, starts=dataclasses.replace(world.starts, z=world.starts.z.at[0, 0].set(value))
    )
    with pytest.raises(WeightsError, match="starts.z is not finite in float16"):
        weights.save_world(bad, tmp_path / "w.safetensors", dtype="float16")
    assert not list(tmp_path.iterdir())
