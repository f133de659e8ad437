"""Counts and target statistics as one would write them in pandas, for `python -m benchmarks.speed features`.

The columns of popularity.features.context (but the text components and feature groups) and of
popularity.features.target_statistics, for the refit: fitted on the training part, scored on the test part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl

Frame = Any  # pandas has no types here
COLUMNS = ["pid", "uid", "split", "label", "category", "subcategory", "concept", "title", "tags", "posted_at",
           "photo_count"]  # fmt: skip


def write(posts_file: Path, out: Path, prior: float) -> None:
    """Reads the table of posts and writes that of the features, sorted by pid."""
    read = pl.read_parquet(posts_file, columns=COLUMNS)  # pyarrow, which pandas reads parquet with, is not required
    posts = pd.DataFrame({name: read[name].to_numpy() for name in COLUMNS}).sort_values("pid", ignore_index=True)
    posts["role"] = np.where(posts["split"] == "train", "train", "valid")
    table = posts[["pid"]]
    for part in (user_counts(posts), class_counts(posts), tag_counts(posts), target_statistics(posts, prior)):
        table = table.merge(part, on="pid", how="left", validate="1:1")
    pl.DataFrame({name: table[name].to_list() for name in table.columns}, strict=False).write_parquet(out)


def _days(duration: Any) -> Any:
    return duration.dt.total_seconds() / 86_400.0


def user_counts(posts: Frame) -> Frame:
    ordered = posts.sort_values(["uid", "posted_at", "pid"])
    ordered["date"] = ordered["posted_at"].dt.date
    for name in ("title", "tags"):
        ordered[f"{name}_length"] = ordered[name].str.len()
    by_user = ordered.groupby("uid", sort=False)
    when, size = by_user["posted_at"], by_user["pid"].transform("size")
    return pd.DataFrame(
        {
            "pid": ordered["pid"],
            "user_posts": size,
            "user_posts_before": by_user.cumcount(),
            "user_gap_previous": _days(when.diff()),
            "user_gap_next": _days(-when.diff(-1)),
            "user_gap_mean": _days(when.transform("max") - when.transform("min")) / (size - 1).replace(0, np.nan),
            "user_posts_same_day": ordered.groupby(["uid", "date"])["pid"].transform("size"),
            "user_subcategories": by_user["subcategory"].transform("nunique"),
            "user_subcategory_share": ordered.groupby(["uid", "subcategory"])["pid"].transform("size") / size,
            "user_photo_count_change": by_user["photo_count"].diff(),
            "user_mean_title_length": by_user["title_length"].transform("mean"),
            "user_mean_tags_length": by_user["tags_length"].transform("mean"),
        }
    )


def class_counts(posts: Frame) -> Frame:
    date = posts["posted_at"].dt.date
    on_day = posts.groupby(date)["pid"].transform("size")
    columns: dict[str, Any] = {
        f"{level}_posts": posts.groupby(level)["pid"].transform("size")
        for level in ("category", "subcategory", "concept")
    }
    share = posts.groupby([date, "subcategory"])["pid"].transform("size") / on_day
    return pd.DataFrame({"pid": posts["pid"], **columns, "day_posts": on_day, "day_subcategory_share": share})


def tag_counts(posts: Frame) -> Frame:
    tags = posts["tags"].str.lower().str.split().map(lambda each: sorted(set(each)))
    exploded = pd.DataFrame({"pid": posts["pid"], "tag": tags}).explode("tag").dropna(subset=["tag"])
    exploded["frequency"] = np.log(exploded.groupby("tag")["pid"].transform("size").astype(float))
    found = exploded.groupby("pid")["frequency"].agg(["mean", "min", "max"]).add_prefix("tag_frequency_").reset_index()
    columns = {
        "title_posts": posts.groupby("title")["pid"].transform("size"),
        "text_posts": posts.groupby(["title", "tags"])["pid"].transform("size"),
    }
    return pd.DataFrame({"pid": posts["pid"], **columns}).merge(found, on="pid", how="left", validate="1:1")


def target_statistics(posts: Frame, prior: float) -> Frame:
    """From labels of the training part, as old for each row as those of the test part are."""
    fit, score = (posts.loc[posts["role"] == role, "posted_at"] for role in ("train", "valid"))
    later = score[score > fit.max()]
    start, length = later.min(), max(later.max() - later.min(), pd.Timedelta(days=1))
    blocks = np.ceil((start - posts["posted_at"]) / length).clip(lower=0)
    rows = posts.assign(as_of=(start - blocks * length).where(posts["posted_at"] <= fit.max(), start))
    labelled = rows[(rows["role"] == "train") & rows["label"].notna()].sort_values(["posted_at", "pid"])
    overall = pd.DataFrame({"at": labelled["posted_at"], "total": labelled["label"].cumsum()})
    overall["count"] = np.arange(1, len(labelled) + 1)
    table = rows[["pid"]]
    for key in ("uid", "subcategory", "concept"):
        by_key = labelled.groupby(key)["label"]
        past = labelled[[key, "label"]].assign(
            at=labelled["posted_at"], own=by_key.cumsum(), posts=by_key.cumcount() + 1
        )
        each = rows[["pid", key, "posted_at", "as_of"]].sort_values("as_of")
        each = pd.merge_asof(each, overall, left_on="as_of", right_on="at", allow_exact_matches=False)
        each = pd.merge_asof(
            each, past, left_on="as_of", right_on="at", by=key, allow_exact_matches=False, suffixes=("", "_own")
        )
        mean = each["total"] / each["count"]
        columns = {
            f"{key}_target_posts": each["posts"].fillna(0),
            f"{key}_target_level": (each["own"] + prior * mean) / (each["posts"] + prior) - mean,
            f"{key}_target_last": each["label"] - mean,
            f"{key}_target_age": _days(each["posted_at"] - each["at_own"]),
        }
        table = table.merge(pd.DataFrame({"pid": each["pid"], **columns}), on="pid", how="left", validate="1:1")
    return table
