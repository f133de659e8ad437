"""Ingest and metadata features as one would write them in pandas, for `benchmarks.full_scale` to compare with.

The same columns as in row.parquet and the tables below context and label, but for the fitted text components. It checks
nothing: files that do not belong together, broken dates and the like go through unnoticed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

Frame = Any  # pandas has no types here

DAY = 86_400.0
PRIOR = 3.0
LEVELS = ("category", "subcategory", "concept")
WORD = re.compile(r"(?:[^\W_]|')+")
HALF_LIVES = (30, 90, 270)
CLASSES = ("theme", "variant", "concept")


def read_posts(root: Path) -> Frame:
    """The published files (user file of form B) as one table, a row a post, sorted by pid."""
    parts = []
    for split in ("train", "test"):
        folder = root / f"{split}_allmetadata_json"
        names = ("category", "text", "temporalspatial_information", "additional_information")
        tables = [pd.DataFrame(json.loads((folder / f"{split}_{name}.json").read_text())) for name in names]
        users = json.loads((folder / f"{split}_user_data.json").read_text())
        tables.append(pd.DataFrame({name: list(values.values()) for name, values in users.items()}))
        part = tables[0]
        for table in tables[1:]:
            part = part.merge(table, on=["Uid", "Pid"], how="left", validate="1:1")
        part["split"] = split
        label = folder / f"{split}_label.txt"
        part["label"] = [float(line) for line in label.read_text().splitlines()] if label.exists() else np.nan
        parts.append(part)
    raw = pd.concat(parts, ignore_index=True)
    posts = pd.DataFrame(
        {
            "pid": raw["Pid"],
            "split": raw["split"],
            "uid": raw["Uid"],
            "label": raw["label"],
            "category": raw["Category"],
            "subcategory": raw["Category"] + "/" + raw["Subcategory"],
            "concept": raw["Category"] + "/" + raw["Subcategory"] + "/" + raw["Concept"],
            "theme": raw["Subcategory"],
            "variant": raw["Subcategory"] + "/" + raw["Concept"],
            "title": raw["Title"],
            "tags": raw["Alltags"],
            "media_type": raw["Mediatype"],
            "timezone_id": raw["timezone_timezone_id"],
            "posted_at": pd.to_datetime(raw["Postdate"].astype("int64"), unit="s", utc=True),
            "latitude": pd.to_numeric(raw["Latitude"], errors="coerce"),
            "longitude": pd.to_numeric(raw["Longitude"], errors="coerce"),
            "geo_accuracy": raw["Geoaccuracy"].astype(int),
            "has_path_alias": (raw["Pathalias"] != "None").astype(int),
            "is_public": raw["Ispublic"].astype(int),
            "photo_count": raw["photo_count"],
            "is_pro": raw["ispro"].astype(int),
            "can_buy_pro": raw["canbuypro"].astype(int),
            "first_photo_at": pd.to_datetime(raw["photo_firstdate"], unit="s", utc=True),
            "first_taken_at": pd.to_datetime(raw["photo_firstdatetaken"], utc=True),
            "timezone_offset": raw["timezone_offset"].map(_minutes),
            "user_description": raw["user_description"].map(_plain),
            "location_description": raw["location_description"].map(_plain),
        }
    )
    return posts.sort_values("pid", ignore_index=True)


def _minutes(offset: Any) -> float:
    if not isinstance(offset, str) or not offset:
        return np.nan
    sign = -1 if offset[0] == "-" else 1
    return sign * (int(offset[1:3]) * 60 + int(offset[4:6]))


def _plain(text: Any) -> str | None:
    if not isinstance(text, str) or not text:
        return None
    return re.sub(r"<[^>]*>", "", text).replace("&amp;", "&")


def row_features(posts: Frame) -> Frame:
    """From the post alone."""
    when, local = posts["posted_at"], _local(posts)
    age = _days(when - posts["first_photo_at"])
    columns: dict[str, Any] = {
        "pid": posts["pid"],
        "hour": when.dt.hour + when.dt.minute / 60,
        "hour_local": local.dt.hour + local.dt.minute / 60,
        "weekday": local.dt.weekday + 1,
        "day_of_month": local.dt.day,
        "week": local.dt.isocalendar().week,
        "month": local.dt.month,
        "account_age_days": age,
        "first_taken_age_days": _days(when - posts["first_taken_at"]),
        "photos_per_day": posts["photo_count"] / age.clip(lower=1.0),
        "user_description_length": posts["user_description"].str.len(),
        "location_description_length": posts["location_description"].str.len(),
        "has_place": posts["latitude"].notna().astype(int),
    }
    same = ("photo_count", "is_pro", "can_buy_pro", "is_public", "has_path_alias", "timezone_offset")
    columns |= {name: posts[name] for name in (*same, "latitude", "longitude", "geo_accuracy")}
    for name in ("title", "tags"):
        text = posts[name]
        length, words = text.str.len(), text.str.split()
        count = words.str.len()
        columns |= {
            f"{name}_length": length,
            f"{name}_words": count,
            f"{name}_word_length": (text.str.count(r"\S") / count).fillna(0.0),
            f"{name}_unique_words": words.map(lambda each: len(set(each))),
            f"{name}_upper_share": (text.str.count(r"[A-Z]") / length).fillna(0.0),
            f"{name}_digit_share": (text.str.count(r"\d") / length).fillna(0.0),
            f"{name}_questions": text.str.count(r"\?"),
            f"{name}_exclamations": text.str.count("!"),
            f"{name}_non_ascii_share": (text.str.count(r"[^\x00-\x7F]") / length).fillna(0.0),
        }
    return pd.DataFrame(columns)


def _days(duration: Any) -> Any:
    return duration.dt.total_seconds() / DAY


def _local(posts: Frame) -> Any:
    return posts["posted_at"] + pd.to_timedelta(posts["timezone_offset"].fillna(0), unit="min")


def features_of_folds(posts: Frame, splits: Frame) -> tuple[Frame, Frame]:
    """Context features of the rows that each fold shows, and label features of each fold: tables keyed by fold.

    Args:
        posts: from `read_posts`.
        splits: (scheme, fold, pid, role) without dropped rows.
    """
    cut = splits[(splits["scheme"] == "matched") & (splits["role"] == "score")]
    times = posts.set_index("pid")["posted_at"].loc[cut.loc[cut["fold"] == cut["fold"].max(), "pid"]]
    horizon = max(times.max() - times.min(), pd.Timedelta(days=1))
    context, label, known = [], [], {}
    for scheme, rows in splits.groupby("scheme"):
        shown = {fold: part.sort_values("pid") for fold, part in rows.groupby("fold")}
        alike = len({tuple(part["pid"]) for part in shown.values()}) == 1
        for place, (fold, part) in enumerate(shown.items()):
            own = posts.merge(part[["pid", "role"]], on="pid", validate="1:1")
            keys = {"scheme": scheme, "fold": None if alike else fold}
            if not alike or place == 0:
                key = tuple(part["pid"])
                if key not in known:
                    known[key] = context_features(own)
                context.append(known[key].assign(**keys))
            label.append(label_features(own, PRIOR, horizon).assign(**{**keys, "fold": fold}))
    return pd.concat(context), pd.concat(label)


def context_features(posts: Frame) -> Frame:
    """Label-free statistics over the shown posts."""
    table = posts[["pid"]]
    for features in (_user_features, _class_features, _tag_features, _count_signals):
        table = table.merge(features(posts), on="pid", how="left", validate="1:1")
    return table


def _user_features(posts: Frame) -> Frame:
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


def _class_features(posts: Frame) -> Frame:
    date = posts["posted_at"].dt.date
    on_day = posts.groupby(date)["pid"].transform("size")
    columns: dict[str, Any] = {f"{level}_posts": posts.groupby(level)["pid"].transform("size") for level in LEVELS}
    return pd.DataFrame(
        {
            "pid": posts["pid"],
            **columns,
            "day_posts": on_day,
            "day_subcategory_share": posts.groupby([date, "subcategory"])["pid"].transform("size") / on_day,
        }
    )


def _tag_features(posts: Frame) -> Frame:
    tags = posts["tags"].str.lower().str.split().map(lambda each: sorted(set(each)))
    exploded = pd.DataFrame({"pid": posts["pid"], "tag": tags}).explode("tag").dropna(subset=["tag"])
    exploded["frequency"] = np.log(exploded.groupby("tag")["pid"].transform("size").astype(float))
    found = exploded.groupby("pid")["frequency"].agg(["mean", "min", "max"]).add_prefix("tag_frequency_").reset_index()
    recurrences = pd.DataFrame(
        {
            "pid": posts["pid"],
            "title_posts": posts.groupby("title")["pid"].transform("size"),
            "text_posts": posts.groupby(["title", "tags"])["pid"].transform("size"),
        }
    )
    return recurrences.merge(found, on="pid", how="left", validate="1:1")


def _count_signals(posts: Frame) -> Frame:
    local = _local(posts)
    hour = local.dt.weekday * 24 + local.dt.hour
    columns: dict[str, Any] = {
        "pid": posts["pid"],
        **{
            f"rhythm.user_{name}": _before(posts, "uid", span)
            for name, span in {"day": 1, "week": 7, "month": 30}.items()
        },
        "rhythm.week_hour": hour,
        "rhythm.week_hour_posts": hour.groupby(hour).transform("size"),
    }
    every = {span: _before(posts, None, span) for span in (30, 180)}
    for level in ("theme", "variant"):
        first = posts.groupby(level)["posted_at"].transform("min")
        classes = posts[level].nunique()
        recent, usual = ((_before(posts, level, span) + 1) / (every[span] + classes) for span in (30, 180))
        columns |= {
            f"class_time.{level}_age": _days(posts["posted_at"] - first).clip(upper=180),
            f"class_time.{level}_share": recent,
            f"class_time.{level}_rise": np.log(recent / usual),
        }
    return pd.DataFrame(columns)


def _before(posts: Frame, key: str | None, span: int) -> Any:
    """Posts of the same `key` in the `span` days before each post, its own second left out."""
    ordered = posts.assign(one=1.0).sort_values([*([key] if key else []), "posted_at"])
    grouped = ordered.groupby(key, sort=False) if key else ordered
    counts = grouped.rolling(f"{span}D", on="posted_at", closed="left")["one"].sum().fillna(0).to_numpy()
    return pd.Series(counts, index=ordered.index).sort_index()


def label_features(posts: Frame, prior: float, horizon: Any) -> Frame:
    """Histories and signals from labels of fit rows, as old as those of scored rows: `popularity.features.label`."""
    fit, score = (posts.loc[posts["role"] == role, "posted_at"] for role in ("fit", "score"))
    later = score[score > fit.max()]
    if 2 * len(later) > len(score):
        start, length = later.min(), max(later.max() - later.min(), pd.Timedelta(days=1))
        as_of = _block_start(posts["posted_at"], start, length).where(posts["posted_at"] <= fit.max(), start)
    else:
        as_of = _block_start(posts["posted_at"], posts["posted_at"].max() + pd.Timedelta(seconds=1), horizon)
    rows = posts.assign(as_of=as_of)
    labelled = rows[(rows["role"] == "fit") & rows["label"].notna()].sort_values(["posted_at", "pid"])
    table = rows[["pid"]]
    for key in ("uid", "subcategory", "concept"):
        table = table.merge(_history(rows, labelled, key, prior), on="pid", how="left", validate="1:1")
    parts = []
    for date, asked in rows.groupby("as_of"):
        past = _over_classes(_over_periods(labelled[labelled["posted_at"] < date].copy(), prior), prior)
        part = asked[["pid"]]
        for signals in (_past_of_user, _class_levels, _words):
            part = part.merge(signals(past, asked, prior), on="pid", how="left", validate="1:1")
        parts.append(part)
    return table.merge(pd.concat(parts), on="pid", how="left", validate="1:1")


def _block_start(times: Any, cut: Any, length: Any) -> Any:
    blocks = np.ceil((cut - times) / length).clip(lower=0)
    return cut - blocks * length


def _history(rows: Frame, labelled: Frame, key: str, prior: float) -> Frame:
    overall = pd.DataFrame({"at": labelled["posted_at"], "total": labelled["label"].cumsum()})
    overall["count"] = np.arange(1, len(labelled) + 1)
    by_key = labelled.groupby(key)["label"]
    past = pd.DataFrame(
        {
            key: labelled[key],
            "last_at": labelled["posted_at"],
            "own": by_key.cumsum(),
            "posts": by_key.cumcount() + 1,
            "last": labelled["label"],
        }
    )
    asked = rows[["pid", key, "posted_at", "as_of"]].sort_values("as_of")
    exact = {"allow_exact_matches": False}
    asked = pd.merge_asof(asked, overall, left_on="as_of", right_on="at", **exact)
    asked = pd.merge_asof(asked, past, left_on="as_of", right_on="last_at", by=key, **exact)
    mean = asked["total"] / asked["count"]
    return pd.DataFrame(
        {
            "pid": asked["pid"],
            f"{key}_history_posts": asked["posts"].fillna(0),
            f"{key}_history_level": (asked["own"] + prior * mean) / (asked["posts"] + prior) - mean,
            f"{key}_history_last": asked["last"] - mean,
            f"{key}_history_age": _days(asked["posted_at"] - asked["last_at"]),
        }
    )


def _over_periods(past: Frame, prior: float) -> Frame:
    past["age"] = _days(past["posted_at"].max() - past["posted_at"])
    by_period = past.groupby((past["age"] / 30).apply(np.floor))["label"]
    level = (by_period.transform("sum") + prior * past["label"].mean()) / (by_period.transform("size") + prior)
    past["rest"] = past["label"] - level
    return past


def _over_classes(past: Frame, prior: float) -> Frame:
    above: Any = 0.0
    for level in CLASSES:
        by_class = past.groupby(level)["rest"]
        past[f"{level}_level"] = (by_class.transform("sum") + prior * above) / (by_class.transform("size") + prior)
        above = past[f"{level}_level"]
    past["beyond"] = past["rest"] - above
    return past


def _past_of_user(past: Frame, asked: Frame, prior: float) -> Frame:
    weight = 0.5 ** (past["age"] / HALF_LIVES[1])
    past = past.assign(weight=weight, weighted=weight * past["rest"])
    by_user = past.groupby("uid")
    past["square"] = (past["rest"] - by_user["rest"].transform("mean")) ** 2
    sums = past.groupby("uid").agg(
        posts=("rest", "size"),
        rest=("rest", "sum"),
        beyond=("beyond", "sum"),
        last=("beyond", "last"),
        weighted=("weighted", "sum"),
        weight=("weight", "sum"),
        square=("square", "sum"),
        oldest=("age", "max"),
        newest=("age", "min"),
    )
    variance = past["rest"].var() if len(past) > 1 else 0.0
    level = sums["rest"] / (sums["posts"] + prior)
    users = pd.DataFrame(
        {
            "history.level": level,
            "history.beyond_class": sums["beyond"] / (sums["posts"] + prior),
            "history.last": sums["last"],
            "history.trend": (sums["weighted"] + prior * level) / (sums["weight"] + prior) - level,
            "history.spread": (sums["square"] + prior * variance) / (sums["posts"] + prior),
            "history.days": sums["oldest"] - sums["newest"],
        }
    ).reset_index()
    own = past.groupby(["uid", "theme"])["beyond"].agg(own="sum", posts="size").reset_index()
    table = (
        asked[["pid", "uid", "theme"]].merge(users, on="uid", how="left").merge(own, on=["uid", "theme"], how="left")
    )
    for name in ("level", "beyond_class", "trend"):
        table[f"history.{name}"] = table[f"history.{name}"].fillna(0.0)
    table["history.spread"] = np.sqrt(table["history.spread"].fillna(variance))
    own_sum, own_posts = table["own"].fillna(0), table["posts"].fillna(0)
    table["history.own_class"] = (own_sum + prior * table["history.beyond_class"]) / (own_posts + prior)
    return table.drop(columns=["uid", "theme", "own", "posts"])


def _class_levels(past: Frame, asked: Frame, prior: float) -> Frame:
    table = asked[["pid", *CLASSES]]
    above: Any = 0.0
    for level in CLASSES:
        name = f"class_time.{level}_level"
        by_class = past.groupby(level)
        found = by_class[f"{level}_level"].first().to_frame(name)
        if level != "concept":
            for half_life in HALF_LIVES:
                weight = 0.5 ** (past["age"] / half_life)
                total = (weight * past["rest"]).groupby(past[level]).sum() + prior * found[name]
                found[f"{name}_{half_life}"] = total / (weight.groupby(past[level]).sum() + prior)
        table = table.merge(found.reset_index(), on=level, how="left")
        table[name] = table[name].fillna(above)
        for column in found.columns:
            table[column] = table[column].fillna(table[name])
        above = table[name]
    return table.drop(columns=list(CLASSES))


def _words(past: Frame, asked: Frame, prior: float) -> Frame:
    table = asked[["pid"]]
    for text in ("title", "tags"):
        by_word = _exploded(past, text, "beyond").groupby("word")["beyond"]
        levels = (by_word.sum() / (by_word.size() + prior)).rename("level").reset_index()
        found = _exploded(asked, text, "pid").merge(levels, on="word", how="left")
        found["known"] = found["level"].notna().astype(float)
        found["level"] = found["level"].fillna(0.0)
        found = found.groupby("pid").agg(
            **{
                f"words.{text}_mean": ("level", "mean"),
                f"words.{text}_least": ("level", "min"),
                f"words.{text}_greatest": ("level", "max"),
                f"words.{text}_known": ("known", "mean"),
            }
        )
        table = table.merge(found.reset_index(), on="pid", how="left", validate="1:1")
    return table


def _exploded(posts: Frame, text: str, value: str) -> Frame:
    words = posts[text].str.lower().map(lambda each: sorted(set(WORD.findall(each))))
    return pd.DataFrame({value: posts[value], "word": words}).explode("word").dropna(subset=["word"])
