"""The table of all cuts in time: ours, ours without each part, every peer and baseline, in SRC and MAE.

Ours is the stack merged with the text model, as the graph does it; so is ours without a part of the stack.

    python -m benchmarks.cuts                                   # the cuts of `matched`, by which all is chosen
    python -m benchmarks.cuts --folder ../run --systems "- image" metadata catboost_2020 --out cuts.csv
    python -m benchmarks.cuts --shape "a third of the users"    # of another data set, made from its posts
    python -m benchmarks.cuts --last                            # the cut `report` too: once, after the last choice

Splits and features are made here from the parameters, so that none is older than they are. An interval is over users,
of the difference to `ours` on the same draws. Finished predictions are kept in .state/benchmarks of the folder, by
everything that they depend on, code included. --last refuses parameters or code that are not committed, and writes the
commit and what it found to a log. Needs `dvc repro embed_posts`; peers as in benchmarks.peers.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl

from benchmarks import peers, systems
from benchmarks.shapes import SHAPES, reshaped
from benchmarks.systems import METRICS, Array, FoldData, Project, System, compare, ours
from popularity import features, stack, text_model
from popularity.config import PARAMS_FILE, load_params
from popularity.encoders.text import EmbedTextParams
from popularity.errors import ConfigError
from popularity.features import FeaturizeParams, featurize
from popularity.files import STATE_ROOT, atomic_directory, atomic_path, fingerprint
from popularity.manifest import REPOSITORY
from popularity.schema import IMAGES, TEXT_PREDICTIONS, USERS, read_table
from popularity.splits import SplitParams
from popularity.stack import StackParams
from popularity.stack.fit import predict_simple
from popularity.stack.merging import CONSTANT, MODEL, fitted_shares, merged
from popularity.stack.parallel import torch_threads
from popularity.stage import run
from popularity.text_model import TextModelParams
from popularity.text_model.model import fit

OURS, MEAN, LAST = "ours", "mean", "last"
TEXT, WITHOUT_TEXT = "the text model", "- text model"
CONFIGURATION = ("params.yaml", "src", "benchmarks")  # what must be committed before the last cut is scored
Change = Callable[[FoldData], FoldData]


@dataclass(frozen=True)
class Row:
    """A system of the table.

    Args:
        system: what it predicts for the scored rows of a fold.
        inputs: what of the fold that depends on.
        code: files that it depends on too.
    """

    system: System
    inputs: Callable[[FoldData], tuple[object, ...]]
    code: tuple[Path, ...]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="project folder with data and params.yaml")
    parser.add_argument("--params", type=Path, help="by default the folder's params.yaml")
    parser.add_argument("--tuned", type=Path, help="best_params.yaml, whose keys replace those of section stack")
    parser.add_argument("--systems", nargs="+", help="rows beside ours; by default all")
    parser.add_argument("--shape", choices=list(SHAPES), default="whole", help="see benchmarks.shapes")
    parser.add_argument("--last", action="store_true", help="score the cut `report` too")
    parser.add_argument("--log", type=Path, help="of --last; reports/last_cut.log of the folder")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="CSV of everything")
    args = parser.parse_args(argv)
    params = args.params or args.folder / PARAMS_FILE
    commit = commit_of(REPOSITORY, params.resolve().parent) if args.last else ""
    project = replace(Project.read(args.folder, params), params=load_params("stack", StackParams, params, args.tuned))
    project = reshaped(project, args.shape, load_params("split", SplitParams, params))
    schemes = ["matched", "report"] if args.last else ["matched"]
    splits = project.splits.filter(pl.col("scheme").is_in(schemes))
    project = with_splits(project, splits, load_params("featurize", FeaturizeParams, params))
    rows = table_rows(project.params)
    told = load_params("text_model", TextModelParams, params)
    if told.epochs:
        rows |= {TEXT: text_row(load_params("embed_text", EmbedTextParams, params), told), WITHOUT_TEXT: rows[OURS]}
    if unknown := set(args.systems or ()) - set(rows):
        raise ConfigError(f"--systems {' '.join(sorted(unknown))}: expected of {', '.join(rows)}")
    kept = Kept.below(args.folder)
    wanted = {OURS, CONSTANT, TEXT, WITHOUT_TEXT, *(args.systems or rows)}
    chosen = {name: partial(kept, row) for name, row in rows.items() if name in wanted}
    found = pl.concat(project.run(chosen, scheme) for scheme in schemes)
    if told.epochs:
        found = with_text(found, project.params.text_shares)
    table = cut_table(found.filter(scheme="matched"), args.resamples)
    if args.last:
        last = compare(found.filter(scheme="report"), OURS, resamples=args.resamples)
        log_last(args.log or args.folder / "reports/last_cut.log", commit, last)
        table = pl.concat([table, last.with_columns(cut=pl.lit(LAST))])
    for metric in METRICS:
        print(f"\n{metric.upper()}\n{printed(table, metric)}")
    if args.last:
        print(f"\n{forecast(table)}")
    if args.out:
        with atomic_path(args.out) as partial_out:
            table.write_csv(partial_out)


def table_rows(params: StackParams) -> dict[str, Row]:
    """Every row by name: ours, ours without each part, baselines, installed peers."""
    without = {name: partial(_with, params=changed) for name, changed in without_parts(params).items()}
    return {
        OURS: stack_row(lambda data: data),
        **{name: stack_row(change) for name, change in without.items()},
        "- histories": stack_row(without_histories),
        "metadata": stack_row(metadata_alone),
        **{name: simple_row(name) for name in ("user_mean", "constant")},
        **{name: peer_row(name, system) for name, system in peers.PEERS.items() if peers.installed(name)},
    }


def without_parts(params: StackParams) -> dict[str, StackParams]:
    """Ours without each of its parts, as far as it has them."""
    columns = params.columns
    changed = {f"- {block}": replace(params, columns=_without_block(columns, block)) for block in columns.blocks[1:]}
    changed |= {
        f"- signals: {group}": replace(params, columns=replace(columns, signals=_other(columns.signals, group)))
        for group in columns.signals
    }
    changed |= {
        "- heads": replace(params, columns=replace(columns, heads=())),
        "- characters": replace(params, columns=replace(columns, heads=_other(columns.heads, "characters"))),
        "- recency": replace(params, half_life_days=0.0),
        "- level": replace(params, level="none"),
        **{f"- {name}": replace(params, learners=_other(params.learners, name) or (name,)) for name in params.learners},
        "- further seeds": replace(params, seeds=1),
    }
    return {name: other for name, other in changed.items() if other != params}


def _without_block(columns: Any, block: str) -> Any:
    return replace(columns, blocks=_other(columns.blocks, block), heads=_other(columns.heads, block))


def _other(names: Sequence[str], name: str) -> Any:
    return tuple(other for other in names if other != name)


def _with(data: FoldData, params: StackParams) -> FoldData:
    return replace(data, params=params)


def without_histories(data: FoldData) -> FoldData:
    """The fold without past labels of users and classes."""
    named = [column for column in data.fold.fit.columns if "history" in column]
    return replace(data, fold=replace(data.fold, fit=data.fold.fit.drop(named), score=data.fold.score.drop(named)))


def metadata_alone(data: FoldData) -> FoldData:
    """The fold as the stage's baseline `metadata` sees it."""
    columns = replace(data.params.columns, blocks=("metadata",), heads=(), signals=())
    return _with(data, replace(data.params, columns=columns, keep=replace(data.params.keep, share=1.0)))


