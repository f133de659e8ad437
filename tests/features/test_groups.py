"""Feature groups: counts and labels against slow references, causal, of train rows only."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from popularity.core.as_of import as_of_dates
from popularity.features import FeatureColumn
from popularity.features.classes import CLASSES, with_themes
from popularity.features.groups import count_groups, label_groups
from popularity.features.past_labels import HALF_LIVES, code_names
from tests.random_posts import random_posts

PRIOR = 3.0
HORIZON = timedelta(days=20)
Rows = list[dict[str, Any]]


def fold(seed: int, *, cut_in_time: bool = True) -> pl.DataFrame:
    """(pid, role, as_of and all of POSTS) of 90 posts."""
    train = random_posts(seed).filter(pl.col("split") == "train").sort("posted_at", "pid")
    later = pl.col("posted_at") >= train["posted_at"][60] if cut_in_time else pl.int_range(pl.len()) % 4 == 0
    train = with_themes(train).with_columns(role=pl.when(later).then(pl.lit("valid")).otherwise(pl.lit("train")))
    return train.join(as_of_dates(train, HORIZON), on="pid", validate="1:1")


def test_groups_are_named_by_their_columns() -> None:
    rows = fold(0)
    columns = {*count_groups(rows).columns, *label_groups(code_names(rows), PRIOR).columns} - {"pid"}
    found = {FeatureColumn.named(column).group for column in columns}
    assert found == {"user_target", "words", "rhythm", "class_time"}
    assert FeatureColumn.named("user_posts").group is None


@pytest.mark.parametrize("seed", [0, 1])
def test_counts_equal_a_slow_reference(seed: int) -> None:
    posts = with_themes(random_posts(seed))
    listed = posts.to_dicts()
    for post, found in zip(listed, count_groups(posts).to_dicts(), strict=True):

        def before(span: int, post: dict[str, Any] = post, **alike: Any) -> int:
            first = post["posted_at"] - timedelta(days=span)
            return sum(
                first <= other["posted_at"] < post["posted_at"] and all(other[k] == v for k, v in alike.items())
                for other in listed
            )

        assert found["pid"] == post["pid"]
        for name, span in (("day", 1), ("week", 7), ("month", 30)):
            assert found[f"rhythm.user_{name}"] == before(span, uid=post["uid"])
        key = post["theme"]
        classes = posts["theme"].n_unique()
        recent, usual = ((before(span, theme=key) + 1) / (before(span) + classes) for span in (30, 180))
        first = min(other["posted_at"] for other in listed if other["theme"] == key)
        assert math.isclose(found["class_time.theme_share"], recent)
        assert math.isclose(found["class_time.theme_rise"], math.log(recent / usual), abs_tol=1e-12)
        age = (post["posted_at"] - first).total_seconds() / 86_400
        assert math.isclose(found["class_time.theme_age"], min(age, 180))


def test_hour_of_the_week_is_the_users() -> None:
    posts = (
        random_posts(3)
        .head(2)
        .with_columns(
            posted_at=pl.lit(datetime(2016, 1, 4, 23, 30, tzinfo=UTC)).cast(pl.Datetime("us", "UTC")),  # a Monday
            timezone_offset=pl.Series([None, 60], dtype=pl.Int32),
        )
    )
    found = count_groups(posts)
    assert found["rhythm.week_hour"].to_list() == [23, 24]
    assert found["rhythm.week_hour_posts"].to_list() == [1, 1]


def slow(rows: Rows, post: dict[str, Any]) -> dict[str, Any]:
    """Some of the feature_groups of a post, in loops."""
    past = [row for row in rows if row["role"] == "train" and row["posted_at"] < post["as_of"]]
    past.sort(key=lambda row: (row["posted_at"], row["pid"]))

    def age(row: dict[str, Any]) -> float:
        return float((past[-1]["posted_at"] - row["posted_at"]).total_seconds()) / 86_400

    mean = sum(row["label"] for row in past) / max(len(past), 1)
    for row in past:
        period = [other["label"] for other in past if age(other) // 30 == age(row) // 30]
        row["rest"] = row["label"] - (sum(period) + PRIOR * mean) / (len(period) + PRIOR)

    def of_class(level: int, names: dict[str, Any], half_life: float | None = None) -> float:
        if level < 0:
            return 0.0
        mine = [row for row in past if row[CLASSES[level]] == names[CLASSES[level]]]
        if half_life is None or not mine:
            toward, weights = of_class(level - 1, names), [1.0] * len(mine)
        else:
            toward, weights = of_class(level, names), [0.5 ** (age(row) / half_life) for row in mine]
        total = sum(weight * row["rest"] for weight, row in zip(weights, mine, strict=True))
        return float(total + PRIOR * toward) / (sum(weights) + PRIOR)

    mine = [row for row in past if row["uid"] == post["uid"]]
    beyond = [row["rest"] - of_class(2, row) for row in mine]
    beyond_class = sum(beyond) / (len(mine) + PRIOR)
    own = [value for value, row in zip(beyond, mine, strict=True) if row["theme"] == post["theme"]]
    level = sum(row["rest"] for row in mine) / (len(mine) + PRIOR)
    weights = [0.5 ** (age(row) / HALF_LIVES[1]) for row in mine]
    late = sum(weight * row["rest"] for weight, row in zip(weights, mine, strict=True)) + PRIOR * level
    result: dict[str, Any] = {
        "user_target.level": level,
        "user_target.beyond_class": beyond_class,
        "user_target.own_class": (sum(own) + PRIOR * beyond_class) / (len(own) + PRIOR),
        "user_target.trend": late / (sum(weights) + PRIOR) - level,
        "user_target.last": beyond[-1] if mine else None,
        "user_target.days": max(map(age, mine)) - min(map(age, mine)) if mine else None,
        "class_time.theme_level": of_class(0, post),
        "class_time.concept_level": of_class(2, post),
        "class_time.variant_level_30": of_class(1, post, 30),
    }
    levels = []
    for word in sorted(set(re.findall(r"[\w']+", post["tags"].lower()))):
        with_word = [row for row in past if word in re.findall(r"[\w']+", row["tags"].lower())]
        levels.append(sum(row["rest"] - of_class(2, row) for row in with_word) / (len(with_word) + PRIOR))
    return result | {"words.tags_mean": sum(levels) / len(levels) if levels else None}


@pytest.mark.parametrize("cut_in_time", [True, False])
def test_label_signals_equal_a_slow_reference(cut_in_time: bool) -> None:
    rows = fold(4, cut_in_time=cut_in_time).sort("pid")
    table = label_groups(code_names(rows), PRIOR).to_dicts()
    compared = 0
    for post, found in zip(rows.to_dicts(), table, strict=True):
        assert found["pid"] == post["pid"]
        for name, value in slow(rows.to_dicts(), post).items():
            if value is None:
                assert found[name] is None, name
            else:
                compared += value != 0
                assert math.isclose(found[name], value, rel_tol=1e-9, abs_tol=1e-9), (name, found[name], value)
    assert compared > 4 * rows.height


@pytest.mark.parametrize("cut_in_time", [True, False])
def test_labels_of_scored_rows_and_of_the_row_itself_change_nothing(cut_in_time: bool) -> None:
    rows = fold(5, cut_in_time=cut_in_time)
    before = label_groups(code_names(rows), PRIOR)
    scored = rows.with_columns(label=pl.when(pl.col("role") == "valid").then(99.0).otherwise("label"))
    assert label_groups(code_names(scored), PRIOR).equals(before)
    for pid in rows.filter(pl.col("role") == "train")["pid"].to_list()[::7]:
        changed = rows.with_columns(label=pl.when(pl.col("pid") == pid).then(99.0).otherwise("label"))
        after = label_groups(code_names(changed), PRIOR)
        assert after.filter(pl.col("pid") == pid).equals(before.filter(pl.col("pid") == pid))


def test_moving_later_labels_changes_no_earlier_signal() -> None:
    rows = fold(6)
    middle = rows["posted_at"][30]
    changed = rows.with_columns(label=pl.when(pl.col("posted_at") >= middle).then(99.0).otherwise("label"))
    before, after = (label_groups(code_names(table), PRIOR) for table in (rows, changed))
    early = rows.filter(pl.col("posted_at") <= middle).select("pid")
    assert before.join(early, on="pid").equals(after.join(early, on="pid"))
    assert not before.equals(after)


def test_a_level_that_falls_for_all_is_no_ones_own() -> None:
    """Labels that only fall with time leave users, classes and words at 0; today's target statistics would not."""
    rows = fold(7).with_columns(label=100 - (pl.col("posted_at").dt.epoch("s") / 86_400 / 30).floor())
    table = label_groups(code_names(rows), PRIOR)
    for name in ("user_target.level", "class_time.concept_level", "words.tags_mean"):
        assert np.abs(table[name].drop_nulls().to_numpy()).max() < 0.5, name


