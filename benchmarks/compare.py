"""Compares ours with named rows on the forward splits: SRC, MAE, and intervals of the difference.

    python -m benchmarks.compare                                   # on scheme `forward`, on which choices are made
    python -m benchmarks.compare --folder ../run --rows "- image" metadata peers --csv compare.csv
    python -m benchmarks.compare --rows choices --against baseline --seeds 1
    python -m benchmarks.compare --rows feature_groups --against "no feature groups" --shape "half the classes"
    python -m benchmarks.compare --patch words=words.yaml          # the stack with the parameters of a file
    python -m benchmarks.compare --rows constant --runs ../seed1 ../lite2    # an ensemble of several networks
    python -m benchmarks.compare --holdout                         # `holdout` too: once, after the last choice

benchmarks.rows lists the rows and their groups; the default is parts, baselines and peers. Ours, and ours without a
part, is the ensemble of the stack and the text model, as in the graph; every other row is a single model. A run of
--runs is a folder in which `dvc repro embed_posts` has run on the same posts; its vectors go through the stack of ours.
Further rows combine the runs: "as many boosters" (one network, the boosters of all runs: an ensemble must beat it, for
it needs no further network), "mean of the runs", "weighted runs" (for each split the weights of least MAE on the other
splits).

Splits and features are computed here from the parameters. An interval is over users, of the difference on the same
draws. Predictions are cached in .state/benchmarks of the folder, by everything that they depend on, code included.
--holdout refuses parameters or code that are not committed, and logs the commit and the scores. Needs `dvc repro
embed_posts`.
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
from benchmarks.systems import METRICS, SHAPES, Project, compare, reshaped
from benchmarks.tables import add_csv_flag, signed_interval, text_table, verdict, write_csv
from popularity.core.arrays import Float64Array
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import FORWARD, HOLDOUT, MAIN_MODEL, MEMBER_PREDICTIONS
from popularity.core.errors import ConfigError, DataError
from popularity.core.manifest import REPOSITORY
from popularity.core.stage import run
from popularity.encoders.text import network_text_params
from popularity.ensemble.members import CONSTANT, EnsembleParams, MemberTable, chosen_weights
from popularity.ensemble.weights import weight_grid
from popularity.features import FeaturizeParams
from popularity.stack import StackParams
from popularity.text_model import TextModelParams
from popularity.validation import SplitParams

MEAN = "mean"  # of the splits: a value of column `split`, as HOLDOUT and the indices of the splits are
TEXT, WITHOUT_TEXT = "text model", "- text model"
DEFAULT = ("parts", "baselines", "peers")
CONFIGURATION = ("params.yaml", "src", "benchmarks")  # must be committed before the holdout is scored


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="project folder with data and params.yaml")
    parser.add_argument("--params", type=Path, help="by default the folder's params.yaml")
    parser.add_argument("--tuned", type=Path, help="YAML file whose keys replace those of section stack")
    parser.add_argument("--rows", nargs="+", default=list(DEFAULT), help="names of rows or of groups of rows")
    parser.add_argument("--patch", nargs="+", default=[], metavar="NAME=FILE", help="a row with other parameters")
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="project folders of further networks")
    parser.add_argument("--against", default=OURS, help="the row to compare with")
    parser.add_argument("--seeds", type=int, help="replaces stack.n_seeds")
    parser.add_argument("--shape", choices=list(SHAPES), default="whole", help="a data set made from the posts")
    parser.add_argument("--holdout", action="store_true", help="score scheme `holdout` too")
    parser.add_argument("--log", type=Path, help="of --holdout; by default reports/holdout.log of the folder")
    parser.add_argument("--resamples", type=int, default=1000)
    add_csv_flag(parser)
    args = parser.parse_args(argv)
    file = args.params or args.folder / PARAMS_FILE
    commit = commit_of(REPOSITORY, file.resolve().parent) if args.holdout else ""
    schemes = [FORWARD, HOLDOUT] if args.holdout else [FORWARD]
    project = project_of(args, file, schemes)
    rows = chosen_rows(args, file, project.params)
    found = pl.concat(predicted(project, rows, scheme) for scheme in schemes)
    if args.runs:
        found = with_runs(found, project, args.runs, schemes)
    if TEXT in rows:
        found = with_text(found, load_params("ensemble", EnsembleParams, file))
    if args.against not in found.columns:
        raise ConfigError(f"--against {args.against}: expected one of the rows {', '.join(found.columns[5:])}")
    table = split_table(found.filter(scheme=FORWARD), args.against, args.resamples)
    if args.holdout:
        holdout = compare(found.filter(scheme=HOLDOUT), args.against, resamples=args.resamples)
        log_holdout(args.log or args.folder / "reports/holdout.log", commit, holdout)
        table = pl.concat([table, holdout.with_columns(split=pl.lit(HOLDOUT))])
    for metric in METRICS:
        print(f"\n{metric.upper()}\n{printed(table, metric, args.against)}")
    if args.holdout:
        print(f"\n{mean_and_holdout(table)}")
    write_csv(table.to_dicts(), args.csv)


def project_of(args: argparse.Namespace, file: Path, schemes: Sequence[str]) -> Project:
    """The project with the shape, splits and section stack of the flags."""
    params = load_params("stack", StackParams, file, args.tuned)
    params = replace(params, n_seeds=args.seeds or params.n_seeds)
    project = replace(Project.read(args.folder, file), params=params)
    project = reshaped(project, args.shape, load_params("split", SplitParams, file))
    splits = project.splits.filter(pl.col("scheme").is_in(schemes))
    return with_splits(project, splits, load_params("featurize", FeaturizeParams, file))


def chosen_rows(args: argparse.Namespace, file: Path, params: StackParams) -> dict[str, Row]:
    """The rows of the flags by name, ours first.

    Raises:
        ConfigError: a name is neither a row nor a group.
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
        rows |= {TEXT: text_row(network_text_params(file), text), WITHOUT_TEXT: rows[OURS]}
        rows |= {CONSTANT: simple_row(CONSTANT)}
    return rows


