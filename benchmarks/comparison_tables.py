"""The tables of benchmarks.compare: on the screen, as numbers, and in the form of docs/results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.means import SHARE, outside
from benchmarks.systems import METRICS
from benchmarks.tables import signed_interval, text_table, verdict, write_csv
from popularity.core.contracts import FORWARD, HOLDOUT

MEAN = "mean"  # of the forward splits: a value of column `split`, as HOLDOUT and the indices of the splits are
OVER_SETS = "mean over the sets"  # a value of column `set`
SCHEMES = {MEAN: FORWARD, HOLDOUT: HOLDOUT}  # by the value of column `split`
SHOWN = {"src": "SRC", "mae": "MAE", SHARE: "MAE / constant"}
NONE = "-"
DIGITS = 3  # in docs/results


@dataclass
class Comparison:
    """The scores of all systems.

    Args:
        against: the system that the others are compared with.
        sets: results of `benchmarks.systems.compare` with column `split`, by data set.
        means: results of `benchmarks.means.mean_over_sets` by split, MEAN or HOLDOUT; empty for a single set.
    """

    against: str
    sets: dict[str, pl.DataFrame] = field(default_factory=dict)
    means: dict[str, pl.DataFrame] = field(default_factory=dict)

    def systems(self) -> list[str]:
        """All systems of all sets."""
        return list(dict.fromkeys(name for table in self.sets.values() for name in table["system"]))

    def lines(self) -> list[dict[str, Any]]:
        """The numbers: a row a set, split, metric and system."""
        tables = [(name, table) for name, table in self.sets.items()]
        tables += [(OVER_SETS, table.with_columns(split=pl.lit(split))) for split, table in self.means.items()]
        return [{"set": name, **row} for name, table in tables for row in table.iter_rows(named=True)]


def print_set(comparison: Comparison, name: str) -> None:
    """A table a metric of one data set: the score in each split, and differences for their mean and the holdout."""
    for metric in METRICS:
        title = f"{name}: {metric.upper()}" if len(comparison.sets) > 1 else metric.upper()
        print(f"\n{title}\n{printed(comparison, name, metric)}")


def printed(comparison: Comparison, name: str, metric: str) -> str:
    """A line a system: its score in each split; for their mean and the holdout also the difference."""
    lines = []
    table = comparison.sets[name].filter(metric=metric)
    for system in comparison.systems():
        line: dict[str, object] = {"system": system}
        for row in table.filter(system=system).iter_rows(named=True):
            line[row["split"]] = row["score"]
            if row["split"] in SCHEMES:
                line[f"{row['split']} - {comparison.against}"] = _difference(row, comparison.against)
        lines.append(line if len(line) > 1 else {**line, MEAN: NONE})
    return text_table(lines)


def print_means(comparison: Comparison) -> None:
    """The mean over the data sets: a table a scheme, and the systems that a set lacks."""
    for split, table in comparison.means.items():
        lines = []
        scored = {name: own.filter(split=split) for name, own in comparison.sets.items()}
        for (system,), rows in table.group_by("system", maintain_order=True):
            line: dict[str, Any] = {"system": system}
            for metric in ("src", SHARE):
                row = rows.filter(metric=metric).row(0, named=True)
                line[SHOWN[metric]] = NONE if row["score"] is None else row["score"]
                line[f"{SHOWN[metric]} - {comparison.against}"] = _difference(row, comparison.against)
            better, worse = (outside(scored, str(system), word) for word in ("better", "worse"))
            line |= {"sets": rows["sets"][0], "better on": ", ".join(better), "worse on": ", ".join(worse)}
            lines.append(line)
        print(f"\n{OVER_SETS}: {SCHEMES[split]}\n{text_table(lines)}")
        print(*missing(scored), sep="\n")


def missing(scored: Mapping[str, pl.DataFrame]) -> list[str]:
    """A sentence for each set that lacks a system."""
    every = dict.fromkeys(system for table in scored.values() for system in table["system"])
    found = []
    for name, table in scored.items():
        lacking = [system for system in every if system not in {*table["system"]}]
        if lacking:
            found.append(f"Not on {name}, so its difference is the mean over the other sets: {', '.join(lacking)}")
    return found


def mean_and_holdout(table: pl.DataFrame, system: str) -> str:
    """The mean score of a system over the forward splits, its holdout score, and their difference."""
    lines = []
    for metric in METRICS:
        score = dict(table.filter(system=system, metric=metric).select("split", "score").iter_rows())
        difference = score[HOLDOUT] - score[MEAN]
        shown = f"mean of the splits {score[MEAN]:.4f}, holdout {score[HOLDOUT]:.4f}, {difference:+.4f}"
        lines.append(f"{metric.upper()}: {shown}")
    return "\n".join(lines)


def write_tables(comparison: Comparison, folder: Path | None) -> None:
    """Writes <set>-systems.csv for each set and mean-systems.csv, as `python -m popularity.docs` reads them."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in comparison.sets.items():
        write_csv(docs_rows(comparison, table, METRICS), folder / f"{name}-systems.csv")
    write_means(comparison, folder)


def write_means(comparison: Comparison, folder: Path | None) -> None:
    """Writes mean-systems.csv, if there are means."""
    if folder is not None and comparison.means:
        means = pl.concat(table.with_columns(split=pl.lit(split)) for split, table in comparison.means.items())
        write_csv(docs_rows(comparison, means, ("src", SHARE)), folder / "mean-systems.csv")


def docs_rows(comparison: Comparison, table: pl.DataFrame, metrics: Sequence[str]) -> list[dict[str, str]]:
    """A row a system: score and difference of each metric in each scheme, as text; bounds are columns of their own."""
    lines = []
    for system in comparison.systems():
        line = {"system": system}
        for metric in metrics:
            for split, scheme in SCHEMES.items():
                if not table.filter(split=split).height:
                    continue
                (row, *_) = [*table.filter(split=split, metric=metric, system=system).iter_rows(named=True), {}]
                name = f"{SHOWN[metric]} {scheme}"
                line[name] = NONE if not row or row["score"] is None else _short(row["score"])
                for column, key in (("", "difference"), (" low", "low"), (" high", "high")):
                    empty = not row or system == comparison.against or row[key] is None
                    line[f"{name} - {comparison.against}{column}"] = "" if empty else _short(row[key], sign="+")
        if "sets" in table.columns:
            line["sets"] = str(table.filter(system=system)["sets"].max() or 0)
        lines.append(line)
    return lines


def _short(value: float, sign: str = "") -> str:
    """
    >>> _short(-0.0181, sign="+"), _short(1.1944)
    ('-.018', '1.194')
    """
    return f"{value:{sign}.{DIGITS}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:{sign}.{DIGITS}f}"


def _difference(row: Mapping[str, Any], against: str) -> str:
    """The difference of a row, its interval and a verdict, as text; empty for the reference itself."""
    if row["system"] == against or row["difference"] is None:
        return ""
    shown = signed_interval(row["difference"], row["low"], row["high"])
    return f"{shown} {verdict(row['metric'], row['low'], row['high'])}".strip()
