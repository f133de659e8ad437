"""benchmarks.official: attempts add up, whatever ended them, and the graph goes on."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks import official
from benchmarks.measuring import REPOSITORY, environment
from benchmarks.official import Attempt, Place, costs, notes, read_rows, table
from benchmarks.tables import write_csv
from popularity.core.atomic import read_json, write_json
from popularity.core.errors import ConfigError
from popularity.core.vectors import read_block

ONE = Attempt("first", "0123456789", "ingest", 0.0, state="done", seconds=20.0, cpu=10.0, peak_mib=100.0, mb=1.0)

TINY = ("--profile", "tiny", "--pool", "1", "--side", "64")


def recorded(base: Path, *attempts: Attempt) -> Place:
    for number, one in enumerate(attempts):
        write_json(base / "attempts" / f"{number:04d}-{one.stage}.json", asdict(one))
    return Place(base, base / "attempts")


def test_attempts_of_a_stage_add_up_and_peaks_do_not(tmp_path: Path) -> None:
    killed = replace(ONE, state="running", seconds=5.0, cpu=3.0, peak_mib=300.0, mb=0.0)
    split = replace(ONE, stage="split", cpu=200.0, peak_mib=50.0)
    place = recorded(tmp_path / "whole", killed, replace(ONE, cpu=97.0), split)
    tenth = recorded(tmp_path / "tenth", ONE, replace(split, cpu=10.0))
    first, second, every = table(place, 1000, tenth)
    assert (first["stage"], first["attempts"], first["state"]) == ("ingest", 2, "done")
    assert (first["seconds"], first["cpu"], first["peak_mib"], first["mb"]) == (25.0, 100.0, 300, 1.0)
    assert first["growth"] == pytest.approx(1.0)
    assert second["growth"] == pytest.approx(1.301, abs=1e-3)
    assert (every["stage"], every["seconds"], every["peak_mib"], every["mb"]) == ("all", 45.0, 300, 2.0)
    assert every["growth"] == pytest.approx(1.176, abs=1e-3)
    assert "lost" not in "".join(notes(place, 1000, "tiny"))
    half = recorded(tmp_path / "half", ONE, replace(split, cpu=10.0, state="running"))
    assert table(place, 1000, half)[-1]["growth"] is None  # a tenth that has not finished
    alone = recorded(tmp_path / "alone", ONE)
    assert table(place, 1000, alone)[1]["growth"] is None
    assert table(place, 1000, alone)[-1]["growth"] is None  # of other stages
    unfinished = recorded(tmp_path / "unfinished", killed)
    assert [row["state"] for row in table(unfinished, 1000, tenth)] == ["interrupted"] * 2
    assert table(unfinished, 1000, tenth)[0]["growth"] is None


def test_after_the_folder_was_lost_no_time_counts_twice_and_it_is_said(tmp_path: Path) -> None:
    """ingest has run again in the second clone, because later stages need it; split finished in the first alone."""
    again = replace(ONE, run="second", seconds=30.0)
    split, killed = replace(ONE, stage="split"), replace(ONE, stage="train", run="second", state="running")
    place = recorded(tmp_path, ONE, split, replace(killed, run="first"), again, killed)
    found = costs(place)
    assert found == {"ingest": [again], "split": [split], "train": [killed]}
    assert "The folder was lost: stages of 2 separate clones are summed." in list(notes(place, 1000, "tiny"))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for both runs: the second goes on where the first ended."""
    return tmp_path_factory.mktemp("official")


