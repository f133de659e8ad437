"""Another run and a teammate's files as members: what is written, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from popularity import member
from popularity.core.contracts import FOLDS, MEMBER_PREDICTIONS, POSTS, PREDICTIONS, read_table, write_table
from popularity.core.errors import DataError
from tests.small_tables import small_posts, small_splits

KEY = list(MEMBER_PREDICTIONS.key)


def write_scores(file: Path, scores: Mapping[str, float]) -> Path:
    lines = (f"post{pid},{value:.6f}" for pid, value in scores.items())
    file.write_text("\n".join(["post_id,popularity_score", *lines]) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project after stage split, in the working folder; its splits are one of forward and the test part."""
    monkeypatch.chdir(tmp_path)
    posts = small_posts()
    write_table(posts, tmp_path / "data/interim/posts.parquet", POSTS)
    splits = small_splits(posts).filter(scheme="holdout").with_columns(scheme=pl.lit("forward"))
    test = posts.filter(split="test").select("pid", scheme=pl.lit("refit"), fold=pl.lit(0), role=pl.lit("valid"))
    splits = pl.concat([splits, test.select(pl.col(name).cast(kind) for name, kind in splits.schema.items())])
    write_table(splits.sort(FOLDS.key), tmp_path / "data/interim/splits.parquet", FOLDS)
    folder = tmp_path / "data/demo/test_allmetadata_json"
    folder.mkdir(parents=True)
    content = [{"Pid": pid} for pid in posts.filter(split="test").sort("source_index")["pid"]]
    (folder / "test_category.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "params.yaml").write_text("dataset: {root: data/demo}\n", encoding="utf-8")
    return tmp_path


def valid_rows(root: Path) -> pl.DataFrame:
    return read_table(root / "data/interim/splits.parquet", FOLDS).filter(role="valid").select(KEY)


def another_run(root: Path, schemes: tuple[str, ...] = ("forward", "refit")) -> tuple[Path, pl.DataFrame]:
    """A finished run next to ours, of two seeds, and the means of its predictions."""
    rng = np.random.default_rng(1)
    rows = valid_rows(root).filter(pl.col("scheme").is_in(schemes))
    each = pl.concat(
        rows.with_columns(
            seed=pl.lit(seed, pl.Int64),
            model=pl.lit("stack"),
            prediction=pl.Series(rng.normal(5, 2, len(rows))),
            error_scale=pl.lit(1.0),
        )
        for seed in (1, 2)
    ).select(list(PREDICTIONS.columns))
    write_table(each.sort(PREDICTIONS.key), root / "other/data/ensemble/predictions.parquet", PREDICTIONS)
    return root / "other", each.group_by(KEY).agg(pl.mean("prediction")).sort(KEY)


def files(root: Path) -> tuple[Path, Path]:
    """A teammate's submission, whose scores are 0, 1, 2, ..., and predictions of forward, likewise in another order."""
    test = read_table(root / "data/interim/posts.parquet", POSTS).filter(split="test").sort("source_index")["pid"]
    forward = valid_rows(root).filter(scheme="forward")["pid"].reverse()
    return tuple(  # type: ignore[return-value]
        write_scores(root / name, dict(zip(pids.to_list(), map(float, range(len(pids))), strict=True)))
        for name, pids in (("theirs.csv", test), ("forward.csv", forward))
    )


def written(root: Path, name: str) -> pl.DataFrame:
    return read_table(root / f"data/members/{name}.parquet", MEMBER_PREDICTIONS)


def test_another_run_becomes_a_member(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, means = another_run(root)
    member.main(["seed1", "--run", str(folder)])
    found = written(root, "seed1")
    assert found.select(KEY).equals(means.select(KEY))
    np.testing.assert_allclose(found["prediction"].to_numpy(), means["prediction"].to_numpy())
    printed = capsys.readouterr().out
    assert "forward: SRC " in printed
    assert "add seed1 to ensemble.members" in printed


def test_files_become_a_member(root: Path) -> None:
    submission, forward = files(root)
    member.main(["theirs", "--submission", str(submission), "--forward", str(forward)])
    found = written(root, "theirs")
    assert found.select(KEY).equals(valid_rows(root).sort(KEY))
    own = found.filter(scheme="forward").sort("prediction")["pid"].to_list()
    assert own == valid_rows(root).filter(scheme="forward")["pid"].reverse().to_list()
    posts = read_table(root / "data/interim/posts.parquet", POSTS)
    test = found.filter(scheme="refit").sort("prediction")["pid"].to_list()
    assert test == posts.filter(split="test").sort("source_index")["pid"].to_list()


@pytest.mark.parametrize(
    ("schemes", "message"),
    [(("forward",), "no predictions of refit"), (("refit",), r"no predictions of forward(.|\n)*stack\.schemes")],
)
def test_a_run_without_a_scheme_is_refused(root: Path, schemes: tuple[str, ...], message: str) -> None:
    folder, _ = another_run(root, schemes)
    with pytest.raises(DataError, match=message):
        member.main(["seed1", "--run", str(folder)])


def test_a_run_of_other_splits_is_refused(root: Path) -> None:
    folder, _ = another_run(root)
    file = folder / "data/ensemble/predictions.parquet"
    pl.read_parquet(file).filter(pl.col("pid") != pl.col("pid").first()).write_parquet(file)
    with pytest.raises(DataError, match=r"other(.|\n)*other valid posts than ours"):
        member.main(["seed1", "--run", str(folder)])
    assert not (root / "data/members").exists()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("theirs.csv", lambda lines: lines[:-1], "theirs.csv.*1 expected posts are missing"),
        ("theirs.csv", lambda lines: [*lines[:1], *lines[2:0:-1], *lines[3:]], "theirs.csv.*out of order"),
        ("forward.csv", lambda lines: lines[:-1], "forward.csv.*1 expected posts are missing"),
        ("forward.csv", lambda lines: [*lines[:-1], lines[-2]], "forward.csv.*again, first in row"),
        ("forward.csv", lambda lines: [*lines[:-1], lines[-1].split(",")[0] + ",nan"], r"forward.csv(.|\n)*finite"),
    ],
)
def test_a_broken_file_is_refused_and_leaves_nothing(root: Path, file: str, change: object, message: str) -> None:
    submission, forward = files(root)
    lines = (root / file).read_text(encoding="utf-8").splitlines()
    (root / file).write_text("\n".join(change(lines)) + "\n", encoding="utf-8")  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        member.main(["theirs", "--submission", str(submission), "--forward", str(forward)])
    assert not (root / "data/members").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["a b", "--run", "."],
        ["text_model", "--run", "."],
        ["theirs"],
        ["theirs", "--submission", "theirs.csv"],
        ["theirs", "--run", ".", "--forward", "forward.csv"],
        ["theirs", "--run", ".", "--submission", "theirs.csv"],
    ],
)
def test_wrong_flags(root: Path, flags: list[str]) -> None:
    with pytest.raises(SystemExit):
        member.main(flags)
