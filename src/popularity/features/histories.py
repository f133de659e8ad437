"""Whether the histories of fit rows are those of scored rows: a tree believes that they are."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
from scipy.stats import ks_2samp

from popularity.schema import FOLDS, FoldKey

WHATS = ("posts", "age")
QUARTILES = (0.25, 0.5, 0.75)
DIGITS = 4
FOLD = list(FOLDS.key[:2])


def compare_histories(splits: pl.DataFrame, folder: Path, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """For each fold and key, of fit and of score rows: the share with a past labelled post, and quartiles of length
    (posts) and age (days) among those, with `distance`: Kolmogorov and Smirnov's, between the two kinds of rows.

    Scored rows may well have longer histories, as they come last, and fewer rows with one, as users are dropped to
    match the test part; the age, which blocks of the scored span are made for, should agree.

    Args:
        splits: contract FOLDS.
        folder: that `featurize` wrote.
        keys: section featurize, history.
    """
    roles = splits.filter(pl.col("role") != "dropped")
    columns = [f"{key}_history_{what}" for key in keys for what in WHATS]
    found = []
    for (scheme, fold), shown in roles.group_by(FOLD, maintain_order=True):
        key_of_fold = FoldKey(str(scheme), int(str(fold)))
        histories = pl.read_parquet(folder / "label" / key_of_fold.file_name, columns=["pid", *columns])
        rows = histories.join(shown.select("pid", "role"), on="pid", how="left", validate="1:1")
        both = {role: rows.filter(role=role) for role in ("fit", "score")}
        for key in keys:
            past = {role: _past(part, key) for role, part in both.items()}
            found.append(
                {
                    **asdict(key_of_fold),
                    "key": key,
                    **{role: _described(past[role], part.height) for role, part in both.items()},
                    "distance": {what: _distance(past["fit"][what], past["score"][what]) for what in WHATS},
                }
            )
    return found


def _past(rows: pl.DataFrame, key: str) -> pl.DataFrame:
    """WHATS of the rows that have a past labelled post of their `key`."""
    return rows.select(pl.col(f"{key}_history_{what}").alias(what) for what in WHATS).filter(pl.col("posts") > 0)


def _described(past: pl.DataFrame, rows: int) -> dict[str, Any]:
    quartiles = {what: [_rounded(past[what].quantile(share, "linear")) for share in QUARTILES] for what in WHATS}
    return {"rows": rows, "share": _rounded(past.height / rows if rows else None), **quartiles}


def _distance(fit: pl.Series, score: pl.Series) -> float | None:
    """The largest difference of the two distribution functions; None where one has no value."""
    if fit.is_empty() or score.is_empty():
        return None
    return _rounded(float(ks_2samp(fit.to_numpy(), score.to_numpy(), method="asymp").statistic))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
