"""A teammate's predictions in our submission: weights given and fitted, and every file checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from popularity import blend
from popularity.core.arrays import Float64Array
from popularity.core.atomic import read_json
from popularity.core.contracts import POSTS, PREDICTIONS, write_table
from popularity.core.errors import DataError
from popularity.submission.validate import read_scores, validate
from tests.small_tables import small_posts, small_splits

PARAMS = """
dataset: {root: data}
submit: {version: VERSION 1.2, decimals: 4, external_data: nothing}
"""


def write_scores(file: Path, scores: Mapping[str, float]) -> Path:
    lines = (f"post{pid},{value:.6f}" for pid, value in scores.items())
    file.write_text("\n".join(["post_id,popularity_score", *lines]) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project after its last stage: posts, predictions of `forward` and a submission, in the working folder."""
    monkeypatch.chdir(tmp_path)
    posts = small_posts()
    rng = np.random.default_rng(1)
    (tmp_path / "params.yaml").write_text(PARAMS, encoding="utf-8")
    test = posts.filter(split="test").sort("source_index")["pid"].to_list()
    folder = tmp_path / "data/test_allmetadata_json"
    folder.mkdir(parents=True)
    (folder / "test_category.json").write_text(json.dumps([{"Pid": pid} for pid in test]), encoding="utf-8")
    for name in ("submissions", "data/interim", "data/stack"):
        (tmp_path / name).mkdir(parents=True)
    write_scores(tmp_path / "submissions/submission.csv", dict(zip(test, rng.normal(6, 1, len(test)), strict=True)))
    write_table(posts, tmp_path / "data/interim/posts.parquet", POSTS)
    scored = small_splits(posts).filter(scheme="holdout", role="valid").join(posts, on="pid").sort("pid")
    predictions = pl.concat(
        scored.select(
            "pid",
            scheme=pl.lit("forward"),
            fold=pl.lit(0, pl.Int32),
            seed=pl.lit(seed, pl.Int64),
            model=pl.lit("stack"),
            prediction=pl.col("label") + pl.Series(rng.normal(0, 2, len(scored))),
            error_scale=pl.lit(1.0),
        )
        for seed in (1, 2)
    )
    predictions = predictions.select(list(PREDICTIONS.columns)).sort(PREDICTIONS.key)
    write_table(predictions, tmp_path / "data/ensemble/predictions.parquet", PREDICTIONS)
    return tmp_path


def ids(root: Path) -> list[str]:
    content = read_json(root / "data/test_allmetadata_json/test_category.json")
    return ["post" + row["Pid"] for row in content]


def theirs(root: Path) -> Path:
    values = np.random.default_rng(5).normal(5, 2, len(ids(root)))
    return write_scores(root / "theirs.csv", {post[4:]: value for post, value in zip(ids(root), values, strict=True)})


def their_forward(root: Path, noise: float) -> tuple[Path, pl.DataFrame]:
    """Their predictions of the valid posts of `forward`, in another order, and (pid, label, ours, theirs)."""
    rows = pl.read_parquet(root / "data/ensemble/predictions.parquet").group_by("pid").agg(ours=pl.mean("prediction"))
    rows = rows.join(pl.read_parquet(root / "data/interim/posts.parquet").select("pid", "label"), on="pid").sort("pid")
    rng = np.random.default_rng(2)
    rows = rows.with_columns(theirs=(pl.col("label") + pl.Series(rng.normal(0, noise, len(rows)))).round(6))
    shuffled = rows.sample(fraction=1, shuffle=True, seed=3)
    return write_scores(root / "forward.csv", dict(shuffled.select("pid", "theirs").iter_rows())), rows


def scores(file: Path, root: Path) -> Float64Array:
    return np.array(list(read_scores(file, ids(root), in_order=True).values()))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_given_weight(root: Path, weight: float) -> None:
    file = theirs(root)
    blend.main(["--add", str(file), "--weight", str(weight), "--out", "out"])
    mine, other = scores(root / "submissions/submission.csv", root), scores(file, root)
    for name in ("submission.csv", "submission.json"):
        assert validate(root / "out" / name, ids(root)).posts == len(ids(root))
        np.testing.assert_allclose(scores(root / "out" / name, root), (1 - weight) * mine + weight * other, atol=1e-4)


def test_a_fitted_weight_is_that_of_the_least_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    member, rows = their_forward(root, noise=0.5)
    blend.main(["--add", str(theirs(root)), "--forward", str(member), "--out", "out"])
    errors = {
        weight: float(((1 - weight) * rows["ours"] + weight * rows["theirs"] - rows["label"]).abs().to_numpy().mean())
        for weight in np.linspace(0, 1, 21).round(2)
    }
    best = min(errors, key=lambda weight: errors[weight])
    assert best > 0.5
    assert f"weight of theirs: {best:g}\n" in capsys.readouterr().out
    mine, other = scores(root / "submissions/submission.csv", root), scores(root / "theirs.csv", root)
    np.testing.assert_allclose(scores(root / "out/submission.csv", root), (1 - best) * mine + best * other, atol=1e-4)