def test_a_class_keeps_its_past_when_it_is_filed_elsewhere() -> None:
    """Memes of one template move from one first-level class to another when captions are counted anew."""
    rows = fold(9)
    filed = pl.col("subcategory").str.replace("^C.", "elsewhere"), pl.col("concept").str.replace("^C.", "elsewhere")
    scored = pl.col("role") == "valid"
    moved = rows.with_columns(
        *(
            pl.when(scored).then(to).otherwise(pl.col(name)).alias(name)
            for name, to in zip(("subcategory", "concept"), filed, strict=True)
        )
    )
    before, after = (
        label_groups(code_names(table), PRIOR).join(rows.filter(scored), on="pid", how="semi")
        for table in (rows, moved)
    )
    named = ["class_time.theme_level", "class_time.variant_level_90", "user_target.own_class"]
    assert after.select(named).equals(before.select(named))
    assert after["class_time.concept_level"].equals(after["class_time.variant_level"], check_names=False)
    assert not before["class_time.concept_level"].equals(before["class_time.variant_level"], check_names=False)


def test_row_order_changes_nothing() -> None:
    rows = fold(8)
    shuffled = rows.sample(fraction=1.0, shuffle=True, seed=1)
    assert label_groups(code_names(shuffled), PRIOR).equals(label_groups(code_names(rows), PRIOR))
    assert count_groups(shuffled).equals(count_groups(rows))


