"""The splits look as far ahead as the test part; where they cannot, and where the test part does not, they say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from popularity.core.as_of import interleaved_horizon
from popularity.core.config import load_params
from popularity.core.contracts import POSTS
from popularity.core.errors import ConfigError
from popularity.features.target_statistics import target_statistics
from popularity.validation import SplitParams, make_splits, rows_of
from popularity.validation.spans import least_train_posts
from tests.repository import write_profile

PARAMS = SplitParams(
    seed=0,
    span="auto",
    holdout_fraction=0.15,
    forward_fraction=0.15,
    n_origins=3,
    n_folds=5,
    unseen_user_fraction=0.64,
    tolerance=0.01,
    match_collection_order=False,
)
START = datetime(2020, 1, 1, tzinfo=UTC)


def posts_at(train: Sequence[float], test: Sequence[float], users: int = 300, new: float = 0.5) -> pl.DataFrame:
    """Posts at these days; their users are drawn at random, those of the share `new` of the test posts are new."""
    rng = np.random.default_rng(0)
    days = [*train, *test]
    uids = [f"{user}@N0" for user in rng.integers(users, size=len(days))]
    is_new = rng.uniform(size=len(days)) < new
    for row in range(len(train), len(days)):
        uids[row] = f"new{row}@N0" if is_new[row] else uids[row]
    return pl.DataFrame(
        {
            "pid": [f"{row:05d}" for row in range(len(days))],
            "uid": uids,
            "split": ["train"] * len(train) + ["test"] * len(test),
            "posted_at": pl.Series([START + timedelta(days=float(day)) for day in days]).cast(
                POSTS.columns["posted_at"].dtype
            ),
        }
    )


def evenly(first: float, last: float, count: int) -> list[float]:
    return [float(day) for day in np.linspace(first, last, count)]


def in_time(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The folds that are split in time: the forward splits in order, then the holdout."""
    folds = {name: [fold for fold in summary["schemes"] if fold["scheme"] == name] for name in ("forward", "holdout")}
    return [*folds["forward"], *folds["holdout"]]


def test_every_split_looks_as_far_ahead_as_the_test_part() -> None:
    """A test part over a quarter of the training span: the same quarter in every split, however few its days are."""
    posts = posts_at(evenly(0, 400, 4000), evenly(400.1, 500, 1000))
    splits, summary = make_splits(posts, PARAMS)
    assert summary["wanted_span_ratio"] == pytest.approx(0.25, abs=0.005)
    assert summary["wanted_span_from"] == "test part"
    assert summary["quote"] == "holdout"
    folds = in_time(summary)
    assert [fold["scheme"] for fold in folds] == ["forward", "forward", "forward", "holdout"]
    for fold in folds:
        assert fold["span_ratio"] == pytest.approx(0.25, abs=0.005)
        assert "span" not in fold["note"]
        rows = splits.filter(scheme=fold["scheme"], fold=fold["fold"]).join(posts, on="pid")
        start, end = (getattr(rows.filter(role="valid")["posted_at"], of)() for of in ("min", "max"))
        assert (end - start) / (start - START) == pytest.approx(0.25, abs=0.01)  # on its own from the dates
    assert [fold["days_ahead_max"] for fold in folds] == pytest.approx([41, 51, 64, 80], abs=1.5)
    (refit,) = (fold for fold in summary["schemes"] if fold["scheme"] == "refit")
    assert refit["span_ratio"] == summary["wanted_span_ratio"]
    assert (refit["days_ahead_median"], refit["days_ahead_max"]) == pytest.approx((50, 100), abs=0.2)


def shared(splits: pl.DataFrame, one: int, other: int) -> float:
    """The share of posts that are valid in two forward splits, of the smaller one."""
    first, second = (set(splits.filter(scheme="forward", role="valid", fold=fold)["pid"]) for fold in (one, other))
    return len(first & second) / min(len(first), len(second))


def test_a_ratio_is_lowered_where_too_few_posts_would_lie_before_an_origin() -> None:
    """A test part as long as the training part: a third of the posts stay before the first origin, and it is said."""
    posts = posts_at(evenly(0, 400, 3000), evenly(401, 800, 1000))
    splits, summary = make_splits(posts, PARAMS)
    assert summary["wanted_span_ratio"] == pytest.approx(1.0, abs=0.01)
    folds = in_time(summary)
    assert [fold["scheme"] for fold in folds] == ["forward", "forward", "forward", "holdout"]
    for fold in folds:  # room for the holdout, for one forward split and for two quarters of one
        assert fold["span_ratio"] == pytest.approx(3 ** (1 / 2.5) - 1, abs=0.02)
        assert f"is {fold['span_ratio']:.2f}, not 1.00, so that at least 1,000 posts lie before" in fold["note"]
        rows = splits.filter(scheme=fold["scheme"], fold=fold["fold"]).join(posts, on="pid")
        assert rows.filter(pl.col("posted_at") < rows.filter(role="valid")["posted_at"].min()).height >= 1000
    assert [shared(splits, 0, 1), shared(splits, 1, 2)] == pytest.approx([0.75, 0.75], abs=0.1)
    single, holdout = in_time(make_splits(posts, replace(PARAMS, n_origins=1))[1])
    assert [single["span_ratio"], holdout["span_ratio"]] == pytest.approx([np.sqrt(3) - 1] * 2, abs=0.02)


