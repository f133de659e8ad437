"""How far each validation scheme looks ahead, side by side with the test part: rows of a table, and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from popularity.core.contracts import HOLDOUT, REFIT, TIME_SCHEMES

NONE = "-"
HEADER = (
    "scheme",
    "fold",
    "valid / train span",
    "days ahead, median",
    "days ahead, most",
    "posts by unseen users",
    "valid rows with a past",
    "train rows with a past",
)
QUANTITIES = {  # of a fold in reports/split.json, in the order of HEADER
    "span_ratio": "{:.2f}",
    "days_ahead_median": "{:.1f}",
    "days_ahead_max": "{:.1f}",
    "unseen_post_share": "{:.1%}",
    "valid_past_share": "{:.1%}",
    "train_past_share": "{:.1%}",
}


def distance_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Returns the cells of HEADER, a row for each split in time, the mean of the folds of other schemes, and the test.

    Args:
        summary: reports/split.json.
    """
    schemes: dict[str, list[Mapping[str, Any]]] = {}
    for fold in summary["schemes"]:
        schemes.setdefault(fold["scheme"], []).append(fold)
    rows = []
    for scheme, folds in schemes.items():
        if scheme in TIME_SCHEMES:
            rows += [[scheme, f"{fold['fold']}" if len(folds) > 1 else NONE, *_cells([fold])] for fold in folds]
        else:
            rows.append([f"{scheme} (test)" if scheme == REFIT else scheme, NONE, *_cells(folds)])
    return rows


def distance_sentences(summary: Mapping[str, Any]) -> list[str]:
    """Returns how far the splits should look ahead, why some do not, and which scheme to quote.

    Args:
        summary: reports/split.json.
    """
    ratio, source = summary["wanted_span_ratio"], summary["wanted_span_from"]
    if ratio is None:
        sentences = [f"The length of the splits in time comes from {source}."]
    else:
        sentences = [f"The splits in time should have valid span / training span = {ratio:.2f} (source: {source})."]
    sentences += [
        f"{fold['scheme']} {fold['fold']}: {fold['note']}."
        for fold in summary["schemes"]
        if fold["scheme"] in TIME_SCHEMES and fold["note"]
    ]
    if summary["interleaved"]:
        sentences.append(
            f"The test posts lie among the training posts in time: quote scheme '{summary['quote']}', not '{HOLDOUT}', "
            "and name it in stack.schemes. Histories of its valid rows hold earlier posts of the same period."
        )
    return sentences


def _cells(folds: Sequence[Mapping[str, Any]]) -> list[str]:
    """The mean of each of QUANTITIES over the folds that know it."""
    cells = []
    for quantity, form in QUANTITIES.items():
        known = [fold[quantity] for fold in folds if fold[quantity] is not None]
        cells.append(form.format(float(np.mean(known))) if known else NONE)
    return cells
