"""Gain of the features in LightGBM of the stack."""

from __future__ import annotations

import polars as pl

from popularity.core import paths
from popularity.evaluation.tables import read_importance
from popularity.report.document import Bar, Bars, Section, Text
from popularity.report.run_folder import RunFolder
from popularity.report.wording import counted, percent

READS = (paths.ENSEMBLE_IMPORTANCE,)
FEATURES_SHOWN = 25


def build(run: RunFolder) -> Section | None:
    """The section; None if no tree has a split."""
    gain = read_importance(run.folder / paths.ENSEMBLE_IMPORTANCE)
    total = float(gain["gain"].sum())
    if total == 0:
        return None
    text = (
        "Share of the total gain of all tree splits, in the model fitted on all training posts. Features that carry "
        "the same information share the gain, so a share does not show how much the score would fall without the "
        "feature."
    )
    blocks = gain.group_by("block").agg(pl.sum("gain"), pl.len()).sort(["gain", "block"], descending=[True, False])
    by_block = [
        Bar(f"{block} ({counted(count, 'feature')})", [value / total], percent(value / total))
        for block, value, count in blocks.iter_rows()
    ]
    features = gain.sort(["gain", "feature"], descending=[True, False]).head(FEATURES_SHOWN)
    strongest = float(features["gain"][0])
    by_feature = [
        Bar(f"{feature} ({block})", [value / strongest], percent(value / total))
        for block, feature, value in features.select("block", "feature", "gain").iter_rows()
    ]
    title = f"The {len(features)} strongest features of {len(gain):,}"
    return Section(
        "importance",
        "Feature importance",
        [Text(text), Bars("By feature block", by_block), Bars(title, by_feature)],
    )