def another_run(root: Path, name: str, noise: float) -> Path:
    """A finished run next to ours; less noise puts it nearer to the labels."""
    rng = np.random.default_rng(len(name))
    folder = root / name
    for name_of_folder in ("submissions", "data/stack"):
        (folder / name_of_folder).mkdir(parents=True)
    test = {post[4:]: value for post, value in zip(ids(root), rng.normal(6, 1, len(ids(root))), strict=True)}
    write_scores(folder / "submissions/submission.csv", test)
    labels = pl.read_parquet(root / "data/interim/posts.parquet").select("pid", "label")
    predictions = pl.read_parquet(root / "data/ensemble/predictions.parquet").join(
        labels, on="pid", maintain_order="left"
    )
    predictions = predictions.with_columns(
        prediction=pl.col("label") + pl.Series(rng.normal(0, noise, len(predictions)))
    )
    write_table(predictions.drop("label"), folder / "data/ensemble/predictions.parquet", PREDICTIONS)
    return folder


def test_runs_are_weighted_by_their_predictions_of_forward(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = another_run(root, "good", 0.3), another_run(root, "bad", 30.0)
    blend.main(["--runs", str(bad), str(good), "--out", "out"])
    printed = dict(line.split(": ") for line in capsys.readouterr().out.splitlines() if line.startswith("weight of"))
    weights = [float(printed[f"weight of {name}"]) for name in ("ours", str(bad), str(good))]
    assert weights[1] == 0
    assert weights[2] > 0.5
    assert sum(weights) == pytest.approx(1)
    each = [scores(folder / "submissions/submission.csv", root) for folder in (root, bad, good)]
    np.testing.assert_allclose(scores(root / "out/submission.csv", root), np.array(weights) @ each, atol=1e-4)


def test_a_run_of_other_splits_is_refused(root: Path) -> None:
    other = another_run(root, "other", 1.0)
    file = other / "data/ensemble/predictions.parquet"
    pl.read_parquet(file).filter(pl.col("pid") != pl.col("pid").first()).write_parquet(file)
    with pytest.raises(DataError, match=r"other(.|\n)*other posts in forward"):
        blend.main(["--runs", str(other), "--out", "out"])
    assert not (root / "out").exists()


def broken(root: Path, what: str) -> list[str]:
    file, (member, _) = theirs(root), their_forward(root, 1.0)
    target = member if what.startswith("forward") else file
    lines = target.read_text(encoding="utf-8").splitlines()
    if what.endswith("short"):
        lines = lines[:-1]
    elif what.endswith("twice"):
        lines[-1] = lines[-2]
    elif what.endswith("nan"):
        lines[1] = lines[1].split(",")[0] + ",nan"
    elif what.endswith("order"):
        lines[1:3] = lines[2:0:-1]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ["--add", str(file), "--forward", str(member), "--out", "out"]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("short", "theirs.csv.*1 expected posts are missing"),
        ("twice", "theirs.csv.*again, first in row"),
        ("nan", r"theirs.csv, row 0.*\n.*finite"),
        ("order", "theirs.csv.*out of order"),
        ("forward short", "forward.csv.*1 expected posts are missing"),
        ("forward twice", "forward.csv.*again, first in row"),
        ("forward nan", r"forward.csv, row 0.*\n.*finite"),
    ],
)
def test_a_broken_file_is_refused_and_leaves_nothing(root: Path, what: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        blend.main(broken(root, what))
    assert not (root / "out").exists()


def test_forward_must_have_been_fitted(root: Path) -> None:
    member, _ = their_forward(root, 1.0)
    file = root / "data/ensemble/predictions.parquet"
    pl.read_parquet(file).with_columns(scheme=pl.lit("group")).write_parquet(file)
    with pytest.raises(DataError, match=r"no predictions of forward(.|\n)*--weight"):
        blend.main(["--add", str(theirs(root)), "--forward", str(member), "--out", "out"])


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--weight", "0.5"],
        ["--add", "theirs.csv"],
        ["--add", "theirs.csv", "--weight", "1.5"],
        ["--add", "theirs.csv", "--weight", "0.5", "--forward", "m.csv"],
        ["--add", "theirs.csv", "--weight", "0.5", "--runs", "."],
        ["--add", "theirs.csv", "--weight", "0.5", "--out", "data"],
    ],
)
def test_wrong_flags(root: Path, flags: list[str]) -> None:
    theirs(root)
    with pytest.raises(SystemExit):
        blend.main(["--out", "out", *flags])
