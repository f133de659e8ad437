"""The validation splits: a drawing over time and a row for each scheme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from popularity.core import paths
from popularity.core.contracts import HOLDOUT, REFIT, ROLES, TIME_SCHEMES
from popularity.evaluation.distance import HEADER, distance_rows, distance_sentences
from popularity.report import drawing
from popularity.report.document import Chart, Charts, Element, Section, Table, Text
from popularity.report.drawing import SplitRow
from popularity.report.months import all_months
from popularity.report.run_folder import RunFolder
from popularity.report.wording import NONE, percent

READS = (paths.POSTS, paths.SPLITS, paths.SPLIT_SUMMARY, paths.SCORES)
SCHEME_SHOWS = {
    "holdout": (
        "The last posts in time, with the test part's share of posts by new users. No choice was made on it: quote "
        "this score."
    ),
    "forward": (
        "Earlier splits in time, made in the same way; the score is their mean. Trials were compared on it, so the "
        "chosen trial scores a little too well here."
    ),
    "group": "New users, but at the time of the train rows: the trend does not move. Its scores are too good.",
    "random": "Random folds: the model knows most users and their later posts. Its scores are too good.",
    "refit": "All labelled posts; the model predicts the test part, whose labels nobody here knows.",
}


def build(run: RunFolder) -> Section:
    """The section."""
    summary = run.json(paths.SPLIT_SUMMARY)
    schemes: dict[str, list[Mapping[str, Any]]] = {}
    for fold in summary["schemes"]:
        schemes.setdefault(fold["scheme"], []).append(fold)
    text = (
        f"In splits by time, the share of validation posts by users without a train post should be "
        f"{percent(summary['wanted_unseen_post_share'])} (source: {summary['wanted_from']}). Excluded posts are "
        "neither trained on nor scored."
    )
    elements: list[Element] = [
        Text(text),
        Charts([_timeline(run)]),
        _counts(schemes),
        Text(" ".join(distance_sentences(summary))),
        _distances(summary),
        _meaning(summary, schemes, run.scores),
    ]
    return Section("splits", "Validation splits", elements)


def scheme_shows(summary: Mapping[str, Any]) -> Mapping[str, str]:
    """Returns what the scores of each scheme mean for the data set; SCHEME_SHOWS unless the test part is interleaved.

    Args:
        summary: reports/split.json.
    """
    if not summary["interleaved"]:
        return SCHEME_SHOWS
    quoted = summary["quote"]
    why = "The test posts lie among the training posts in time"
    return {
        **SCHEME_SHOWS,
        HOLDOUT: f"The last posts in time. {why}, so it is harder than the test part: quote {quoted}.",
        quoted: f"{why}, as the validation posts do here: quote this score.",
    }


def _timeline(run: RunFolder) -> Chart:
    posts = run.posts.select("pid", month=pl.col("posted_at").dt.strftime("%Y-%m"))
    months = all_months(posts["month"])
    counts = run.splits.join(posts, on="pid", validate="m:1").group_by("scheme", "fold", "role", "month").len()
    folds = counts.select("scheme", "fold").unique()
    rows = []
    for scheme in SCHEME_SHOWS:
        indices = folds.filter(scheme=scheme)["fold"].sort().to_list()
        by_time = scheme in TIME_SCHEMES
        for fold in indices if by_time else indices[:1]:
            of = f" {fold + 1} of {len(indices)}" if len(indices) > 1 else ""
            own = counts.filter(scheme=scheme, fold=fold)
            lanes = {role: _per_month(own.filter(role=role), months) for role in ROLES}
            rows.append(SplitRow(scheme + of, lanes))
    label = "Posts by month in each split: train, validation and excluded"
    drawn = drawing.split_timeline(rows, months, label)
    caption = "Each band is a role of the posts; the stronger the colour, the more posts in the month. Of the folds "
    return Chart(drawn, label, caption + "that are not made by time, the first is drawn.")


def _per_month(counts: pl.DataFrame, months: Sequence[str]) -> list[int]:
    found = dict(counts.select("month", "len").iter_rows())
    return [found.get(month, 0) for month in months]


def _meaning(
    summary: Mapping[str, Any], schemes: Mapping[str, Sequence[Mapping[str, Any]]], scores: pl.DataFrame
) -> Table:
    """A row a scheme: whether choices were made on it, and what its scores mean."""
    used = dict(scores.select("scheme", "used_in_selection").unique().iter_rows())
    rows, shows = [], scheme_shows(summary)
    for scheme, folds in schemes.items():
        notes = dict.fromkeys(f"{fold['note']}." for fold in folds if fold["note"])
        answer = NONE if scheme == REFIT else used.get(scheme, "not scored")
        rows.append([scheme, answer, " ".join([shows[scheme], *notes])])
    return Table("What the schemes show", ["scheme", "used for selection?", "what it shows"], rows, names=3)


def _counts(schemes: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """A row a scheme: the mean number of posts by role over its folds."""
    rows = []
    for scheme, folds in schemes.items():
        counts = (f"{np.mean([fold[role] for fold in folds]):,.0f}" for role in ROLES)
        rows.append([scheme, f"{len(folds)}", *counts, percent(unseen_share(folds))])
    header = ["scheme", "folds", *ROLES, "valid, by new users"]
    return Table("Posts of each scheme, mean over its folds", header, rows)


def _distances(summary: Mapping[str, Any]) -> Table:
    """A row for each split in time, for each other scheme and for the test part."""
    title = "How far each split looks ahead; a past is an older label of the user"
    return Table(title, HEADER, distance_rows(summary), names=2)


def unseen_share(folds: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean share of validation posts by users without a train post; None where no fold knows it."""
    shares = [fold["unseen_post_share"] for fold in folds if fold["unseen_post_share"] is not None]
    return float(np.mean(shares)) if shares else None