def test_further_forward_splits_do_not_cost_more_than_a_quarter_of_the_ratio() -> None:
    """Few posts at the beginning: a third of them is there early, so there is room for far splits, and three of them
    would be much nearer."""
    posts = posts_at([*evenly(0, 40, 1100), *evenly(41, 400, 1900)], evenly(401, 2400, 1000))
    _, summary = make_splits(posts, PARAMS)
    (first, *_), single = in_time(summary), in_time(make_splits(posts, replace(PARAMS, n_origins=1))[1])[0]
    assert len(in_time(summary)) == 3
    assert "too few posts or users for 1 more of split.n_origins = 3" in first["note"]
    assert first["span_ratio"] >= 0.7 * single["span_ratio"]


def test_forward_splits_overlap_where_they_have_no_room_one_after_another() -> None:
    posts = posts_at(evenly(0, 400, 3000), evenly(401, 580, 1000))
    splits, summary = make_splits(posts, PARAMS)
    folds = in_time(summary)
    assert [fold["scheme"] for fold in folds] == ["forward", "forward", "forward", "holdout"]
    for fold in folds:
        assert fold["span_ratio"] == pytest.approx(0.45, abs=0.01)
        assert "span" not in fold["note"]
        assert fold["valid"] >= 400
    assert 0.3 < shared(splits, 0, 1) < 0.9
    ends = [fold["valid_to"] for fold in folds]
    assert ends == sorted(set(ends))
    holdout = splits.filter(scheme="holdout", role="valid")["pid"]
    assert splits.filter(pl.col("pid").is_in(holdout.implode()), scheme="forward", role="valid").is_empty()


def test_a_ratio_is_raised_where_too_few_posts_would_be_valid() -> None:
    posts = posts_at(evenly(0, 400, 3000), evenly(400.1, 402, 100))
    for fold in in_time(make_splits(posts, PARAMS)[1]):
        assert fold["span_ratio"] == pytest.approx(0.05 / 0.95, abs=0.003)
        assert "so that 5 % of the posts before the end of a split are valid" in fold["note"]


@pytest.mark.parametrize("n_posts", [60, 200, 900])
def test_small_sets_keep_half_of_the_posts(n_posts: int) -> None:
    posts = posts_at(evenly(0, 400, n_posts), evenly(401, 800, 60), users=30)
    splits, summary = make_splits(posts, PARAMS)
    for fold in in_time(summary):
        rows = splits.filter(scheme=fold["scheme"], fold=fold["fold"]).join(posts, on="pid")
        before = rows.filter(pl.col("posted_at") < rows.filter(role="valid")["posted_at"].min()).height
        assert n_posts // 2 <= before < n_posts
    assert summary["schemes"][1]["scheme"] == "forward"


def test_least_train_posts() -> None:
    assert [least_train_posts(count) for count in (300, 1200, 1505, 6000)] == [150, 500, 502, 2000]


def test_a_number_sets_the_span_by_hand() -> None:
    posts = posts_at(evenly(0, 400, 4000), evenly(400.1, 500, 1000))
    _, summary = make_splits(posts, replace(PARAMS, span=0.1))
    assert (summary["wanted_span_ratio"], summary["wanted_span_from"]) == (0.1, "split.span")
    assert [fold["span_ratio"] for fold in in_time(summary)] == pytest.approx([0.1] * 4, abs=0.003)


def test_fractions_of_the_posts_where_they_are_wanted_and_where_there_is_no_test_part() -> None:
    posts = posts_at(evenly(0, 400, 4000), evenly(400.1, 500, 1000))
    train = posts.filter(split="train")
    by_hand = make_splits(posts, replace(PARAMS, span="fractions"))
    alone = make_splits(train, PARAMS)
    for splits, summary in (by_hand, alone):
        assert summary["wanted_span_ratio"] is None
        assert [fold["scheme"] for fold in in_time(summary)] == ["forward"] * 3 + ["holdout"]
        assert splits.filter(scheme="holdout", role="valid").height == 600
    assert "no test part" in alone[1]["wanted_span_from"]
    assert not alone[1]["interleaved"]


