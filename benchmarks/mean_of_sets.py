"""The mean over data sets whose tables benchmarks.compare printed apart, each on a machine or a day of its own.

    python -m benchmarks.mean_of_sets memes=docs/results/memes-systems.csv sketches=docs/results/sketches-systems.csv \\
        --tables docs/results

Of SRC and of MAE as a share of the constant's; sets count alike. The tables of docs/results hold no draws of users, but
sets have no users in common: so the distance of a mean from its bound is the root of the sum of the squares of the
sets' own distances, over the number of sets. The constant's MAE counts as known. `benchmarks.compare` with all sets at
once draws users of all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.comparison_tables import MEAN, SCHEMES, SHOWN, Comparison, print_means, write_means
from benchmarks.means import SCHEMA, SHARE, with_share
from benchmarks.rows import OURS
from benchmarks.systems import METRICS
from popularity.core.contracts import HOLDOUT
from popularity.core.errors import ConfigError, DataError
from popularity.core.stage import run

NUMBERS = ("score", "difference", "low", "high")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="NAME=FILE", help="tables that --tables of benchmarks.compare wrote")
    parser.add_argument(
        "--tables", type=Path, metavar="FOLDER", help="write mean-systems.csv in the form of docs/results"
    )
    args = parser.parse_args(argv)
    pairs = [each.partition("=") for each in args.sets]
    if wrong := [name for name, _, file in pairs if not name or not file]:
        raise ConfigError(f"{wrong[0]}: expected NAME=FILE")
    sets = {name: read_table_of_docs(Path(file)) for name, _, file in pairs}
    comparison = Comparison(OURS, sets)
    for split in (MEAN, HOLDOUT):
        each = {name: table.filter(split=split) for name, table in sets.items()}
        if all(table.height for table in each.values()):
            comparison.means[split] = mean_of_tables(each)
    print_means(comparison)
    write_means(comparison, args.tables)


def read_table_of_docs(path: Path) -> pl.DataFrame:
    """(split, metric, system, score, difference, low, high) of a table of docs/results; of MAE also the SHARE.

    Raises:
        DataError: not such a table, or one without the constant.
    """
    rows = pl.read_csv(path, infer_schema=False).fill_null("")
    lines: list[dict[str, Any]] = []
    for split, scheme in SCHEMES.items():
        for metric in METRICS:
            name = f"{SHOWN[metric]} {scheme}"
            columns = (name, *(f"{name} - {OURS}{bound}" for bound in ("", " low", " high")))
            if name not in rows.columns:
                continue
            for row in rows.iter_rows(named=True):
                values = (_number(row[column]) for column in columns)
                line = {"split": split, "metric": metric, "system": row["system"]}
                lines.append(line | dict(zip(NUMBERS, values, strict=True)))
    if not lines:
        raise DataError("no table of systems", file=path, expected="a file that benchmarks.compare --tables wrote")
    table = pl.DataFrame(lines, schema_overrides=dict.fromkeys(NUMBERS, pl.Float64))
    return pl.concat(with_share(part) for part in table.partition_by("split", maintain_order=True))


def _number(text: str) -> float | None:
    return float(text) if text not in ("", "-") else None


def mean_of_tables(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """The columns of `benchmarks.means.mean_over_sets`, from the scores and bounds of each set.

    Args:
        tables: of one split, from `read_table_of_docs`, by set.
    """
    rows = pl.concat(table.with_columns(set=pl.lit(name)) for name, table in tables.items())
    lines: list[dict[str, Any]] = []
    for metric in ("src", SHARE):
        for (system,), own in rows.filter(metric=metric).group_by("system", maintain_order=True):
            scores, compared = own["score"].drop_nulls(), own.drop_nulls(list(NUMBERS))
            line = {"metric": metric, "system": system, "sets": own.height if system == OURS else compared.height}
            line["score"] = scores.mean() if len(scores) == len(tables) else None
            if compared.height:
                line["difference"] = compared["difference"].mean()
                for bound, sign in (("low", -1), ("high", 1)):
                    distances = (compared[bound] - compared["difference"]).to_numpy()
                    line[bound] = line["difference"] + sign * float(np.sqrt(np.sum(distances**2))) / compared.height
            lines.append(line)
    return pl.DataFrame(lines, schema_overrides=SCHEMA)


if __name__ == "__main__":
    run(main)
