"""Coverage of the prediction intervals against their nominal coverage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from popularity.core import paths
from popularity.evaluation.conformal import CALIBRATED_ON
from popularity.report import drawing
from popularity.report.document import Chart, Charts, Element, Section, Table, Text
from popularity.report.drawing import Interval
from popularity.report.run_folder import RunFolder
from popularity.report.wording import MINUS, number, percent

READS = (paths.COVERAGE,)


def build(run: RunFolder) -> Section | None:
    """The section; None if no coverage was measured."""
    coverage = run.csv(paths.COVERAGE)
    if coverage.is_empty():
        return None
    text = (
        "Each prediction has an interval that should hold the true label with a stated probability, its nominal "
        f"coverage. The method is split conformal: it is calibrated on the validation posts of scheme {CALIBRATED_ON} "
        "and scaled by the expected error of the post. Coverage falls where posts differ from those of the "
        "calibration, above all when the trend moves, and where a search chose parameters on the same posts."
    )
    elements: list[Element] = [Text(text)]
    for (scheme,), table in coverage.partition_by("scheme", maintain_order=True, as_dict=True).items():
        records = table.sort("nominal", maintain_order=True).to_dicts()
        elements += [Charts([_chart(str(scheme), records)]), _table(str(scheme), records)]
    return Section("intervals", "Prediction intervals", elements)


def _chart(scheme: str, records: list[dict[str, Any]]) -> Chart:
    rows = [
        Interval(
            f"nominal {percent(row['nominal'], 0)}",
            f"{row['group']} users",
            *(_points(row, name) for name in ("coverage", "low", "high")),
        )
        for row in records
    ]
    label = f"Coverage minus nominal coverage, by user group, scheme {scheme}"
    drawn = drawing.intervals(rows, f"coverage {MINUS} nominal, points ({scheme})", label, zero=True)
    return Chart(drawn, label, "Percentage points. Left of the dashed line the intervals hold too few labels.")


def _points(row: Mapping[str, Any], name: str) -> float | None:
    """How far a coverage is from the nominal one, in percentage points."""
    return None if row[name] is None else 100 * (row[name] - row["nominal"])


def _table(scheme: str, records: list[dict[str, Any]]) -> Table:
    rows = [
        [
            percent(row["nominal"], 0),
            f"{row['group']} users",
            f"{row['posts']:,}",
            _coverage(row),
            number(row["width"], 2),
        ]
        for row in records
    ]
    header = ["nominal", "users", "posts", "coverage", "mean width"]
    return Table(f"Coverage on {scheme}; the width is in label units", header, rows, names=2)


def _coverage(row: Mapping[str, Any]) -> str:
    if row["coverage"] is None:
        return "too few posts to calibrate"
    bounds = "" if row["low"] is None else f" [{percent(row['low'])}, {percent(row['high'])}]"
    return percent(row["coverage"]) + bounds