def test_the_number_of_threads_changes_no_bit(tmp_path: Path) -> None:
    """Polars may add up parts of a group in each thread: with some thousand rows and few groups it does."""
    code = """
import sys, polars as pl
from popularity.features.context import count_features
from popularity.features.groups import label_groups
from popularity.features.past_labels import code_names
rows = pl.read_parquet(sys.argv[1])
label_groups(code_names(rows), 3.0).write_ipc(sys.argv[2] + "_label")
count_features(rows).write_ipc(sys.argv[2] + "_counts")
"""
    rng = np.random.default_rng(0)
    posts = pl.concat([random_posts(0)] * 20).sort("posted_at")
    posts = posts.with_columns(pid=pl.Series([f"{number:05d}" for number in range(len(posts))]))
    cut = posts["posted_at"][len(posts) * 3 // 4]
    posts = posts.with_columns(
        label=pl.Series(rng.normal(6, 2, len(posts))),
        role=pl.when(pl.col("posted_at") < cut).then(pl.lit("train")).otherwise(pl.lit("valid")),
        as_of=pl.lit(cut),
    )
    posts.write_parquet(tmp_path / "rows")
    for threads in (1, 2, 3):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "rows"), str(tmp_path / f"{threads}")],
            env={**os.environ, "POLARS_MAX_THREADS": f"{threads}"},
            check=True,
        )
    for what in ("label", "counts"):
        assert len({(tmp_path / f"{threads}_{what}").read_bytes() for threads in (1, 2, 3)}) == 1