@pytest.mark.slow
def test_a_killed_run_goes_on(begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--folder", str(begun), "--posts", "3000", "--fraction", "0.1", *TINY]
    started = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.official", *command, "--until", "demo_data"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    file = begun / "posts-300" / "attempts" / "0000-demo_data.json"
    try:
        while not file.exists():
            assert started.poll() is None
            time.sleep(0.1)
        time.sleep(0.5)
    finally:
        started.send_signal(signal.SIGKILL)  # without a last word
        started.wait()
    killed = Attempt(**read_json(file))
    assert (killed.stage, killed.state) == ("demo_data", "running")
    official.main([*command, "--until", "index_images", "--csv", str(tmp_path / "costs.csv")])
    left = Path(f"/proc/{killed.group}/cmdline")
    assert not left.exists() or not left.read_bytes()  # or it waits for its parent to read its end
    rows = pl.read_csv(tmp_path / "costs.csv")
    assert rows["stage"].to_list() == ["demo_data", "ingest", "index_images", "all"]
    assert rows["attempts"].to_list() == [2, 1, 1, 4]
    assert set(rows["state"]) == {"done"}
    every = [Attempt(**read_json(one)) for one in sorted(file.parent.glob("*.json"))]
    own = [one for one in every if one.stage == "demo_data"]
    assert rows["seconds"][0] == pytest.approx(sum(one.seconds for one in own))
    assert own[-1].cpu > 0
    assert own[-1].peak_mib > 0
    assert own[-1].mb > 0
    posts = pl.read_parquet(begun / "posts-300/run/data/interim/posts.parquet")
    assert posts.group_by("split").len().sort("split")["len"].to_list() == [111, 189]  # test, train
    assert pl.read_parquet(begun / "posts-300/run/data/interim/images.parquet")["status"].to_list() == ["ok"] * 300

    official.main([*command, "--until", "index_images"])  # all is up to date: no further attempt
    assert len(list(file.parent.glob("*.json"))) == 4
    assert "No submission yet" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="with profile tiny, not demo"):
        official.main(["demo" if word == "tiny" else word for word in command])


@pytest.mark.slow
def test_vectors_of_one_post_of_each_picture_are_those_of_all(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--folder", str(begun), "--posts", "300", *TINY]
    stage = "embed_image@efficientnet_lite0"
    official.main([*command, "--until", stage, "--copy-vectors"])
    assert f"Not measured in this folder: {stage}" in capsys.readouterr().out
    attempts = begun / "posts-300" / "attempts"
    assert not list(attempts.glob("*embed_image*"))
    out = begun / "posts-300" / "run" / "data" / "embeddings" / "image" / "efficientnet_lite0"
    copied, counted = read_block(out, "pooled"), pl.read_parquet(out / "statistics.parquet").sort("pid")
    status = pl.read_parquet(out / "status.parquet").sort("pid")
    shutil.rmtree(out)
    official.main([*command, "--until", stage])
    assert len(list(attempts.glob("*embed_image*"))) == 1
    block, statistics = read_block(out, "pooled"), pl.read_parquet(out / "statistics.parquet").sort("pid")
    assert copied.pids == block.pids
    assert copied.metadata == block.metadata
    assert len(np.unique(block.values, axis=0)) < 100  # a third of the posts, so pictures were copied
    np.testing.assert_allclose(copied.values, block.values, rtol=2e-3, atol=1e-3)
    assert counted.equals(statistics)
    assert status.equals(pl.read_parquet(out / "status.parquet").sort("pid"))


def test_stages_measured_apart_are_added(tmp_path: Path) -> None:
    place, tenth = recorded(tmp_path / "two", ONE), recorded(tmp_path / "tenth", replace(ONE, cpu=1.0))
    write_csv(
        table(recorded(tmp_path / "one", replace(ONE, stage="embed", cpu=90.0)), 1000, tenth), tmp_path / "one.csv"
    )
    others = read_rows(tmp_path / "one.csv", 1000)
    first, second, every = table(place, 1000, tenth, [*others, {**others[0], "stage": "ingest", "cpu": 7.0}])
    assert [row["stage"] for row in (first, second, every)] == ["ingest", "embed", "all"]
    assert (first["cpu"], second["cpu"], every["cpu"], every["attempts"]) == (10.0, 90.0, 100.0, 2)
    assert every["growth"] is None  # the tenth has ingest alone
    killed = recorded(tmp_path / "killed", ONE, replace(ONE, stage="embed", state="running", cpu=1.0))
    assert [row["cpu"] for row in table(killed, 1000, tenth, others)] == [10.0, 90.0, 100.0]
    with pytest.raises(ConfigError, match="of 1,000 posts"):
        read_rows(tmp_path / "one.csv", 2000)


def test_a_folder_inside_the_repository_is_refused() -> None:
    with pytest.raises(ConfigError, match="outside of"):
        official.main(["--folder", str(REPOSITORY / "official")])
