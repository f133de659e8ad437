"""Roles of posts in the validation schemes: nested in time, matched in unseen users, complete."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from popularity.errors import DataError
from popularity.schema import FOLDS, POSTS, check_table, read_table, write_table
from popularity.splits import SplitParams, make_splits, rows_of
from popularity.splits.schemes import LEAST_FIT
from stages import split
from tests.random_posts import random_posts

PARAMS = SplitParams(
    seed=0, report_share=0.15, matched_share=0.15, folds=5, repeats=2, unseen_user_share=0.64, tolerance=0.01
)


@pytest.fixture(scope="module")
def posts() -> pl.DataFrame:
    return random_posts(seed=1, train=2000, test=800, users=300)


@pytest.fixture(scope="module")
def made(posts: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, Any]]:
    return make_splits(posts, PARAMS)


def roles(made: tuple[pl.DataFrame, dict[str, Any]], posts: pl.DataFrame, scheme: str, repeat: int = 0) -> pl.DataFrame:
    rows = made[0].filter((pl.col("scheme") == scheme) & (pl.col("repeat") == repeat))
    return rows.join(posts, on="pid", how="left", validate="m:1")


def test_contract_and_every_training_post_in_every_fold(
    made: tuple[pl.DataFrame, dict[str, Any]], posts: pl.DataFrame
) -> None:
    check_table(made[0], FOLDS)
    counts = made[0].group_by("scheme", "repeat", "fold").agg(n=pl.len(), unique=pl.col("pid").n_unique())
    expected = {"report": 1, "matched": 2, "user": 10, "random": 10, "final": 1}
    assert dict(counts.group_by("scheme").len().iter_rows()) == expected
    train = posts.filter(pl.col("split") == "train").height
    for scheme, _, _, n, unique in counts.iter_rows():
        assert n == unique == (posts.height if scheme == "final" else train)


def test_schemes_are_nested_in_time(made: tuple[pl.DataFrame, dict[str, Any]], posts: pl.DataFrame) -> None:
    report, matched = roles(made, posts, "report"), roles(made, posts, "matched")
    report_start = report.filter(pl.col("role") == "score")["posted_at"].min()
    for rows in (report, matched):
        score = rows.filter(pl.col("role") == "score")["posted_at"]
        assert rows.filter(pl.col("role") == "fit")["posted_at"].max() < score.min()  # type: ignore[operator]
    assert matched.filter(pl.col("role") == "score")["posted_at"].max() < report_start  # type: ignore[operator]
    for scheme in ("matched", "user", "random"):
        used = roles(made, posts, scheme).filter(pl.col("role") != "dropped")
        assert used["posted_at"].max() < report_start  # type: ignore[operator]
    share = (report["role"] == "score").mean()
    assert share == pytest.approx(0.15, abs=0.02)  # ties in time are not parted


def test_share_of_unseen_users_is_that_of_the_test_part(
    made: tuple[pl.DataFrame, dict[str, Any]], posts: pl.DataFrame
) -> None:
    train, test = (posts.filter(pl.col("split") == part) for part in ("train", "test"))
    wanted = (~test["uid"].is_in(train["uid"].to_list())).mean()
    for scheme, repeats in (("report", 1), ("matched", 2)):
        for repeat in range(repeats):
            rows = roles(made, posts, scheme, repeat)
            fit, score = (rows.filter(pl.col("role") == role) for role in ("fit", "score"))
            assert (~score["uid"].is_in(fit["uid"].to_list())).mean() == pytest.approx(wanted, abs=0.01)
    first, second = (roles(made, posts, "matched", repeat).sort("pid")["role"] for repeat in (0, 1))
    assert not first.equals(second)  # each repeat draws its own users


def test_folds_partition_the_rows_before_report(made: tuple[pl.DataFrame, dict[str, Any]], posts: pl.DataFrame) -> None:
    before = roles(made, posts, "report").filter(pl.col("role") != "score")["pid"]
    for scheme in ("user", "random"):
        rows = roles(made, posts, scheme)
        assert sorted(rows.filter(pl.col("role") == "score")["pid"]) == sorted(before)
        if scheme == "user":
            for _, fold in rows.group_by("fold"):
                fit, score = (fold.filter(pl.col("role") == role)["uid"] for role in ("fit", "score"))
                assert not set(fit) & set(score)


def test_same_seed_same_roles_whatever_the_row_order(posts: pl.DataFrame) -> None:
    again, _ = make_splits(posts.sample(fraction=1.0, shuffle=True, seed=3), PARAMS)
    assert again.equals(make_splits(posts, PARAMS)[0])


def test_labels_are_not_read(posts: pl.DataFrame) -> None:
    without = posts.with_columns(label=pl.lit(None, pl.Float64))
    assert make_splits(without, PARAMS)[0].equals(make_splits(posts, PARAMS)[0])


def test_without_a_test_part_the_parameter_steers_and_final_scores_nothing(posts: pl.DataFrame) -> None:
    splits, report = make_splits(posts.filter(pl.col("split") == "train"), PARAMS)
    assert report["wanted_unseen_post_share"] == 0.64
    assert "no test part" in report["wanted_from"]
    final = splits.filter(pl.col("scheme") == "final")
    assert final["role"].unique().to_list() == ["fit"]
    matched = [row for row in report["schemes"] if row["scheme"] == "matched"]
    assert all(abs(row["unseen_post_share"] - 0.64) <= 0.01 or row["note"] for row in matched)


def test_says_so_when_dropping_all_is_too_little() -> None:
    """One user writes nine of ten posts, first and last: the share jumps over the wanted one."""
    start = datetime(2020, 1, 1, tzinfo=UTC)
    train = random_posts(seed=2, train=200, test=1).filter(pl.col("split") == "train").sort("source_index")
    uids = [f"{row // 10 % 10}@N0" if row % 10 == 0 else "one@N0" for row in range(200)]
    days = pl.Series([start + timedelta(days=row) for row in range(200)]).cast(POSTS.columns["posted_at"].dtype)
    _, report = make_splits(train.with_columns(uid=pl.Series(uids), posted_at=days), PARAMS)
    (row,) = (row for row in report["schemes"] if row["scheme"] == "report")
    assert row["unseen_post_share"] != pytest.approx(0.64, abs=0.01)
    assert "scored posts are by unseen users" in row["note"]


def at_days(posts: pl.DataFrame, days: list[int]) -> pl.DataFrame:
    times = [datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=day) for day in days]
    return posts.with_columns(posted_at=pl.Series(times).cast(POSTS.columns["posted_at"].dtype))


def test_fit_rows_remain_when_every_user_should_go() -> None:
    """Six users who post all the time, and a test part by others: no choice of users gives its share."""
    posts = random_posts(seed=3, train=200, test=60).sort("split", "source_index", descending=[True, False])
    uids = [f"{row % 6}@N0" if row < 200 else f"new{row}@N0" for row in range(260)]
    splits, report = make_splits(at_days(posts.with_columns(uid=pl.Series(uids)), list(range(260))), PARAMS)
    rows = {row["scheme"]: row for row in report["schemes"]}
    for scheme in ("report", "matched"):
        assert rows[scheme]["fit"] >= LEAST_FIT * (200 * 0.85 * (0.85 if scheme == "matched" else 1) - 1)
        assert rows[scheme]["unseen_post_share"] > 0.5
        assert "as near to the 100.0 % wanted as dropping whole users came" in rows[scheme]["note"]
    check_table(splits, FOLDS)


def test_cuts_leave_fit_rows_when_most_posts_have_the_first_date() -> None:
    train = random_posts(seed=4, train=200, test=1).filter(pl.col("split") == "train")
    splits, _ = make_splits(at_days(train, [max(0, row - 150) for row in range(200)]), PARAMS)
    roles = splits.group_by("scheme", "repeat", "fold").agg(pl.col("role").unique())
    assert all({"fit", "score"} <= set(row) for row in roles.filter(pl.col("scheme") != "final")["role"])


def test_posts_of_one_second_are_a_named_error() -> None:
    with pytest.raises(DataError, match="0 posts before the report cut"):
        make_splits(at_days(random_posts(seed=5), [0] * 130), PARAMS)


def test_too_few_users_is_a_named_error() -> None:
    with pytest.raises(DataError, match=r"split\.folds"):
        make_splits(random_posts(seed=0, users=3), PARAMS)


def test_rows_of_leaves_the_dropped_rows_out(made: tuple[pl.DataFrame, dict[str, Any]]) -> None:
    keys = []
    for key, rows in rows_of(made[0], ["report", "user"]):
        keys.append(key)
        assert set(rows["role"]) == {"fit", "score"}
        assert rows["pid"].is_sorted()
    assert keys == [("report", 0, 0), *[("user", repeat, fold) for repeat in (0, 1) for fold in range(5)]]


def test_stage(tmp_path: Path, posts: pl.DataFrame) -> None:
    write_table(posts, tmp_path / "posts.parquet", POSTS)
    flags = {name: str(tmp_path / f"{name}.out") for name in ("splits", "report", "resources")}
    split.main(
        [
            "--posts",
            str(tmp_path / "posts.parquet"),
            *[part for name, path in flags.items() for part in (f"--{name}", path)],
        ]
    )
    splits = read_table(tmp_path / "splits.out", FOLDS)
    assert np.isin(["report", "final"], splits["scheme"].unique().to_numpy()).all()
    assert (tmp_path / "report.out").exists()