MORE, RUNS_MEAN, RUNS_WEIGHTED = "as many boosters", "mean of the runs", "weighted runs"


def with_runs(rows: pl.DataFrame, project: Project, folders: Sequence[Path], schemes: Sequence[str]) -> pl.DataFrame:
    """The table `rows` of Project.run with a column for each folder's network, and columns that combine the networks.

    Raises:
        DataError: a folder lacks posts.
    """
    networks = [OURS, *map(str, folders)]
    for folder in folders:
        other = Project.read(folder)
        if not set(other.posts["pid"]) >= set(project.posts["pid"]):
            raise DataError("other posts than those of the first run", file=folder, expected="the same data set")
        with_vectors = replace(project, blocks=other.blocks)
        row = {str(folder): stack_row(lambda data: data)}
        found = pl.concat(predicted(with_vectors, row, scheme, folder) for scheme in schemes)
        key = ["scheme", "fold", "pid"]
        rows = rows.join(found.select(*key, str(folder)), on=key, validate="1:1", maintain_order="left")
    rows = rows.with_columns(pl.mean_horizontal(networks).alias(RUNS_MEAN))
    return pl.concat(
        part.with_columns(pl.Series(RUNS_WEIGHTED, part.select(networks).to_numpy() @ _weights(rows, part, networks)))
        for part in rows.partition_by("scheme", "fold", maintain_order=True)
    )


def _weights(rows: pl.DataFrame, part: pl.DataFrame, networks: Sequence[str]) -> Float64Array:
    """(networks,) weights of least MAE on the splits of FORWARD other than that of `part`."""
    others = rows.filter(scheme=FORWARD).join(part, on=["scheme", "fold"], how="anti", maintain_order="left")
    if others.is_empty():
        return np.full(len(networks), 1 / len(networks))
    each, label = others.select(networks).to_numpy(), others["label"].to_numpy()
    return min(weight_grid(len(networks)), key=lambda weights: round(float(np.abs(label - each @ weights).mean()), 12))


