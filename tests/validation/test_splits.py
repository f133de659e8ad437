"""Roles of posts in the validation schemes: nested in time, with the wanted share of unseen users, complete."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from popularity.core.contracts import FOLDS, POSTS, FoldKey, check_table, read_table, write_table
from popularity.core.errors import DataError
from popularity.validation import SplitParams, make_splits, rows_of
from popularity.validation.splits import MIN_TRAIN_FRACTION
from stages import split
from tests.random_posts import random_posts
from tests.repository import stage_flags, write_profile

PARAMS = SplitParams(
    seed=0,
    span="fractions",
    holdout_fraction=0.15,
    forward_fraction=0.15,
    n_origins=3,
    n_folds=5,
    unseen_user_fraction=0.64,
    tolerance=0.01,
    match_collection_order=False,
)


@pytest.fixture(scope="module")
def posts() -> pl.DataFrame:
    return random_posts(seed=1, train=2000, test=800, users=300)


@pytest.fixture(scope="module")
def made(posts: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, Any]]:
    return make_splits(posts, PARAMS)


LAST = PARAMS.n_origins - 1


def roles(made: tuple[pl.DataFrame, dict[str, Any]], posts: pl.DataFrame, scheme: str) -> pl.DataFrame:
    """The rows of a scheme; of `forward` those of the last split."""
    rows = made[0].filter(pl.col("scheme") == scheme)
    rows = rows.filter(fold=LAST) if scheme == "forward" else rows
    return rows.join(posts, on="pid", how="left", validate="m:1")


def test_contract_and_every_training_post_in_every_fold(
    made: tuple[pl.DataFrame, dict[str, Any]], posts: pl.DataFrame
) -> None:
    check_table(made[0], FOLDS)
    counts = made[0].group_by("scheme", "fold").agg(n=pl.len(), unique=pl.col("pid").n_unique())
    expected = {"holdout": 1, "forward": 3, "group": 5, "random": 5, "refit": 1}
    assert dict(counts.group_by("scheme").len().iter_rows()) == expected
    train = posts.filter(pl.col("split") == "train").height
    for scheme, _, n, unique in counts.iter_rows():
        assert n == unique == (posts.height if scheme == "refit" else train)


def test_schemes_are_nested_in_time(made: tuple[pl.DataFrame, dict[str, Any]], posts: pl.DataFrame) -> None:
    holdout, forward = roles(made, posts, "holdout"), roles(made, posts, "forward")
    holdout_start = holdout.filter(pl.col("role") == "valid")["posted_at"].min()
    for rows in (holdout, forward):
        valid = rows.filter(pl.col("role") == "valid")["posted_at"]
        assert rows.filter(pl.col("role") == "train")["posted_at"].max() < valid.min()  # type: ignore[operator]
    assert forward.filter(pl.col("role") == "valid")["posted_at"].max() < holdout_start  # type: ignore[operator]
    for scheme in ("forward", "group", "random"):
        used = roles(made, posts, scheme).filter(pl.col("role") != "excluded")
        assert used["posted_at"].max() < holdout_start  # type: ignore[operator]
    share = (holdout["role"] == "valid").mean()
    assert share == pytest.approx(0.15, abs=0.02)  # posts of one second stay together


def test_forward_splits_are_valid_one_slice_after_another(
    made: tuple[pl.DataFrame, dict[str, Any]], posts: pl.DataFrame
) -> None:
    """Train ends where valid starts; valid is the last fraction before the next origin; later posts are excluded."""
    end = roles(made, posts, "holdout").filter(role="valid")["posted_at"].min()
    for fold in reversed(range(PARAMS.n_origins)):
        rows = made[0].filter(scheme="forward", fold=fold).join(posts, on="pid", how="left", validate="1:1")
        slice_ = rows.filter(role="valid")["posted_at"]
        start, earlier = slice_.min(), rows.filter(pl.col("posted_at") < slice_.min())
        assert rows.filter(pl.col("posted_at") >= end)["role"].unique().to_list() == ["excluded"]
        assert rows.filter(pl.col("posted_at").is_between(start, end, closed="left"))["role"].unique().item() == "valid"
        assert set(earlier["role"]) == {"train", "excluded"}
        assert len(slice_) / (len(slice_) + len(earlier)) == pytest.approx(PARAMS.forward_fraction, abs=0.01)
        end = start


def test_the_last_forward_split_is_that_of_a_single_one(
    made: tuple[pl.DataFrame, dict[str, Any]], posts: pl.DataFrame
) -> None:
    """It excludes the same users, and no other scheme depends on the number of origins."""
    single = make_splits(posts, replace(PARAMS, n_origins=1))[0]
    last = made[0].filter((pl.col("scheme") != "forward") | (pl.col("fold") == LAST))
    first = pl.when(scheme="forward").then(pl.lit(0, pl.Int32)).otherwise("fold")
    assert last.with_columns(fold=first).equals(single)


def test_every_forward_split_has_the_share_of_the_test_part_and_excludes_its_own_users(
    made: tuple[pl.DataFrame, dict[str, Any]], posts: pl.DataFrame
) -> None:
    wanted = made[1]["wanted_unseen_post_share"]
    forward = [row for row in made[1]["schemes"] if row["scheme"] == "forward"]
    assert [row["fold"] for row in forward] == [0, 1, 2]
    for row in forward:
        assert row["unseen_post_share"] == pytest.approx(wanted, abs=PARAMS.tolerance + 1e-4)
        rows = made[0].filter(scheme="forward", fold=row["fold"]).join(posts, on="pid")
        known = rows.filter(role="train")["uid"].unique().to_list()
        share = (~rows.filter(role="valid")["uid"].is_in(known)).mean()
        assert row["unseen_post_share"] == pytest.approx(share, abs=1e-4)
    gone = [
        set(rows.filter(pl.col("posted_at") < rows.filter(role="valid")["posted_at"].min(), role="excluded")["uid"])
        for fold in range(3)
        for rows in [made[0].filter(scheme="forward", fold=fold).join(posts, on="pid")]
    ]
    assert all(one - other for one in gone for other in gone if one is not other)


def test_share_of_unseen_users_is_that_of_the_test_part(
    made: tuple[pl.DataFrame, dict[str, Any]], posts: pl.DataFrame
) -> None:
    train, test = (posts.filter(pl.col("split") == part) for part in ("train", "test"))
    wanted = (~test["uid"].is_in(train["uid"].to_list())).mean()
    for scheme in ("holdout", "forward"):
        rows = roles(made, posts, scheme)
        train_rows, valid_rows = (rows.filter(pl.col("role") == role) for role in ("train", "valid"))
        assert (~valid_rows["uid"].is_in(train_rows["uid"].to_list())).mean() == pytest.approx(wanted, abs=0.01)


def test_folds_partition_the_rows_before_the_holdout(
    made: tuple[pl.DataFrame, dict[str, Any]], posts: pl.DataFrame
) -> None:
    before = roles(made, posts, "holdout").filter(pl.col("role") != "valid")["pid"]
    for scheme in ("group", "random"):
        rows = roles(made, posts, scheme)
        assert sorted(rows.filter(pl.col("role") == "valid")["pid"]) == sorted(before)
        if scheme == "group":
            for _, fold in rows.group_by("fold"):
                train_rows, valid_rows = (fold.filter(pl.col("role") == role)["uid"] for role in ("train", "valid"))
                assert not set(train_rows) & set(valid_rows)


def test_same_seed_same_roles_whatever_the_row_order(posts: pl.DataFrame) -> None:
    again, _ = make_splits(posts.sample(fraction=1.0, shuffle=True, seed=3), PARAMS)
    assert again.equals(make_splits(posts, PARAMS)[0])


def test_labels_are_not_read(posts: pl.DataFrame) -> None:
    without = posts.with_columns(label=pl.lit(None, pl.Float64))
    assert make_splits(without, PARAMS)[0].equals(make_splits(posts, PARAMS)[0])


def test_without_a_test_part_the_parameter_decides_and_refit_has_no_valid_rows(posts: pl.DataFrame) -> None:
    splits, summary = make_splits(posts.filter(pl.col("split") == "train"), PARAMS)
    assert summary["wanted_unseen_post_share"] == 0.64
    assert "no test part" in summary["wanted_from"]
    refit = splits.filter(pl.col("scheme") == "refit")
    assert refit["role"].unique().to_list() == ["train"]
    forward = [row for row in summary["schemes"] if row["scheme"] == "forward"]
    assert all(abs(row["unseen_post_share"] - 0.64) <= 0.01 or row["note"] for row in forward)


def test_the_note_says_when_excluding_all_is_too_little() -> None:
    """One user writes nine of ten posts, first and last: the share cannot be the wanted one."""
    start = datetime(2020, 1, 1, tzinfo=UTC)
    train = random_posts(seed=2, train=200, test=1).filter(pl.col("split") == "train").sort("source_index")
    uids = [f"{row // 10 % 10}@N0" if row % 10 == 0 else "one@N0" for row in range(200)]
    days = pl.Series([start + timedelta(days=row) for row in range(200)]).cast(POSTS.columns["posted_at"].dtype)
    _, summary = make_splits(train.with_columns(uid=pl.Series(uids), posted_at=days), PARAMS)
    (row,) = (row for row in summary["schemes"] if row["scheme"] == "holdout")
    assert row["unseen_post_share"] != pytest.approx(0.64, abs=0.01)
    assert "valid posts are by unseen users" in row["note"]


def at_days(posts: pl.DataFrame, days: list[int]) -> pl.DataFrame:
    times = [datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=day) for day in days]
    return posts.with_columns(posted_at=pl.Series(times).cast(POSTS.columns["posted_at"].dtype))


def test_train_rows_remain_when_every_user_should_be_excluded() -> None:
    """Six users who post all the time, and a test part by others: no choice of users gives its share."""
    posts = random_posts(seed=3, train=200, test=60).sort("split", "source_index", descending=[True, False])
    uids = [f"{row % 6}@N0" if row < 200 else f"new{row}@N0" for row in range(260)]
    splits, summary = make_splits(at_days(posts.with_columns(uid=pl.Series(uids)), list(range(260))), PARAMS)
    rows = {row["scheme"]: row for row in summary["schemes"]}  # of `forward` the last split
    for scheme in ("holdout", "forward"):
        assert rows[scheme]["train"] >= MIN_TRAIN_FRACTION * (200 * 0.85 * (0.85 if scheme == "forward" else 1) - 1)
        assert rows[scheme]["unseen_post_share"] > 0.5
        assert "no choice of whole users comes nearer to the 100.0 % wanted" in rows[scheme]["note"]
    check_table(splits, FOLDS)


def test_origins_leave_train_rows_when_most_posts_have_the_first_date() -> None:
    train = random_posts(seed=4, train=200, test=1).filter(pl.col("split") == "train")
    splits, _ = make_splits(at_days(train, [max(0, row - 150) for row in range(200)]), PARAMS)
    roles = splits.group_by("scheme", "fold").agg(pl.col("role").unique())
    assert all({"train", "valid"} <= set(row) for row in roles.filter(pl.col("scheme") != "refit")["role"])


def test_fewer_forward_splits_where_there_is_no_room_for_more() -> None:
    """The first splits would have fewer users than folds; the note says so, and the last splits stay."""
    posts = random_posts(seed=6, train=60, test=20, users=40)
    users = [f"{max(0, row - 35)}@N0" for row in range(80)]  # a single user before the 36th post
    ordered = posts.sort("split", "source_index", descending=[True, False]).with_columns(uid=pl.Series(users))
    splits, summary = make_splits(at_days(ordered, list(range(80))), PARAMS)
    forward = [row for row in summary["schemes"] if row["scheme"] == "forward"]
    assert [row["fold"] for row in forward] == [0, 1]
    assert "too few posts or users for 1 more of split.n_origins = 3" in forward[0]["note"]
    assert "too few posts" not in forward[1]["note"]
    assert sorted(splits.filter(scheme="forward")["fold"].unique()) == [0, 1]


def test_posts_of_one_second_are_a_named_error() -> None:
    with pytest.raises(DataError, match="0 posts before the holdout"):
        make_splits(at_days(random_posts(seed=5), [0] * 130), PARAMS)


def test_too_few_users_is_a_named_error() -> None:
    with pytest.raises(DataError, match=r"split\.n_folds"):
        make_splits(random_posts(seed=0, users=3), PARAMS)


def test_rows_of_leaves_the_excluded_rows_out(made: tuple[pl.DataFrame, dict[str, Any]]) -> None:
    keys = []
    for key, rows in rows_of(made[0], ["holdout", "group"]):
        keys.append(key)
        assert set(rows["role"]) == {"train", "valid"}
        assert rows["pid"].is_sorted()
    assert keys == [*[FoldKey("group", fold) for fold in range(5)], FoldKey("holdout", 0)]
    assert keys == sorted(keys)
    assert len({key.file_name for key in keys}) == len(keys)


def test_stage(tmp_path: Path, posts: pl.DataFrame) -> None:
    write_table(posts, tmp_path / "posts.parquet", POSTS)
    outs = {name: f"{name}.out" for name in ("splits", "summary", "resources")}
    write_profile(tmp_path)
    split.main(stage_flags("split", tmp_path, posts="posts.parquet", **outs))
    splits = read_table(tmp_path / "splits.out", FOLDS)
    assert np.isin(["holdout", "refit"], splits["scheme"].unique().to_numpy()).all()
    assert (tmp_path / "summary.out").exists()