def stack_row(change: Change, system: System = ours, name: str = OURS) -> Row:
    """The stack, or another system of that name and of the fold's features, on a changed fold."""

    def inputs(data: FoldData) -> tuple[object, ...]:
        changed = change(data)
        return (name, *fold_digests(changed), asdict(replace(changed.params, text_shares=(0.0,))))

    return Row(lambda data: system(change(data)), inputs, (*code_of(stack), *code_of(systems)))


def simple_row(name: str) -> Row:
    """The baseline `user_mean` or `constant` of the stage."""
    return stack_row(
        lambda data: data, lambda data: predict_simple(data.fold, data.params, name)["prediction"].to_numpy(), name
    )


def peer_row(name: str, system: System) -> Row:
    """A peer reads the posts and the blocks, and of the parameters seed and threads."""
    return Row(system, lambda data: (name, digest(data.posts), data.params.seed, data.params.threads), code_of(peers))


def text_row(encoder: EmbedTextParams, params: TextModelParams) -> Row:
    """The text model by itself, which sees the fold's features and labels."""

    def system(data: FoldData) -> Array:
        with torch_threads(params.threads):
            fitted = fit(data.fold.fit, data.fold.label, data.fold.posted_at, encoder, params)
            return fitted.predict(data.fold.score, data.fold.scored_at)

    def inputs(data: FoldData) -> tuple[object, ...]:
        return (TEXT, *fold_digests(data), asdict(encoder), asdict(replace(params, folds_at_once=1)))

    return Row(system, inputs, code_of(text_model))


def with_text(rows: pl.DataFrame, candidates: Sequence[float]) -> pl.DataFrame:
    """`rows` of Project.run, OURS and what lacks a part of it merged with TEXT; WITHOUT_TEXT is OURS as it was.

    Every row takes the shares of OURS, chosen among `candidates` as the stage does.
    """
    facts = rows.select("pid", "scheme", pl.col("cut").cast(pl.Int32).alias("fold"))
    told = facts.with_columns(prediction=rows[TEXT]).select(list(TEXT_PREDICTIONS.columns))

    def as_stack(**columns: str) -> pl.DataFrame:
        return pl.concat(
            facts.with_columns(seed=pl.lit(0), model=pl.lit(model), prediction=rows[column])
            for model, column in columns.items()
        )

    labels = rows.select("pid", "label").unique()
    shares = fitted_shares(as_stack(**{MODEL: OURS, CONSTANT: CONSTANT}), told, labels, candidates)
    ours_less = [name for name in rows.columns if name == OURS or (name.startswith("- ") and name != WITHOUT_TEXT)]
    return rows.with_columns(
        merged(as_stack(**{MODEL: name}), told, shares)["prediction"].alias(name) for name in ours_less
    )