def with_text(rows: pl.DataFrame, params: EnsembleParams) -> pl.DataFrame:
    """The table `rows` of Project.run, where OURS and OURS without a part are ensembles with TEXT.

    WITHOUT_TEXT is OURS before that. Every row takes the weights of OURS, chosen as stage `ensemble` does.
    """
    key = rows.select("pid", "scheme", pl.col("fold").cast(pl.Int32))
    text = key.with_columns(prediction=rows[TEXT]).select(list(MEMBER_PREDICTIONS.columns))
    error_scale = pl.lit(None, pl.Float64).alias("error_scale")

    def members(column: str) -> MemberTable:
        models = {MAIN_MODEL: column, CONSTANT: CONSTANT}
        each = [
            key.with_columns(error_scale, seed=pl.lit(0), model=pl.lit(model), prediction=rows[own])
            for model, own in models.items()
        ]
        return MemberTable.of(pl.concat(each), text)

    chosen = chosen_weights(members(OURS).out_of_fold(rows.select("pid", "uid", "label").unique()), params)
    ours_less = [name for name in rows.columns if name == OURS or (name.startswith("- ") and name != WITHOUT_TEXT)]
    found = [
        key.join(members(name).mean(chosen), on=["scheme", "fold", "pid"], how="left", maintain_order="left")
        for name in ours_less
    ]
    return rows.with_columns(one["prediction"].alias(name) for name, one in zip(ours_less, found, strict=True))


def split_table(rows: pl.DataFrame, against: str, resamples: int) -> pl.DataFrame:
    """The result of `compare` for each split of `rows` (of Project.run) and for their mean, in column `split`."""
    splits = [(f"{fold}", rows.filter(fold=fold)) for fold in rows["fold"].unique().sort()]
    parts = [(name, compare(part, against, resamples=resamples)) for name, part in [*splits, (MEAN, rows)]]
    return pl.concat(part.with_columns(split=pl.lit(name)) for name, part in parts)


def printed(table: pl.DataFrame, metric: str, against: str) -> str:
    """A line a system: its score in each split; for their mean and the holdout also the difference to `against`."""
    lines = []
    for (system,), rows in table.filter(metric=metric).group_by("system", maintain_order=True):
        line: dict[str, object] = {"system": system}
        for row in rows.iter_rows(named=True):
            line[row["split"]] = row["score"]
            if row["split"] in (MEAN, HOLDOUT):
                bounds = (row["low"], row["high"])
                difference = f"{signed_interval(row['difference'], *bounds)} {verdict(metric, *bounds)}".strip()
                line[f"{row['split']} - {against}"] = "" if system == against else difference
        lines.append(line)
    return text_table(lines)


def mean_and_holdout(table: pl.DataFrame) -> str:
    """The mean score of ours over the forward splits, its holdout score, and their difference."""
    lines = []
    for metric in METRICS:
        score = dict(table.filter(system=OURS, metric=metric).select("split", "score").iter_rows())
        difference = score[HOLDOUT] - score[MEAN]
        shown = f"mean of the splits {score[MEAN]:.4f}, holdout {score[HOLDOUT]:.4f}, {difference:+.4f}"
        lines.append(f"{metric.upper()}: {shown}")
    return "\n".join(lines)


def commit_of(*repositories: Path) -> str:
    """The commits of the folders' git repositories, each once.

    Raises:
        ConfigError: a repository has uncommitted changes in CONFIGURATION.
    """
    found = []
    for folder in repositories:
        changed = _git(folder, "status", "--porcelain", "--untracked-files=normal", "--", *CONFIGURATION)
        if changed:
            raise ConfigError(f"{folder}: commit the configuration before the holdout is scored:\n{changed}")
        found.append(_git(folder, "rev-parse", "HEAD"))
    return " ".join(dict.fromkeys(found))


def _git(folder: Path, *command: str) -> str:
    done = subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{folder}: the holdout is scored for a commit only; git: {done.stderr.strip()}")
    return done.stdout.strip()


def log_holdout(log: Path, commit: str, rows: pl.DataFrame) -> None:
    """Appends a line a system: time, commit, SRC and MAE of the holdout."""
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
