"""What a store holds is told rightly: figures by driver, histograms, and a sheet of pictures."""

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from tests.training.episodes import made_up_episode
from training import overview
from training.overview import bars, histograms, run_data, survey
from training.store import open_store, shard_path
from wm_env.shard import write_shard
from wm_env.storage import StoreError

PROVENANCE = {
    "environment": "CarRacing-v3",
    "backend": "gymnasium",
    "python": "3.11.7",
    "packages": {"zarr": "3.1.6"},
}


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store"
    track = [made_up_episode(seed, driver="track") for seed in (11, 12, 13, 14)]
    failures = [
        made_up_episode(21, steps=8, driver="failures", end="off_field"),
        made_up_episode(22, steps=12, driver="failures", end="lap"),
        made_up_episode(23, steps=30, driver="failures"),
    ]
    write_shard(shard_path(folder, 0), track, PROVENANCE)
    write_shard(shard_path(folder, 1), failures, PROVENANCE | {"backend": "envpool"})
    return folder


@pytest.fixture
def told(store, capsys):
    """Lines of the tables by their first word, split into words, in order of appearance."""
    run_data(store)
    found = {}
    for line in capsys.readouterr().out.splitlines():
        name, *words = line.split() or [""]
        found.setdefault(name, []).append(words)
    return found


def test_the_table_tells_each_drivers_figures(told):
    # 30 steps: 10 tiles; -100 after 8 steps: 3 tiles; 12 steps: 4 tiles. A tile pays 1000/280.
    returns = [3 * 1000 / 280 - 0.7 - 100, 4 * 1000 / 280 - 1.2, 10 * 1000 / 280 - 3.0]
    figures = [f"{figure(returns):.0f}" for figure in (np.mean, np.std, np.max)]
    assert told["failures"][0] == ["3", "53", *figures, "2", "1", "33.3%"]
    assert told["track"][0] == ["4", "124", "33", "0", "33", "0", "0", "0.0%"]


def test_the_last_row_is_of_all_drivers(told):
    assert told["all"][0][:2] == ["7", "177"]
    assert told["all"][0][-3:] == ["2", "1", "14.3%"]


def test_seeds_are_told_by_driver(told):
    seeds = {name: told[name][1][-1] for name in ("failures", "track", "all")}
    assert seeds == {"failures": "21..23", "track": "11..14", "all": "11..23"}


def test_where_the_data_comes_from_is_told(store, capsys):
    run_data(store)
    out = capsys.readouterr().out
    size = sum(path.stat().st_size for path in store.glob("shard-*"))
    assert f"{store}: 2 shards of format 2, {size / 1e6:.1f} MB\n" in out
    assert f"177 frames, {size / 177:,.0f} bytes a frame\n" in out
    assert "CarRacing-v3 of envpool, CarRacing-v3 of gymnasium\n" in out
    assert "Python 3.11.7, zarr 3.1.6\n" in out


def test_the_tables_fit_80_columns(store, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    run_data(store)
    tables = capsys.readouterr().out.split("zarr 3.1.6\n")[1].splitlines()[:-1]
    assert max(map(len, tables)) <= 80
    assert not any("…" in line for line in tables)


def test_actions_are_counted_where_they_lie():
    actions = np.float32([[-1.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.05, 1.0, 0.0], [2.0, 1.0, 0.8]])
    steer, gas, brake = histograms(actions)
    assert steer.tolist() == [1, 0, 0, 0, 2, 0, 0, 0, 1]
    assert gas.tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 2]
    assert brake.tolist() == [3, 0, 0, 0, 0, 0, 0, 1, 0]


def test_every_step_of_a_driver_is_in_its_histograms(store):
    drivings = survey(open_store(store))
    assert drivings["track"].counts.sum(axis=1).tolist() == [120] * 3
    assert drivings["failures"].counts.sum(axis=1).tolist() == [50] * 3
    expected = sum(histograms(made_up_episode(seed).actions) for seed in (11, 12, 13, 14))
    np.testing.assert_array_equal(drivings["track"].counts, expected)


def test_bars_show_the_rarest_choice_and_leave_blank_only_what_was_never_chosen():
    assert bars(np.array([0, 1, 500, 1000])) == " ▁▄█"
    assert bars(np.array([0, 0])) == "  "


def test_the_sheet_shows_the_best_the_middle_and_the_worst_from_first_to_last(store):
    sheet = iio.imread(run_data(store, columns=4))
    # The images of an episode lie in rows of 64 pixels, 66 apart; the first pixel is (seed, step).
    found = [
        row[left, :2].tolist()
        for row in sheet
        for left in (0, 66, 132, 198)
        if row[0, 0] in (21, 22, 23) and row[0, 1:].tolist() == [0, 0]
    ]
    best, middle, worst = 23, 22, 21
    assert found == [
        *([best, step] for step in (0, 10, 20, 30)),
        *([middle, step] for step in (0, 4, 8, 12)),
        *([worst, step] for step in (0, 2, 5, 8)),
    ]


def test_the_sheet_lies_beside_the_shards(store):
    assert run_data(store) == store / "contact_sheet.png"
    assert sorted(path.suffix for path in store.iterdir()) == [".png", ".zip", ".zip"]


def test_the_sheet_of_a_read_only_store_lies_in_the_current_folder(store, tmp_path, monkeypatch):
    monkeypatch.setattr(overview.os, "access", lambda path, mode: Path(path) != store)
    monkeypatch.chdir(tmp_path)
    assert run_data(store).resolve() == tmp_path / "contact_sheet.png"
    assert (tmp_path / "contact_sheet.png").exists()


def test_the_sheet_of_a_remote_store_lies_in_the_current_folder(store, tmp_path, monkeypatch):
    upath = pytest.importorskip("upath")
    remote = upath.UPath("memory://overview/store")
    remote.mkdir(parents=True, exist_ok=True)
    for path in store.glob("shard-*"):
        (remote / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    path = run_data("memory://overview/store")
    np.testing.assert_array_equal(iio.imread(path), iio.imread(run_data(store)))
    assert path.resolve() == tmp_path / "contact_sheet.png"


def damage(shard):
    """Flip a bit in the middle of the images, which are most of the file."""
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0x10
    shard.write_bytes(data)


def test_verifying_names_a_damaged_shard_and_writes_no_sheet(store):
    damage(shard_path(store, 1))
    with pytest.raises(StoreError, match=r"shard-00001.zip is damaged"):
        run_data(store, verify=True)
    assert not (store / "contact_sheet.png").exists()


def test_damaged_shards_can_be_left_out(store, capsys):
    damage(shard_path(store, 1))
    run_data(store, damaged="skip")
    told = capsys.readouterr()
    assert "shard-00001.zip" in told.err
    assert "failures" not in told.out and "1 shards" in told.out
