"""Hand-made tables that keep the contracts of popularity.core.contracts, for tests of what stands on them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from popularity.core.contracts import FOLDS, POSTS, PREDICTIONS, TIME_SCHEMES, TRENDS, check_table

SPLIT_SUMMARY: dict[str, Any] = {  # what evaluate and the report read of reports/split.json
    "wanted_span_ratio": 0.4,
    "wanted_span_from": "test part",
    "interleaved": False,
    "quote": "holdout",
    "schemes": [
        {
            "scheme": scheme,
            "fold": 0,
            "note": "",
            "span_ratio": 0.4,
            "days_ahead_median": 20.0,
            "days_ahead_max": 91.0,
            "unseen_post_share": 0.64,
            "valid_past_share": 0.36,
            "train_past_share": 0.23,
        }
        for scheme in ("holdout", "refit")
    ],
}
MODEL_NOISE = {"stack": 0.5, "metadata": 1.0, "user_mean": 2.0}


def small_posts(train: int = 120, test: int = 30, users: int = 24, seed: int = 0) -> pl.DataFrame:
    """Posts in time order over a year, pids in no relation to it; labels 1 to 16 with two decimals, null in test."""
    rng = np.random.default_rng(seed)
    n = train + test
    split = ["train"] * train + ["test"] * test
    classes = rng.integers(4, size=n)
    start = datetime(2016, 1, 1, tzinfo=UTC)
    values = {
        "pid": [str(pid) for pid in rng.permutation(np.arange(9_000, 9_000 + n) * 7)],
        "split": split,
        "source_index": [*range(train), *range(test)],
        "uid": [f"{user}@N{user % 7}" for user in rng.integers(users, size=n)],
        "label": [round(float(x), 2) for x in rng.uniform(1, 16, train)] + [None] * test,
        "category": [f"Category {c % 2}" for c in classes],
        "subcategory": [f"Category {c % 2}/Class {c}" for c in classes],
        "concept": [f"Category {c % 2}/Class {c}/Concept" for c in classes],
        "posted_at": [start + timedelta(days=365 * row / n) for row in range(n)],
        "geo_accuracy": [0] * n,
        "has_path_alias": [False] * n,
    }
    empty = {name: None if rule.nullable else "" for name, rule in POSTS.columns.items() if name not in values}
    posts = pl.DataFrame({**values, **{name: [value] * n for name, value in empty.items()}})
    posts = posts.select(pl.col(name).cast(rule.dtype) for name, rule in POSTS.columns.items()).sort("pid")
    check_table(posts, POSTS)
    return posts


def small_splits(posts: pl.DataFrame) -> pl.DataFrame:
    """`holdout`: the last quarter of the training posts is valid, a few earlier users are excluded; `group`: two
    folds by user, over the rows before; `refit`."""
    train = posts.filter(pl.col("split") == "train").sort("source_index")
    first_valid = len(train) * 3 // 4
    uids = train["uid"].unique().sort().to_list()
    excluded = set(uids[:5])
    rows: list[tuple[str, int, str, str]] = []
    for position, (pid, uid) in enumerate(train.select("pid", "uid").iter_rows()):
        role = "valid" if position >= first_valid else "excluded" if uid in excluded else "train"
        rows.append(("holdout", 0, pid, role))
        rows.append(("refit", 0, pid, "train"))
        if position < first_valid:
            for fold in range(2):
                rows.append(("group", fold, pid, "valid" if uids.index(uid) % 2 == fold else "train"))
    rows += [("refit", 0, pid, "valid") for pid in posts.filter(pl.col("split") == "test")["pid"]]
    splits = pl.DataFrame(rows, schema={name: rule.dtype for name, rule in FOLDS.columns.items()}, orient="row")
    splits = splits.sort(FOLDS.key)
    check_table(splits, FOLDS)
    return splits


def small_predictions(posts: pl.DataFrame, splits: pl.DataFrame, seeds: tuple[int, ...] = (1, 2)) -> pl.DataFrame:
    """Label plus noise, less for better models; `constant` is 5. The stack has several seeds."""
    rng = np.random.default_rng(7)
    valid = splits.filter(pl.col("role") == "valid").join(posts.select("pid", "label"), on="pid")
    truth = valid["label"].fill_null(6.0).to_numpy()
    frames = []
    for model in (*MODEL_NOISE, "constant"):
        for seed in seeds if model == "stack" else seeds[:1]:
            values = truth + rng.normal(0, MODEL_NOISE[model], len(truth)) if model in MODEL_NOISE else 0 * truth + 5
            frames.append(
                valid.select("pid", "scheme", "fold").with_columns(
                    seed=pl.lit(seed, dtype=pl.Int64),
                    model=pl.lit(model),
                    prediction=pl.Series(values),
                    error_scale=pl.lit(MODEL_NOISE["stack"] if model == "stack" else None, pl.Float64),
                )
            )
    predictions = pl.concat(frames).sort(PREDICTIONS.key)
    check_table(predictions, PREDICTIONS)
    return predictions


def small_trends(posts: pl.DataFrame, splits: pl.DataFrame, apart: float = 0.0) -> pl.DataFrame:
    """Two members of a trend in every split in time and in `refit`: one stays at 5, one ends `apart` higher."""
    valid = splits.filter(pl.col("role") == "valid", pl.col("scheme").is_in([*TIME_SCHEMES, "refit"]))
    dates = valid.join(posts.select("pid", "posted_at"), on="pid").group_by("scheme", "fold")
    rows = [
        (scheme, fold, member, step / 10, start + step / 10 * (end - start), 5.0 + last * step / 10)
        for scheme, fold, start, end in dates.agg(
            start=pl.col("posted_at").min(), end=pl.col("posted_at").max()
        ).iter_rows()
        for member, last in (("level", 0.0), ("line", apart))
        for step in range(11)
    ]
    table = pl.DataFrame(rows, schema={name: rule.dtype for name, rule in TRENDS.columns.items()}, orient="row")
    table = table.sort(TRENDS.key)
    check_table(table, TRENDS)
    return table


def with_forward(frame: pl.DataFrame) -> pl.DataFrame:
    """Splits or predictions with the rows of `group` repeated as `forward`, whose two folds are splits in time."""
    forward = frame.filter(scheme="group").with_columns(scheme=pl.lit("forward"))
    contract = FOLDS if "role" in frame.columns else PREDICTIONS
    return pl.concat([frame, forward]).sort(contract.key)
