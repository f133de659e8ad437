"""The folds in `reports/split.json`: counts, how far valid posts lie ahead, and how many rows have a past."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl

from popularity.core.arrays import rounded
from popularity.core.as_of import as_of_dates

SECONDS_A_DAY = 86_400
DIGITS = 4  # of shares and ratios


def count_rows(rows: pl.DataFrame) -> dict[str, Any]:
    """Returns counts of a fold's rows, its time span and its share of valid posts by unseen users.

    Args:
        rows: (pid, uid, role, posted_at) of the fold.
    """
    train, valid = (rows.filter(pl.col("role") == role) for role in ("train", "valid"))
    unseen = (~valid["uid"].is_in(train["uid"].unique().to_list())).mean()
    return {
        "train": train.height,
        "valid": valid.height,
        "excluded": rows.height - train.height - valid.height,
        "train_users": train["uid"].n_unique(),
        "valid_users": valid["uid"].n_unique(),
        "unseen_post_share": None if unseen is None else round(float(str(unseen)), 4),
        "valid_from": str(valid["posted_at"].min()) if valid.height else None,
        "valid_to": str(valid["posted_at"].max()) if valid.height else None,
    }


def distance(rows: pl.DataFrame, horizon: timedelta) -> dict[str, Any]:
    """Returns how far a fold's valid posts lie ahead of its last train post, and the shares of rows with a past.

    A row has a past if a train row of its user is older than its as-of date, so that its histories hold a label.

    Args:
        rows: (pid, uid, role, posted_at) of the fold.
        horizon: length of a block where train and valid rows interleave.
    """
    used = rows.filter(pl.col("role") != "excluded")
    train = used.filter(pl.col("role") == "train")
    firsts = train.group_by("uid").agg(first=pl.col("posted_at").min())
    dated = used.join(as_of_dates(used, horizon), on="pid", how="left", validate="1:1")
    known = dated.join(firsts, on="uid", how="left", validate="m:1").select(
        "role", past=(pl.col("first") < pl.col("as_of")).fill_null(value=False)
    )
    ahead = (pl.col("posted_at") - train["posted_at"].max()).dt.total_seconds().clip(lower_bound=0) / SECONDS_A_DAY
    days = used.filter(pl.col("role") == "valid").select(ahead).to_series()
    shares = {role: known.filter(pl.col("role") == role)["past"] for role in ("train", "valid")}
    return {
        "days_ahead_median": rounded(days.median() if len(days) else None, 1),
        "days_ahead_max": rounded(days.max() if len(days) else None, 1),
        **{f"{role}_past_share": rounded(past.mean() if len(past) else None, DIGITS) for role, past in shares.items()},
    }


def scheme_to_quote(folds: Sequence[Mapping[str, Any]], target: float) -> str:
    """Returns the scheme to quote where the test posts lie among the training posts.

    It is the one of `group` and `random` that is nearer to the test part in its share of posts by unseen users.

    Args:
        folds: of the summary.
        target: share of test posts by users without a training post.
    """

    def miss(scheme: str) -> float:
        shares = [fold["unseen_post_share"] for fold in folds if fold["scheme"] == scheme]
        return abs(float(np.mean(shares)) - target)

    return min(("group", "random"), key=miss)