def fold_digests(data: FoldData) -> list[str]:
    """Of the fold's tables and arrays."""
    parts = [part for part in vars(data.fold).values() if isinstance(part, pl.DataFrame | np.ndarray)]
    return [digest(pl.DataFrame(part)) for part in parts]


def digest(table: pl.DataFrame) -> str:
    """Of a table's content."""
    stream = io.BytesIO()
    table.write_parquet(stream, compression="uncompressed", statistics=False)
    return hashlib.sha256(stream.getvalue()).hexdigest()


def code_of(module: ModuleType) -> tuple[Path, ...]:
    """The files of a package, or the file of a module."""
    file = Path(str(module.__file__))
    return tuple(sorted(file.parent.glob("*.py"))) if file.name == "__init__.py" else (file,)


@dataclass(frozen=True)
class Kept:
    """Asks a system where nothing is kept of it.

    Args:
        folder: of what is kept.
        vectors: fingerprint of the blocks.
    """

    folder: Path
    vectors: str

    @classmethod
    def below(cls, folder: Path) -> Kept:
        """In .state/benchmarks of the project `folder`."""
        blocks = [folder / "data/embeddings" / name for name in ("image", "text", "prototype")]
        return cls(folder / STATE_ROOT / "benchmarks/cuts", fingerprint(*blocks))

    def __call__(self, row: Row, data: FoldData) -> Array:
        path = self.folder / f"{fingerprint(row.inputs(data), self.vectors, *row.code)}.parquet"
        if not path.exists():
            with atomic_path(path) as partial_path:
                pl.DataFrame({"prediction": row.system(data)}).write_parquet(partial_path)
        return pl.read_parquet(path)["prediction"].to_numpy()


def with_splits(project: Project, splits: pl.DataFrame, params: FeaturizeParams) -> Project:
    """The project with other `splits` of its posts and the features of their rows, which are made once."""
    images = read_table(project.folder / "data/interim/images.parquet", IMAGES)
    images = images.join(project.posts.select("pid"), on="pid", how="semi", maintain_order="left")
    users = read_table(project.folder / "data/interim/users.parquet", USERS)
    key = fingerprint(asdict(params), *map(digest, (project.posts, images, splits, users)), *code_of(features))
    folder = project.folder / STATE_ROOT / "benchmarks/features" / key
    if not folder.exists():
        with atomic_directory(folder) as out:
            featurize(project.posts, images, splits, params, out, users)
    return replace(project, splits=splits, features=folder)


def cut_table(rows: pl.DataFrame, resamples: int) -> pl.DataFrame:
    """What `compare` says of each cut of `rows` (of Project.run), and of their mean: a row a system, metric and cut."""
    cuts = [(f"{cut}", rows.filter(cut=cut)) for cut in rows["cut"].unique().sort()]
    parts = [compare(part, OURS, resamples=resamples).with_columns(cut=pl.lit(name)) for name, part in cuts]
    return pl.concat([*parts, compare(rows, OURS, resamples=resamples).with_columns(cut=pl.lit(MEAN))])


def printed(table: pl.DataFrame, metric: str) -> str:
    """A line a system: its score in each cut, then their mean and the last cut with the difference to ours."""
    own = table.filter(metric=metric)
    lines = []
    for (system,), rows in own.group_by("system", maintain_order=True):
        line: dict[str, object] = {"system": system}
        for row in rows.iter_rows(named=True):
            line[row["cut"]] = _number(row["score"])
            if row["cut"] in (MEAN, LAST):
                bounds = ", ".join(_number(row[bound], "+") for bound in ("low", "high"))
                line[f"{row['cut']} - ours"] = (
                    f"{_number(row[f'minus {OURS}'], '+')} [{bounds}] {_verdict(row)}".strip()
                )
        lines.append(line)
    with pl.Config(
        tbl_rows=-1, tbl_cols=-1, tbl_width_chars=250, fmt_str_lengths=80, tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
    ):  # fmt: skip
        return str(pl.DataFrame(lines))


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}"


def _verdict(row: Mapping[str, Any]) -> str:
    """Whether the interval of the difference to ours leaves out 0, and on which side."""
    if row["low"] is None or row["low"] <= 0 <= row["high"]:
        return ""
    return "better" if (row["low"] > 0) == (row["metric"] == "src") else "worse"


def forecast(table: pl.DataFrame) -> str:
    """What the cuts promised of ours against what the last cut gave."""
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
            told = "  ".join(f"{name.upper()} {_number(value)}" for name, value in zip(METRICS, values, strict=True))
            stream.write(f"{when}  commit {commit}  {system}  {told}\n")


if __name__ == "__main__":
    run(main)
