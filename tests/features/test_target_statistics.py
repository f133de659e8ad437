"""Label features: causal, of train rows only, never with the row itself; against a slow reference."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from popularity.core.as_of import as_of_dates
from popularity.core.contracts import UTC as UTC_TYPE
from popularity.features.target_statistics import target_statistics
from tests.random_posts import random_posts

PRIOR = 3.0
HORIZON = timedelta(days=20)


def fold(seed: int, *, cut_in_time: bool) -> pl.DataFrame:
    train = random_posts(seed).filter(pl.col("split") == "train").sort("posted_at", "pid")
    if cut_in_time:
        start = train["posted_at"][60]
        role = pl.when(pl.col("posted_at") >= start)
    else:
        role = pl.when(pl.int_range(pl.len()) % 4 == 0)
    train = train.with_columns(role=role.then(pl.lit("valid")).otherwise(pl.lit("train")))
    return train.select("pid", "role", "posted_at", "label", "uid", "subcategory")


def slow_as_of(rows: list[dict[str, Any]], post: dict[str, Any]) -> datetime:
    fit = [row["posted_at"] for row in rows if row["role"] == "train"]
    score = [row["posted_at"] for row in rows if row["role"] == "valid"]
    if min(score) > max(fit):
        cut, length = min(score), max(max(score) - min(score), timedelta(days=1))
    else:
        cut, length = max(fit + score) + timedelta(seconds=1), HORIZON
    assert isinstance(cut, datetime)
    start = cut
    while start > post["posted_at"]:
        start -= length
    return start


def slow(rows: list[dict[str, Any]], post: dict[str, Any], key: str) -> dict[str, Any]:
    as_of = slow_as_of(rows, post)
    past = [row for row in rows if row["role"] == "train" and row["posted_at"] < as_of]
    past.sort(key=lambda row: (row["posted_at"], row["pid"]))
    mine = [row for row in past if row[key] == post[key]]
    result: dict[str, Any] = {f"{key}_target_posts": len(mine)}
    mean = sum(row["label"] for row in past) / len(past) if past else None
    level = last = age = None
    if mine and mean is not None:
        level = (sum(row["label"] for row in mine) + PRIOR * mean) / (len(mine) + PRIOR) - mean
        last = mine[-1]["label"] - mean
        age = (post["posted_at"] - mine[-1]["posted_at"]).total_seconds() / 86_400
    return result | {f"{key}_target_level": level, f"{key}_target_last": last, f"{key}_target_age": age}


@pytest.mark.parametrize("cut_in_time", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_the_slow_reference(seed: int, cut_in_time: bool) -> None:
    rows = fold(seed, cut_in_time=cut_in_time)
    table = target_statistics(rows, ("uid", "subcategory"), PRIOR, HORIZON)
    listed = rows.sort("pid").to_dicts()
    assert table["pid"].to_list() == [row["pid"] for row in listed]
    histories = 0
    for post, found in zip(listed, table.to_dicts(), strict=True):
        for key in ("uid", "subcategory"):
            for name, value in slow(listed, post, key).items():
                if value is None:
                    assert found[name] is None, name
                else:
                    histories += 1
                    assert math.isclose(found[name], value, rel_tol=1e-9, abs_tol=1e-9), (name, found[name], value)
    assert histories > len(listed)


@pytest.mark.parametrize("cut_in_time", [True, False])
def test_labels_of_scored_rows_and_of_the_row_itself_change_nothing(cut_in_time: bool) -> None:
    rows = fold(7, cut_in_time=cut_in_time)
    keys = ("uid", "subcategory")
    before = target_statistics(rows, keys, PRIOR, HORIZON)
    scored = rows.with_columns(label=pl.when(pl.col("role") == "valid").then(99.0).otherwise("label"))
    assert target_statistics(scored, keys, PRIOR, HORIZON).equals(before)
    for pid in rows.filter(pl.col("role") == "train")["pid"].to_list()[::7]:
        changed = rows.with_columns(label=pl.when(pl.col("pid") == pid).then(99.0).otherwise("label"))
        own = target_statistics(changed, keys, PRIOR, HORIZON).filter(pl.col("pid") == pid)
        assert own.equals(before.filter(pl.col("pid") == pid))


def test_moving_later_labels_changes_no_earlier_history() -> None:
    rows = fold(8, cut_in_time=True)
    middle = rows["posted_at"][30]
    changed = rows.with_columns(label=pl.when(pl.col("posted_at") >= middle).then(99.0).otherwise("label"))
    before, after = (target_statistics(table, ("uid",), PRIOR, HORIZON) for table in (rows, changed))
    early = rows.filter(pl.col("posted_at") <= middle).select("pid")
    assert before.join(early, on="pid").equals(after.join(early, on="pid"))
    assert not before.equals(after)


def test_target_of_scored_rows_ends_at_the_cut() -> None:
    rows = fold(9, cut_in_time=True)
    dates = as_of_dates(rows, HORIZON).join(rows.select("pid", "role", "posted_at"), on="pid")
    start = rows.filter(pl.col("role") == "valid")["posted_at"].min()
    assert dates.filter(pl.col("role") == "valid")["as_of"].unique().to_list() == [start]
    assert (dates["as_of"] <= dates["posted_at"]).all()


def test_a_scored_post_before_the_last_fit_row_moves_no_other_history() -> None:
    """Published parts overlap by a few posts: their own target statistics end earlier, the rest stay as they are."""
    rows = fold(2, cut_in_time=True).sort("posted_at", "pid")
    early = rows.filter(pl.col("role") == "valid")["pid"][5]
    moved = rows.with_columns(
        posted_at=pl.when(pl.col("pid") == early).then(pl.col("posted_at").min()).otherwise("posted_at")
    )
    before, after = (as_of_dates(table, HORIZON).sort("pid") for table in (rows, moved))
    assert after.filter(pl.col("pid") != early).equals(before.filter(pl.col("pid") != early))
    assert (after.join(moved, on="pid").select(pl.col("as_of") <= pl.col("posted_at"))).to_series().all()


def test_one_scored_second() -> None:
    """Posts of one instant span no time: blocks are then a day long."""
    start = datetime(2020, 1, 1, tzinfo=UTC)
    rows = pl.DataFrame(
        {
            "pid": ["a", "b", "c"],
            "role": ["train", "train", "valid"],
            "posted_at": [start, start + timedelta(hours=30), start + timedelta(hours=48)],
            "label": [1.0, 2.0, None],
            "uid": ["u", "u", "u"],
        },
        schema_overrides={"posted_at": UTC_TYPE},
    )
    table = target_statistics(rows, ("uid",), PRIOR, HORIZON)
    assert table["uid_target_posts"].to_list() == [0, 1, 2]
