"""Compares ours with named rows on one or several data sets: SRC, MAE, and intervals of the difference.

    python -m benchmarks.compare                                   # on scheme `forward`, on which choices are made
    python -m benchmarks.compare --folders ../memes ../series ../sketches --seeds 1 --csv systems.csv
    python -m benchmarks.compare --folders memes=../run --rows "- image" metadata peers
    python -m benchmarks.compare --predictions paper=../paper-run before=../old-run --rows constant
    python -m benchmarks.compare --rows choices --against baseline --seeds 1
    python -m benchmarks.compare --rows feature_groups --against "no feature groups" --shape "half the classes"
    python -m benchmarks.compare --patch words=words.yaml          # the stack with the parameters of a file
    python -m benchmarks.compare --rows constant --runs ../seed1 ../lite2    # an ensemble of several networks
    python -m benchmarks.compare --holdout                         # `holdout` too: once, after the last choice

benchmarks.rows lists the rows and their groups; the default is parts, baselines and peers.

Where the graph has run to the end (`dvc repro ensemble`), ours is what it predicted, and ours without a part is its
ensemble, of which the members that have the part are fitted again: see benchmarks.finished. --seeds gives such fits
fewer seeds. Otherwise, and with --params, --tuned, --runs or another --shape, ours is the stack of section stack,
fitted here after `dvc repro embed_posts`, with the text model if there is one; so are the rows without a part. Every
row but these is a single model. --predictions reads those of another run on the same posts and splits, of whatever
commit, and refuses other ones.

A run of --runs is a folder in which `dvc repro embed_posts` has run on the same posts; its vectors go through the stack
of ours. Further rows combine the runs: "as many boosters" (one network, the boosters of all runs: an ensemble must beat
it, for it needs no further network), "mean of the runs", "weighted runs" (for each split the weights of least MAE on
the other splits).

With several data sets the mean over the sets follows: of SRC and of MAE as a share of the constant's. A peer that fails
on a set, or a part that a set's members lack, has no score there and no mean.

An interval is over users, of the difference on the same draws. Predictions are cached in .state/benchmarks of the
folder, by everything that they depend on, code included. --holdout refuses parameters or code that are not committed,
and logs the commit and the scores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks import peers
from benchmarks.comparison_tables import (
    MEAN,
    Comparison,
    mean_and_holdout,
    print_means,
    print_set,
    write_tables,
)
from benchmarks.finished import (
    FEWER_SEEDS,
    TEXT,
    WITHOUT_TEXT,
    FinishedRun,
    Parts,
    joined,
    other_run,
    part_rows,
    same_posts,
    with_finished,
)
from benchmarks.means import mean_over_sets
from benchmarks.rows import (
    OURS,
    Row,
    Rows,
    groups_of_rows,
    params_row,
    part_names,
    patched_row,
    predicted,
    simple_row,
    stack_row,
    text_row,
    with_splits,
)
from benchmarks.systems import METRICS, POST_COLUMNS, SHAPES, WHOLE, Project, compare, reshaped
from benchmarks.tables import add_csv_flag, write_csv
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

DEFAULT = ("parts", "baselines", "peers")
PARTS = "parts"
CONFIGURATION = ("params.yaml", "src", "benchmarks")  # must be committed before the holdout is scored


def main(argv: Sequence[str] | None = None) -> None:
    args = parsed(argv)
    schemes = [FORWARD, HOLDOUT] if args.holdout else [FORWARD]
    folders = named_folders(args.folders)
    parameters = [(args.params or folder / PARAMS_FILE).resolve().parent for folder in folders.values()]
    commit = commit_of(REPOSITORY, *parameters) if args.holdout else ""
    sets = {name: DataSet.read(args, folder, schemes) for name, folder in folders.items()}
    runs = runs_of_sets(named_runs(args.predictions), sets)
    check_rows(args, sets)
    comparison = Comparison(args.against)
    tables: dict[str, pl.DataFrame] = {}
    for name, data_set in sets.items():
        tables[name] = table_of(args, data_set, runs[name], schemes)
        forward = known_rows(tables[name], FORWARD)
        if args.against not in forward.columns:
            found = ", ".join(forward.columns[len(POST_COLUMNS) :])
            raise ConfigError(f"--against {args.against}: expected one of the rows {found}")
        comparison.sets[name] = split_table(forward, args.against, args.resamples)
        if args.holdout:
            rows = known_rows(tables[name], HOLDOUT)
            scores = compare(rows, args.against, resamples=args.resamples, others=others(rows, args.against))
            log_holdout(args.log or folders[name] / "reports/holdout.log", commit, scores)
            scored = scores.with_columns(split=pl.lit(HOLDOUT))
            comparison.sets[name] = pl.concat([comparison.sets[name], scored])
    if len(sets) > 1:
        for scheme in schemes:
            each = {name: known_rows(table, scheme) for name, table in tables.items()}
            references = others(pl.concat(each.values(), how="diagonal"), args.against)
            comparison.means[MEAN if scheme == FORWARD else scheme] = mean_over_sets(
                each, args.against, resamples=args.resamples, others=references
            )
    for name, table in comparison.sets.items():
        print_set(comparison, name)
        if args.holdout:
            print(f"\n{mean_and_holdout(table, OURS)}")
    print_means(comparison)
    write_csv(comparison.lines(), args.csv)
    write_tables(comparison, args.tables)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--folders", nargs="+", default=["."], metavar="[NAME=]FOLDER", help="project folders, one a data set")
    add("--params", type=Path, help="by default the folder's params.yaml")
    add("--tuned", type=Path, help="YAML file whose keys replace those of section stack")
    add("--rows", nargs="+", default=list(DEFAULT), help="names of rows or of groups of rows")
    add("--patch", nargs="+", default=[], metavar="NAME=FILE", help="a row with other parameters")
    add("--predictions", nargs="+", default=[], metavar="NAME=FOLDER", help="a row of another run of the graph")
    add("--runs", type=Path, nargs="+", default=[], help="project folders of further networks")
    add("--against", default=OURS, help="the row to compare with")
    add("--seeds", type=int, help="of each fit; by default stack.n_seeds")
    add("--shape", choices=list(SHAPES), default=WHOLE, help="a data set made from the posts")
    add("--autogluon-python", type=Path, help="Python of an environment with AutoGluon; by default this one")
    add("--autogluon-seconds", type=int, help="of a fit; by default the time of the whole run over its splits")
    add("--workers", type=int, default=os.cpu_count() or 1, help="folds at a time")
    add("--holdout", action="store_true", help="score scheme `holdout` too")
    add("--log", type=Path, help="of --holdout; by default reports/holdout.log of the folder")
    add("--resamples", type=int, default=1000, help="bootstrap draws of users")
    add("--tables", type=Path, metavar="FOLDER", help="write the tables in the form of docs/results")
    add_csv_flag(parser)
    return parser.parse_args(argv)


def named_folders(given: Sequence[str]) -> dict[str, Path]:
    """Folders by name, of [NAME=]FOLDER; without a name that of the folder.

    Raises:
        ConfigError: two have one name.
    """
    found: dict[str, Path] = {}
    for one in given:
        before, sign, after = one.partition("=")
        path = Path(after if sign else one)
        name = before if sign else path.resolve().name
        if name in found:
            raise ConfigError(f"--folders: two have the name {name}: write NAME=FOLDER")
        found[name] = path
    return found


def named_runs(given: Sequence[str]) -> list[tuple[str, Path]]:
    """Names and folders of NAME=FOLDER; one name may have a folder for each data set.

    Raises:
        ConfigError: a name is missing.
    """
    pairs = [one.partition("=") for one in given]
    for name, _, folder in pairs:
        if not name or not folder:
            raise ConfigError(f"--predictions {name or folder}: expected NAME=FOLDER")
    return [(name, Path(folder)) for name, _, folder in pairs]


@dataclass(frozen=True)
class DataSet:
    """A data set and the rows that it can have.

    Args:
        project: with the shape, splits and section stack of the flags.
        file: params.yaml.
        run: what the graph has predicted; None: ours is fitted here.
        parts: of the run.
        groups: of rows that are fitted here, by name.
    """

    project: Project
    file: Path
    run: FinishedRun | None
    parts: Parts
    groups: Mapping[str, Rows]

    @classmethod
    def read(cls, args: argparse.Namespace, folder: Path, schemes: Sequence[str]) -> DataSet:
        """The data set of a project folder."""
        file = args.params or folder / PARAMS_FILE
        params = load_params("stack", StackParams, file, args.tuned)
        params = replace(params, n_seeds=args.seeds or params.n_seeds)
        project = replace(Project.read(folder, file), params=params)
        changed = args.params or args.tuned or args.runs or args.shape != WHOLE
        finished = None if changed else FinishedRun.read(project, args.seeds)
        if args.shape != WHOLE:
            project = reshaped(project, args.shape, load_params("split", SplitParams, file))
        splits = project.splits.filter(pl.col("scheme").is_in(schemes))
        if finished is None:
            project = with_splits(project, splits, load_params("featurize", FeaturizeParams, file))
        groups = groups_of_rows(params, folder, autogluon_of(args, folder))
        return cls(
            replace(project, splits=splits),
            file,
            finished,
            {} if finished is None else finished.parts(project.blocks),
            groups if finished is None else {name: own for name, own in groups.items() if name != PARTS},
        )

    @property
    def known(self) -> set[str]:
        """Names of rows and groups."""
        free = set() if self.run is None else {*self.run.known()}
        rows = {name for own in self.groups.values() for name in own}
        return {OURS, PARTS, *part_names(self.project.params), *free, *self.parts, *self.groups, *rows}


def autogluon_of(args: argparse.Namespace, folder: Path) -> peers.AutoGluon | None:
    """AutoGluon with the time and environment of the flags, if it is one of the rows and installed."""
    if peers.AUTOGLUON not in args.rows or not (args.autogluon_python or peers.installed(peers.AUTOGLUON)):
        return None
    return peers.AutoGluon(args.autogluon_seconds or peers.autogluon_seconds(folder), python=args.autogluon_python)


def check_rows(args: argparse.Namespace, sets: Mapping[str, DataSet]) -> None:
    """Refuses a name that is neither a row nor a group of any data set.

    Raises:
        ConfigError: there is one.
    """
    known = set().union(*(one.known for one in sets.values()))
    unknown = {*args.rows} - known
    if unknown:
        groups = {name for one in sets.values() for name in (*one.groups, PARTS)}
        expected = f"expected groups ({', '.join(sorted(groups))}) or rows ({', '.join(sorted(known - groups))})"
        raise ConfigError(f"--rows {' '.join(sorted(unknown))}: {expected}")


def runs_of_sets(runs: Sequence[tuple[str, Path]], sets: Mapping[str, DataSet]) -> dict[str, dict[str, Path]]:
    """Other runs by the name of their data set, which has the same posts, and of their row.

    Raises:
        DataError: no data set has the posts of a run, or a set has two runs of one name.
    """
    found: dict[str, dict[str, Path]] = {name: {} for name in sets}
    for row, folder in runs:
        own = next((name for name, one in sets.items() if same_posts(folder, one.project)), None)
        if own is None or row in found[own]:
            raise DataError(
                f"--predictions {row}={folder}: " + ("other posts" if own is None else f"{own} has two runs {row}"),
                expected=f"one run on the posts of each data set ({', '.join(sets)})",
            )
        found[own][row] = folder
    return found


def table_of(
    args: argparse.Namespace, data_set: DataSet, runs: Mapping[str, Path], schemes: Sequence[str]
) -> pl.DataFrame:
    """(POST_COLUMNS, a column a row) of the valid posts of the schemes; ours first."""
    project, finished = data_set.project, data_set.run
    parts = {name: own for name, own in data_set.parts.items() if {PARTS, name} & {*args.rows, args.against}}
    rows = chosen_rows(args, data_set) | part_rows(parts)
    found = pl.concat(predicted(project, rows, scheme, workers=args.workers) for scheme in schemes)
    if args.runs:
        found = with_runs(found, project, args.runs, schemes)
    if finished is not None:
        found = with_finished(found, finished, parts)
    elif TEXT in rows:
        found = with_text(found, load_params("ensemble", EnsembleParams, data_set.file))
    for name, folder in runs.items():
        values = joined(found, other_run(folder, project, schemes), f"{name} ({folder})")
        found = found.with_columns(pl.Series(name, values))
    return found


def chosen_rows(args: argparse.Namespace, data_set: DataSet) -> dict[str, Row]:
    """The rows of the flags that are fitted here by name, ours first."""
    groups, params = data_set.groups, data_set.project.params
    every = {name: row for group in groups.values() for name, row in group.items()}
    rows: dict[str, Row] = {}
    for name in (*args.rows, args.against):
        rows |= groups[name] if name in groups else {name: every[name]} if name in every else {}
    for patch in args.patch:
        name, _, path = patch.partition("=")
        rows[name] = patched_row(data_set.file, Path(path))
    if data_set.run is not None:
        return {name: row for name, row in rows.items() if name not in data_set.run.known()}
    rows = {OURS: stack_row(lambda data: data)} | rows
    if args.runs:
        rows[MORE] = params_row(replace(params, n_seeds=(1 + len(args.runs)) * params.n_seeds))
    text = load_params("text_model", TextModelParams, data_set.file)
    if text.epochs:
        rows |= {TEXT: text_row(network_text_params(data_set.file), text), WITHOUT_TEXT: rows[OURS]}
    if text.epochs or len(args.folders) > 1:
        rows |= {CONSTANT: simple_row(CONSTANT)}
    return rows


def known_rows(table: pl.DataFrame, scheme: str) -> pl.DataFrame:
    """The rows of a scheme, without the columns of systems that failed on one of its splits."""
    rows = table.filter(scheme=scheme)
    return rows.drop(name for name in rows.columns[len(POST_COLUMNS) :] if rows[name].is_nan().any())


def others(rows: pl.DataFrame, against: str) -> dict[str, str]:
    """Rows that are compared with another than `against`: parts with the fits of as many seeds."""
    if against != OURS or FEWER_SEEDS not in rows.columns:
        return {}
    return {name: FEWER_SEEDS for name in rows.columns if name.startswith("- ") and name != WITHOUT_TEXT}


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
    references = others(rows, against)
    parts = [
        (name, compare(part, against, resamples=resamples, others=references)) for name, part in [*splits, (MEAN, rows)]
    ]
    return pl.concat(part.with_columns(split=pl.lit(name)) for name, part in parts)


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
