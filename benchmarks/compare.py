"""The table of all cuts in time: SRC and MAE of ours and of named rows, with intervals of the difference to ours.

    python -m benchmarks.compare                                   # the cuts of `matched`, by which all is chosen
    python -m benchmarks.compare --folder ../run --rows "- image" metadata peers --csv cuts.csv
    python -m benchmarks.compare --rows choices --against plain --seeds 1
    python -m benchmarks.compare --rows feature_groups --against "no feature_groups" --shape "half the classes"
    python -m benchmarks.compare --patch words=words.yaml          # the stack with the keys of a file in their places
    python -m benchmarks.compare --rows constant --runs ../seed1 ../lite2    # further networks and what is merged of them
    python -m benchmarks.compare --last                            # the cut `report` too: once, after the last choice

Rows and their groups: benchmarks.rows; by default parts, baselines and peers. Ours, and ours without a part, is the
stack merged with the text model, as the graph does it; all other rows are the stack alone or no stack. A run of --runs
is a folder in which `dvc repro embed_posts` ended on the same posts; its vectors go through the stack of ours. Of the
runs together: "as many boosters" (one network with the boosters of all: what a merge must beat, for it costs no
network), "mean of the runs", "weighted runs" (weights of the least MAE, for each cut from the other cuts).

Splits and features are made here from the parameters. An interval is over users, of the difference on the same draws.
Finished predictions are kept in .state/benchmarks of the folder, by everything that they depend on, code included.
--last refuses parameters or code that are not committed, and writes the commit and the scores to a log. Needs `dvc
repro embed_posts`.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.rows import (
    OURS,
    Row,
    groups_of_rows,
    params_row,
    patched_row,
    predicted,
    simple_row,
    stack_row,
    text_row,
    with_splits,
)
from benchmarks.systems import METRICS, SHAPES, Array, Project, compare, reshaped
from benchmarks.tables import add_csv_flag, signed_interval, text_table, verdict, write_csv
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import TEXT_PREDICTIONS
from popularity.core.errors import ConfigError, DataError
from popularity.core.manifest import REPOSITORY
from popularity.core.stage import run
from popularity.encoders.text import EmbedTextParams
from popularity.ensemble.members import CONSTANT, MODEL, fitted_shares, merged
from popularity.ensemble.weights import candidates
from popularity.features import FeaturizeParams
from popularity.stack import StackParams
from popularity.text_model import TextModelParams
from popularity.validation import SplitParams

SCHEME, LAST_SCHEME = "forward", "holdout"
MEAN, LAST = "mean", "last"  # values of column `cut` next to the numbers of the cuts
TEXT, WITHOUT_TEXT = "the text model", "- text model"
DEFAULT = ("parts", "baselines", "peers")
CONFIGURATION = ("params.yaml", "src", "benchmarks")  # what must be committed before the last cut is scored


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="project folder with data and params.yaml")
    parser.add_argument("--params", type=Path, help="by default the folder's params.yaml")
    parser.add_argument("--tuned", type=Path, help="best_params.yaml, whose keys replace those of section stack")
    parser.add_argument("--rows", nargs="+", default=list(DEFAULT), help="names of rows or of groups of rows")
    parser.add_argument("--patch", nargs="+", default=[], metavar="NAME=FILE", help="rows of changed parameters")
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="folders of further networks")
    parser.add_argument("--against", default=OURS, help="the row whose score is subtracted")
    parser.add_argument("--seeds", type=int, help="boosters a fit, instead of stack.n_seeds")
    parser.add_argument("--shape", choices=list(SHAPES), default="whole", help="of the data set, made from its posts")
    parser.add_argument("--last", action="store_true", help="score the cut `report` too")
    parser.add_argument("--log", type=Path, help="of --last; by default reports/last_cut.log of the folder")
    parser.add_argument("--resamples", type=int, default=1000)
    add_csv_flag(parser)
    args = parser.parse_args(argv)
    file = args.params or args.folder / PARAMS_FILE
    commit = commit_of(REPOSITORY, file.resolve().parent) if args.last else ""
    schemes = [SCHEME, LAST_SCHEME] if args.last else [SCHEME]
    project = project_of(args, file, schemes)
    rows = chosen_rows(args, file, project.params)
    found = pl.concat(predicted(project, rows, scheme) for scheme in schemes)
    if args.runs:
        found = with_runs(found, project, args.runs, schemes)
    if TEXT in rows:
        found = with_text(found, project.params.text_model_weights)
    if args.against not in found.columns:
        raise ConfigError(f"--against {args.against}: expected one of the rows {', '.join(found.columns[5:])}")
    table = cut_table(found.filter(scheme=SCHEME), args.against, args.resamples)
    if args.last:
        last = compare(found.filter(scheme=LAST_SCHEME), args.against, resamples=args.resamples)
        log_last(args.log or args.folder / "reports/last_cut.log", commit, last)
        table = pl.concat([table, last.with_columns(cut=pl.lit(LAST))])
    for metric in METRICS:
        print(f"\n{metric.upper()}\n{printed(table, metric, args.against)}")
    if args.last:
        print(f"\n{forecast(table)}")
    write_csv(table.to_dicts(), args.csv)


def project_of(args: argparse.Namespace, file: Path, schemes: Sequence[str]) -> Project:
    """The project with the shape, splits and section stack that the flags ask for."""
    params = load_params("stack", StackParams, file, args.tuned)
    params = replace(params, n_seeds=args.seeds or params.n_seeds)
    project = replace(Project.read(args.folder, file), params=params)
    project = reshaped(project, args.shape, load_params("split", SplitParams, file))
    splits = project.splits.filter(pl.col("scheme").is_in(schemes))
    return with_splits(project, splits, load_params("featurize", FeaturizeParams, file))


def chosen_rows(args: argparse.Namespace, file: Path, params: StackParams) -> dict[str, Row]:
    """The rows that the flags name, by name, ours first.

    Raises:
        ConfigError: a name is of no row and no group.
    """
    groups = groups_of_rows(params, args.folder)
    every = {name: row for group in groups.values() for name, row in group.items()}
    unknown = set(args.rows) - {*every, *groups, OURS}
    if unknown:
        expected = f"expected groups ({', '.join(groups)}) or rows ({', '.join(every)})"
        raise ConfigError(f"--rows {' '.join(sorted(unknown))}: {expected}")
    rows = {OURS: stack_row(lambda data: data)}
    for name in [*args.rows, *([args.against] if args.against in every else [])]:
        rows |= groups[name] if name in groups else {name: every[name]} if name in every else {}
    for patch in args.patch:
        name, _, path = patch.partition("=")
        rows[name] = patched_row(file, Path(path))
    if args.runs:
        rows[MORE] = params_row(replace(params, n_seeds=(1 + len(args.runs)) * params.n_seeds))
    text = load_params("text_model", TextModelParams, file)
    if text.epochs:
        rows |= {TEXT: text_row(load_params("embed_text", EmbedTextParams, file), text), WITHOUT_TEXT: rows[OURS]}
        rows |= {CONSTANT: simple_row(CONSTANT)}
    return rows


MORE, RUNS_MEAN, RUNS_WEIGHTED = "as many boosters", "mean of the runs", "weighted runs"


def with_runs(rows: pl.DataFrame, project: Project, folders: Sequence[Path], schemes: Sequence[str]) -> pl.DataFrame:
    """`rows` of Project.run with a column a folder, which has another network, and what is merged of them.

    Raises:
        DataError: a folder has other posts.
    """
    networks = [OURS, *map(str, folders)]
    for folder in folders:
        other = Project.read(folder)
        if not set(other.posts["pid"]) >= set(project.posts["pid"]):
            raise DataError("other posts than those of the first run", file=folder, expected="the same data set")
        with_vectors = replace(project, blocks=other.blocks)
        row = {str(folder): stack_row(lambda data: data)}
        found = pl.concat(predicted(with_vectors, row, scheme, folder) for scheme in schemes)
        key = ["scheme", "cut", "pid"]
        rows = rows.join(found.select(*key, str(folder)), on=key, validate="1:1", maintain_order="left")
    rows = rows.with_columns(pl.mean_horizontal(networks).alias(RUNS_MEAN))
    return pl.concat(
        part.with_columns(pl.Series(RUNS_WEIGHTED, part.select(networks).to_numpy() @ _weights(rows, part, networks)))
        for part in rows.partition_by("scheme", "cut", maintain_order=True)
    )


def _weights(rows: pl.DataFrame, part: pl.DataFrame, networks: Sequence[str]) -> Array:
    """(networks,) of the least mean absolute error on the cuts of SCHEME other than the one of `part`."""
    others = rows.filter(scheme=SCHEME).join(part, on=["scheme", "cut"], how="anti", maintain_order="left")
    if others.is_empty():
        return np.full(len(networks), 1 / len(networks))
    each, label = others.select(networks).to_numpy(), others["label"].to_numpy()
    return min(candidates(len(networks)), key=lambda weights: round(float(np.abs(label - each @ weights).mean()), 12))


def with_text(rows: pl.DataFrame, shares: Sequence[float]) -> pl.DataFrame:
    """`rows` of Project.run, OURS and what lacks a part of it merged with TEXT; WITHOUT_TEXT is OURS as it was.

    Every row takes the shares of OURS, chosen among `shares` as the stage does.
    """
    known = rows.select("pid", "scheme", pl.col("cut").cast(pl.Int32).alias("fold"))
    facts = known.with_columns(pl.lit(0, pl.Int32).alias(name) for name in TEXT_PREDICTIONS.key if name not in known)
    text = facts.with_columns(prediction=rows[TEXT]).select(list(TEXT_PREDICTIONS.columns))

    def as_stack(**columns: str) -> pl.DataFrame:
        return pl.concat(
            facts.with_columns(seed=pl.lit(0), model=pl.lit(model), prediction=rows[column])
            for model, column in columns.items()
        )

    labels = rows.select("pid", "label").unique()
    chosen = fitted_shares(as_stack(**{MODEL: OURS, CONSTANT: CONSTANT}), text, labels, shares)
    ours_less = [name for name in rows.columns if name == OURS or (name.startswith("- ") and name != WITHOUT_TEXT)]
    return rows.with_columns(
        merged(as_stack(**{MODEL: name}), text, chosen)["prediction"].alias(name) for name in ours_less
    )


def cut_table(rows: pl.DataFrame, against: str, resamples: int) -> pl.DataFrame:
    """`compare` of each cut of `rows` (of Project.run) and of their mean: a row a system, metric and cut."""
    cuts = [(f"{cut}", rows.filter(cut=cut)) for cut in rows["cut"].unique().sort()]
    parts = [(name, compare(part, against, resamples=resamples)) for name, part in [*cuts, (MEAN, rows)]]
    return pl.concat(part.with_columns(cut=pl.lit(name)) for name, part in parts)


def printed(table: pl.DataFrame, metric: str, against: str) -> str:
    """A line a system: its score in each cut, then their mean and the last cut with the difference to `against`."""
    lines = []
    for (system,), rows in table.filter(metric=metric).group_by("system", maintain_order=True):
        line: dict[str, object] = {"system": system}
        for row in rows.iter_rows(named=True):
            line[row["cut"]] = row["score"]
            if row["cut"] in (MEAN, LAST):
                bounds = (row["low"], row["high"])
                difference = f"{signed_interval(row['difference'], *bounds)} {verdict(metric, *bounds)}".strip()
                line[f"{row['cut']} - {against}"] = "" if system == against else difference
        lines.append(line)
    return text_table(lines)


def forecast(table: pl.DataFrame) -> str:
    """The mean of ours over the cuts, and what the last cut gave."""
    lines = []
    for metric in METRICS:
        score = dict(table.filter(system=OURS, metric=metric).select("cut", "score").iter_rows())
        difference = score[LAST] - score[MEAN]
        lines.append(f"{metric.upper()}: mean of the cuts {score[MEAN]:.4f}, last {score[LAST]:.4f}, {difference:+.4f}")
    return "\n".join(lines)


def commit_of(*repositories: Path) -> str:
    """The commits of the git repositories that the folders lie in, each once.

    Raises:
        ConfigError: CONFIGURATION of one of them is not committed as it is.
    """
    found = []
    for folder in repositories:
        changed = _git(folder, "status", "--porcelain", "--untracked-files=normal", "--", *CONFIGURATION)
        if changed:
            raise ConfigError(f"{folder}: commit the configuration before the last cut is scored:\n{changed}")
        found.append(_git(folder, "rev-parse", "HEAD"))
    return " ".join(dict.fromkeys(found))


def _git(folder: Path, *command: str) -> str:
    done = subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{folder}: the last cut is scored for a commit only; git says: {done.stderr.strip()}")
    return done.stdout.strip()


def log_last(log: Path, commit: str, rows: pl.DataFrame) -> None:
    """Appends a line a system: when, of which commit, SRC and MAE of the last cut."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    scores = rows.pivot(on="metric", index="system", values="score")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        for system, *values in scores.select("system", *METRICS).iter_rows():
            shown = ("-" if value is None else f"{value:.4f}" for value in values)
            each = "  ".join(f"{name.upper()} {value}" for name, value in zip(METRICS, shown, strict=True))
            stream.write(f"{when}  commit {commit}  {system}  {each}\n")


if __name__ == "__main__":
    run(main)