@pytest.mark.parametrize(("new", "quoted"), [(1.0, "group"), (0.0, "random")])
def test_a_test_part_among_the_training_posts_is_found_and_said(new: float, quoted: str) -> None:
    """The scheme to quote is the one whose users are as often unseen as those of the test part."""
    days = np.random.default_rng(1).uniform(0, 400, 3000)
    posts = posts_at(days[:2000].tolist(), days[2000:].tolist(), new=new)
    _, summary = make_splits(posts, PARAMS)
    assert (summary["interleaved"], summary["quote"]) == (True, quoted)
    assert "the test posts lie among the training posts in time" in summary["wanted_span_from"]
    folds = {fold["scheme"]: fold for fold in summary["schemes"]}
    assert folds["refit"]["span_ratio"] is None
    assert folds["refit"]["days_ahead_median"] == folds[quoted]["days_ahead_median"] == 0.0
    assert folds["holdout"]["days_ahead_median"] > 10


def test_wrong_dates_of_a_few_posts_do_not_decide() -> None:
    """Neither a training post far in the future nor a test post far away from the others."""
    posts = posts_at([*evenly(0, 400, 3999), 9000.0], [*evenly(400.1, 500, 999), 90_000.0])
    _, summary = make_splits(posts, PARAMS)
    assert not summary["interleaved"]
    assert summary["wanted_span_ratio"] == pytest.approx(0.25, abs=0.01)


def test_histories_see_earlier_posts_of_the_same_period_where_the_test_part_lies_among_the_training_posts() -> None:
    """A test post ten days after its user's only training post knows its label; in a test part that comes later, the
    blocks of group and random are as long as the valid span instead."""
    rng = np.random.default_rng(2)
    starts = rng.uniform(0, 390, 400)
    among = posts_at(starts.tolist(), (starts + 10).tolist())
    among = among.with_columns(uid=pl.Series([f"{row % 400}@N0" for row in range(800)]))
    splits, summary = make_splits(among, PARAMS)
    assert interleaved_horizon(among, splits) == pytest.approx(timedelta(days=3.9), abs=timedelta(days=0.1))
    (refit,) = (fold for fold in summary["schemes"] if fold["scheme"] == "refit")
    assert refit["valid_past_share"] == 1.0
    later = posts_at(evenly(0, 400, 1000), evenly(401, 500, 200))
    splits, _ = make_splits(later, PARAMS)
    last = splits.filter(scheme="forward", role="valid").filter(pl.col("fold") == pl.col("fold").max())
    dates = last.join(later, on="pid")["posted_at"]
    assert interleaved_horizon(later, splits) == dates.max() - dates.min()  # type: ignore[operator]


@pytest.mark.parametrize("among", [False, True])
def test_the_share_of_rows_with_a_past_is_that_of_the_target_statistics(among: bool) -> None:
    test = evenly(1, 399, 300) if among else evenly(401, 500, 300)
    posts = posts_at(evenly(0, 400, 1500), test, users=200)
    splits, summary = make_splits(posts, PARAMS)
    labelled = posts.with_columns(label=pl.when(split="train").then(pl.lit(5.0)))
    horizon = interleaved_horizon(posts, splits)
    shares = {(fold["scheme"], fold["fold"]): fold for fold in summary["schemes"]}
    for key, rows in rows_of(splits, ["holdout", "forward", "group", "random", "refit"]):
        frame = rows.join(labelled.drop("split"), on="pid", how="left", validate="1:1")
        frame = frame.with_columns(label=pl.when(role="train").then("label"))
        statistics = target_statistics(frame, ("uid",), 3.0, horizon).join(rows, on="pid")
        for role in ("train", "valid"):
            known = (statistics.filter(role=role)["uid_target_posts"] > 0).mean()
            assert shares[(key.scheme, key.fold)][f"{role}_past_share"] == pytest.approx(known, abs=1e-4), (key, role)


@pytest.mark.parametrize("span", ["automatic", "0.0", "-1.0"])
def test_another_span_is_a_named_error(tmp_path: Path, span: str) -> None:
    path = write_profile(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace("  span: auto", f"  span: {span}"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"split\.span"):
        load_params("split", SplitParams, path)


@pytest.mark.parametrize(("text", "span"), [("auto", "auto"), ("fractions", "fractions"), ("0.4", 0.4), ("1", 1)])
def test_spans_of_params_yaml(tmp_path: Path, text: str, span: str | float) -> None:
    path = write_profile(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace("  span: auto", f"  span: {text}"), encoding="utf-8")
    assert load_params("split", SplitParams, path).span == span
