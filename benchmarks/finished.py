"""Rows of benchmarks.compare from finished runs of the graph: ours, and ours without each part.

Ours is what stage `ensemble` wrote; the baselines and the text model are what their stages wrote. Without a part, each
member of the stack that has the part is fitted again, as stage `stack` fits it; the other members, the text model, the
files of `ensemble.members` and all weights are those of the run. Such fits may take fewer seeds than the run. Then the
part is compared with FEWER_SEEDS, the run's own members with as many seeds, so that only the part differs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.rows import (
    FURTHER_SEEDS,
    OURS,
    Change,
    Row,
    stack_row,
    with_params,
    without_parts,
    without_target_statistics,
)
from benchmarks.systems import POST_COLUMNS, FoldData, Project
from popularity.core import paths
from popularity.core.arrays import Float64Array
from popularity.core.config import load_params
from popularity.core.contracts import BASELINES, MAIN_MODEL, PREDICTIONS, TEXT_MODEL, TIME_SCHEMES, read_table
from popularity.core.errors import DataError
from popularity.ensemble.members import (
    Chosen,
    EnsembleParams,
    MemberTable,
    chosen_weights,
    read_members,
    read_text_predictions,
)
from popularity.stack import StackParams
from popularity.stack.feature_blocks import Blocks
from popularity.stack.members import load_members

logger = logging.getLogger(__name__)

TEXT, WITHOUT_TEXT = "text model", "- text model"
FEWER_SEEDS = "ours, fewer seeds"
TARGET_STATISTICS = "- target statistics"
KEY = ["scheme", "fold", "pid"]
LABEL_DIGITS = 6  # of labels that are compared
Parts = Mapping[str, Mapping[str, Change]]  # by the name of the part, then of the member of the stack
ENCODED = {"image": ("image", "adapted_image"), "text": ("title", "tags", "post", "adapted_text")}  # vectors by kind
FIT = "{part} of {member}"  # the column of a member that is fitted without a part
SAME = "a run on the same posts, labels and splits (data/interim/posts.parquet and splits.parquet)"


@dataclass(frozen=True)
class FinishedRun:
    """A project in which stage ensemble has run.

    Args:
        posts: contract POSTS.
        members: section stack of each member of the stack.
        stack: their predictions and those of the baselines in the splits in time, contract PREDICTIONS.
        text: predictions of the text model, if it is a member, contract MEMBER_PREDICTIONS.
        files: likewise of the members that section ensemble names.
        weights: of the members.
        ensemble: its predictions in the splits in time, contract PREDICTIONS.
        n_seeds: that a member without a part is fitted with.
    """

    posts: pl.DataFrame
    members: Mapping[str, StackParams]
    stack: pl.DataFrame
    text: pl.DataFrame | None
    files: Mapping[str, pl.DataFrame]
    weights: Chosen
    ensemble: pl.DataFrame
    n_seeds: int

    @classmethod
    def read(cls, project: Project, n_seeds: int | None = None) -> FinishedRun | None:
        """The run in the project's folder; None where stage `ensemble` has not run.

        Args:
            project: of the run.
            n_seeds: of fits without a part; None: as many as the run has.

        Raises:
            DataError: the stack has predictions of other members than members.yaml.
        """
        folder = project.folder
        if not (folder / paths.ENSEMBLE_PREDICTIONS).is_file():
            return None
        members_file = folder / paths.TUNING_MEMBERS
        members = load_members(folder / paths.PARAMS, members_file if members_file.is_file() else None)
        stack = read_table(folder / paths.STACK_PREDICTIONS, PREDICTIONS)
        stack = stack.filter(pl.col("scheme").is_in(TIME_SCHEMES))
        found = {*stack["model"].unique()} - {*BASELINES}
        if found != {*members}:
            raise DataError(
                f"members {', '.join(sorted(found))}", file=folder / paths.STACK_PREDICTIONS,
                expected=f"those of {members_file}: {', '.join(members)}", fix="dvc repro ensemble",
            )  # fmt: skip
        seeds = next(iter(members.values())).n_seeds
        params = load_params("ensemble", EnsembleParams, folder / paths.PARAMS)
        has_text = params.text_model and (folder / paths.TEXT_MODEL_PREDICTIONS).is_dir()
        text = read_text_predictions(folder / paths.TEXT_MODEL_PREDICTIONS) if has_text else None
        files = read_members(params.members, folder / paths.MEMBER_FILES)
        table = MemberTable.of(stack, text, files)
        weights = chosen_weights(table.out_of_fold(project.posts), params)
        ensemble = read_table(folder / paths.ENSEMBLE_PREDICTIONS, PREDICTIONS)
        ensemble = ensemble.filter(pl.col("scheme").is_in(TIME_SCHEMES), model=MAIN_MODEL)
        own = table.mean(weights)
        if not own.select(PREDICTIONS.key).equals(ensemble.select(PREDICTIONS.key)):
            raise DataError(
                "other rows than those of the stack's predictions", file=folder / paths.ENSEMBLE_PREDICTIONS,
                expected=f"the ensemble of {folder / paths.STACK_PREDICTIONS}", fix=f"dvc repro ensemble in {folder}",
            )  # fmt: skip
        if not np.allclose(own["prediction"], ensemble["prediction"]):
            logger.warning("%s: another ensemble than this code makes; parts are left out of that of this code", folder)
        return cls(
            project.posts,
            members,
            stack,
            text if TEXT_MODEL in table.names else None,
            files,
            weights,
            ensemble,
            min(n_seeds or seeds, seeds),
        )

    def parts(self, blocks: Blocks) -> Parts:
        """How the fold of each member that has a part changes without it."""
        found: dict[str, dict[str, Change]] = {}
        for member, own in self.members.items():
            params = replace(own, n_seeds=self.n_seeds)
            changes: dict[str, Change] = {
                name: partial(with_params, params=changed)
                for name, changed in without_parts(params).items()
                if name != FURTHER_SEEDS
            }
            changes[TARGET_STATISTICS] = partial(_without_target_statistics, params=params)
            for kind in params.columns.feature_blocks:
                encoders = sorted(block.partition(".")[2] for block in blocks.blocks_of(kind))
                for name in encoders if len(encoders) > 1 else ():
                    changes[f"- {kind} by {name}"] = partial(_without_encoder, params=params, kind=kind, encoder=name)
            for part, change in changes.items():
                found.setdefault(part, {})[member] = change
        return found

    def known(self) -> dict[str, pl.DataFrame]:
        """(scheme, fold, pid, prediction) of all rows that need no fit, by name."""
        found = {OURS: self.ensemble}
        if self.n_seeds < next(iter(self.members.values())).n_seeds:
            found[FEWER_SEEDS] = self.ensemble_of({})
        if self.text is not None:
            found |= {TEXT: self.text, WITHOUT_TEXT: MemberTable.of(self.stack, None, self.files).mean(self.weights)}
        found |= {name: self.stack.filter(model=name) for name in BASELINES}
        return {name: table.group_by(KEY).agg(pl.mean("prediction")) for name, table in found.items()}

    def ensemble_of(self, fits: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
        """Predictions of the ensemble with `n_seeds` seeds, in which other fits take the place of some members.

        Args:
            fits: (scheme, fold, pid, prediction) by the name of the member.
        """
        first = next(iter(self.members.values()))
        seeds = first.each_seed[: self.n_seeds]
        own = self.stack.filter(~pl.col("model").is_in([*fits, *BASELINES]) & pl.col("seed").is_in(seeds))
        own = own.group_by(*KEY, "model").agg(pl.mean("prediction"))
        others = [table.with_columns(model=pl.lit(member)) for member, table in fits.items()]
        constant = self.stack.filter(model="constant")
        tables = [table.select(*KEY, "model", "prediction") for table in (own, constant, *others)]
        joined = pl.concat(tables).with_columns(seed=pl.lit(0, pl.Int64), error_scale=pl.lit(None, pl.Float64))
        return MemberTable.of(joined, self.text, self.files).mean(self.weights)


def part_rows(parts: Parts) -> dict[str, Row]:
    """The fits that parts need: each member without each of its parts, by the name of their column."""
    return {
        FIT.format(part=part, member=member): stack_row(change, name=part if " by " in part else OURS)
        for part, changes in parts.items()
        for member, change in changes.items()
    }


def _without_target_statistics(data: FoldData, params: StackParams) -> FoldData:
    return without_target_statistics(with_params(data, params))


def _without_encoder(data: FoldData, params: StackParams, kind: str, encoder: str) -> FoldData:
    gone = {f"{name}.{encoder}" for name in ENCODED[kind]}
    vectors = {name: block for name, block in data.blocks.vectors.items() if name not in gone}
    return replace(with_params(data, params), blocks=replace(data.blocks, vectors=vectors))


def with_finished(found: pl.DataFrame, run: FinishedRun, parts: Parts) -> pl.DataFrame:
    """The table of Project.run with the run's own rows first, and a column a part in place of its members' fits.

    Args:
        found: with the columns of `part_rows`.
        run: the finished run.
        parts: of the run.

    Raises:
        DataError: the run has no prediction for a row of `found`.
    """
    typed = found.with_columns(pl.col("fold").cast(pl.Int32))
    columns = run.known()
    for part, changes in parts.items():
        fits = {member: typed.select(*KEY, prediction=FIT.format(part=part, member=member)) for member in changes}
        columns[part] = run.ensemble_of(fits)
    others = found.drop(part_rows(parts)).columns[len(POST_COLUMNS) :]
    made = {name: joined(found, table, f"{name} of the run") for name, table in columns.items()}
    first = [name for name in made if name.startswith("- ") or name == FEWER_SEEDS]
    order = [OURS, *first, *(name for name in made if name in (TEXT, *BASELINES)), *others]
    return found.with_columns(pl.Series(name, values) for name, values in made.items()).select(*POST_COLUMNS, *order)


def other_run(folder: Path, project: Project, schemes: Sequence[str]) -> pl.DataFrame:
    """(scheme, fold, pid, prediction) of the run in `folder`: of stage ensemble or, before there was one, of stack.

    The code of that run may be older than the contracts of today.

    Args:
        folder: of the other run.
        project: the run that it is compared with.
        schemes: of the splits.

    Raises:
        DataError: a file is missing, or posts, labels or splits differ.
    """
    files = [folder / paths.ENSEMBLE_PREDICTIONS, folder / paths.STACK_PREDICTIONS]
    predictions = next((file for file in files if file.is_file()), files[0])
    for file in (folder / paths.POSTS, folder / paths.SPLITS, predictions):
        if not file.is_file():
            raise DataError("missing", file=file, expected=SAME, fix=f"run `dvc repro ensemble` in {folder}")
    labels = pl.col("label").round(LABEL_DIGITS)
    own_posts, other_posts = (
        table.filter(split="train").select("pid", labels).sort("pid")
        for table in (project.posts, pl.read_parquet(folder / paths.POSTS))
    )
    _check_equal(own_posts, other_posts, folder / paths.POSTS)
    own_splits, other_splits = (
        table.filter(pl.col("scheme").is_in(schemes) & (pl.col("role") != "excluded"))
        .select("scheme", pl.col("fold").cast(pl.Int32), "pid", "role")
        .sort("scheme", "fold", "pid")
        for table in (project.splits, pl.read_parquet(folder / paths.SPLITS))
    )
    _check_equal(own_splits, other_splits, folder / paths.SPLITS)
    own = pl.read_parquet(predictions).filter(pl.col("scheme").is_in(schemes), model=MAIN_MODEL)
    return own.group_by(KEY).agg(pl.mean("prediction"))


def same_posts(folder: Path, project: Project) -> bool:
    """Whether the run in `folder` has the posts of the project."""
    file = folder / paths.POSTS
    if not file.is_file():
        raise DataError("missing", file=file, expected=SAME, fix=f"run `dvc repro ensemble` in {folder}")
    return set(pl.read_parquet(file, columns=["pid"])["pid"]) == set(project.posts["pid"])


def _check_equal(own: pl.DataFrame, other: pl.DataFrame, file: Path) -> None:
    """Raises DataError with the first row that only one of the tables has."""
    for one, two, which in ((own, other, "lacks"), (other, own, "has")):
        differing = one.join(two, on=one.columns, how="anti", maintain_order="left")
        if differing.height:
            row = ", ".join(f"{name} {value}" for name, value in differing.row(0, named=True).items())
            raise DataError(f"{which} {row} and {differing.height - 1} more rows", file=file, expected=SAME)


def joined(rows: pl.DataFrame, table: pl.DataFrame, what: str) -> Float64Array:
    """(n,) predictions of `table` (scheme, fold, pid, prediction) in the order of `rows`, a column of which is `fold`.

    Raises:
        DataError: a row has no prediction.
    """
    keyed = table.select(*KEY, "prediction").with_columns(pl.col("fold").cast(pl.Int64))
    found = rows.select(KEY).join(keyed, on=KEY, how="left", validate="1:1", maintain_order="left")
    missing = found.filter(pl.col("prediction").is_null())
    if missing.height:
        scheme, fold, pid, _ = missing.row(0)
        raise DataError(f"{what}: no prediction for post {pid} of {scheme}, fold {fold}", expected=SAME)
    return found["prediction"].to_numpy()
