"""Columns and fits of benchmarks.screen: the columns of each block of a fold are encoded once and kept in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl

from benchmarks.rows import fold_digests
from benchmarks.systems import POST_COLUMNS, FoldData, Project, block_folders
from popularity.core import paths
from popularity.core.arrays import Float64Array, Int64Array
from popularity.core.atomic import atomic_path, fingerprint
from popularity.core.contracts import FOLDS, read_table
from popularity.core.errors import ContractError, DataError
from popularity.core.resume import STATE_ROOT, code_fingerprint
from popularity.ensemble.members import CONSTANT
from popularity.stack import StackParams
from popularity.stack.columns import MatrixColumn
from popularity.stack.effort import Effort
from popularity.stack.feature_blocks import IMAGE_STATISTICS_BLOCK
from popularity.stack.fit import EncodedFold, encode_fold, fit_fold, predict_simple
from popularity.stack.matrix import CategoryEncoder, ColumnParams, FeatureGroup, Matrix, MatrixEncoder
from popularity.validation import rows_of

CODE = ("core", "features", "stack", "target", "ensemble", "validation")  # subpackages that make columns and fits

# Fields of ColumnParams that no column of a block depends on. Any other field counts, a new one too, until it is listed
# here. Feature groups, out-of-fold ridges and the user's category are chosen among the encoded columns.
OF_DENSE = ("n_components", "oof_ridge_folds", "oof_ridge_alphas")
UNREAD: Mapping[str, tuple[str, ...]] = {
    "metadata": ("prototype_parts", "text_vectors", "oof_ridge_character_alphas", *OF_DENSE),
    "image": ("prototype_parts", "text_vectors", "oof_ridge_character_alphas", "category_min_posts"),
    "text": ("prototype_parts", "category_min_posts"),
    "prototype": ("text_vectors", "oof_ridge_character_alphas", "category_min_posts"),
    IMAGE_STATISTICS_BLOCK: (
        "prototype_parts", "text_vectors", "oof_ridge_character_alphas", "category_min_posts", *OF_DENSE,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class FoldTask:
    """A fold of a data set and the stacks that are fitted there.

    Args:
        folder: of the project.
        params: file with section stack; each of `stacks` replaces it.
        scheme: of the fold.
        fold: its number.
        stacks: section stack by the name of the candidate.
        vectors: fingerprint of the folder's vectors and of this file.
    """

    folder: Path
    params: Path
    scheme: str
    fold: int
    stacks: Mapping[str, StackParams]
    vectors: str


def tasks_of(folder: Path, params: Path, scheme: str, stacks: Mapping[str, StackParams]) -> list[FoldTask]:
    """A task a fold of the scheme in the project `folder`."""
    needed = [folder / name for name in (paths.PARAMS, paths.POSTS, paths.SPLITS, paths.FEATURES)]
    missing = [path for path in needed if not path.exists()]
    vectors = () if missing else block_folders(folder)
    missing += [path for path in vectors if not path.exists()]
    if missing:
        raise DataError(
            "missing",
            file=missing[0],
            expected=f"{folder} is a project whose data set has splits, features and vectors",
            fix=f"run `dvc repro embed_posts featurize` in {folder}",
        )
    digest = fingerprint(*vectors, Path(__file__))
    folds = [key.fold for key, _ in rows_of(read_table(folder / paths.SPLITS, FOLDS), [scheme])]
    return [FoldTask(folder, params, scheme, fold, stacks, digest) for fold in folds]


def predictions_of(task: FoldTask) -> pl.DataFrame:
    """(POST_COLUMNS, a column a stack, CONSTANT) of the valid posts of one fold."""
    project = Project.read(task.folder, task.params)
    own = project.splits.filter(scheme=task.scheme, fold=task.fold)
    (data,) = replace(project, splits=own).folds([task.scheme])
    store = Store.of(task.folder, data, task.vectors)
    posts = project.scored(data).with_columns(scheme=pl.lit(task.scheme), fold=pl.lit(task.fold, pl.Int64))
    constant = predict_simple(data.fold, project.params, CONSTANT)["prediction"]
    return posts.select(POST_COLUMNS).with_columns(
        *(pl.Series(name, store.predictions(data, stack)) for name, stack in task.stacks.items()),
        constant.alias(CONSTANT),
    )


@dataclass(frozen=True)
class Store:
    """Columns and predictions of a fold, each made once and kept in a file named by everything that it depends on.

    Args:
        folder: of the files.
        inputs: fingerprint of the fold, the vectors and the code.
    """

    folder: Path
    inputs: str

    @classmethod
    def of(cls, project: Path, data: FoldData, vectors: str) -> Store:
        """The store in .state/benchmarks/screen of the project folder."""
        inputs = fingerprint(*fold_digests(data), vectors, code_fingerprint(*CODE))
        return cls(project / STATE_ROOT / "benchmarks/screen", inputs)

    def predictions(self, data: FoldData, params: StackParams) -> Float64Array:
        """(m,) predictions of the valid rows, fitted with a fixed number of rounds and no inner CV."""
        path = self.folder / "predictions" / f"{fingerprint(self.inputs, asdict(params))}.parquet"
        if not path.exists():
            fixed = replace(params, inner_cv=replace(params.inner_cv, n_splits=0))
            encoded = self.encoded(data, fixed)
            model = fit_fold(encoded, fixed, Effort.full(fixed))
            values = model.predict_each(_valid(encoded), data.fold.valid_at).mean(axis=0)
            with atomic_path(path) as partial:
                pl.DataFrame({"prediction": values}).write_parquet(partial)
        return pl.read_parquet(path)["prediction"].to_numpy()

    def encoded(self, data: FoldData, params: StackParams) -> EncodedFold:
        """The fold with the columns that `encode_fold` gives, without its encoder: no other post can be encoded."""
        blocks = sorted(
            params.columns.feature_blocks, key=lambda block: block != "metadata"
        )  # metadata is always first
        statistics = [IMAGE_STATISTICS_BLOCK] if "image" in params.columns.feature_groups else []
        parts = [self.block(data, block, params) for block in (*blocks, *statistics)]
        train, valid = (_joined(side, params.columns) for side in zip(*parts, strict=True))
        return EncodedFold(
            data.fold, data.blocks.losses, MatrixEncoder((), CategoryEncoder({}), {}, None), train, valid
        )

    def block(self, data: FoldData, block: str, params: StackParams) -> tuple[Matrix, Matrix]:
        """The columns of a block, (n, columns) of the train rows and (m, columns) of the valid rows.

        All groups of the metadata, all ridges and the user's category are among them.
        """
        columns = columns_of_block(params.columns, block)
        read = {name: value for name, value in asdict(columns).items() if name not in UNREAD[block]}
        path = self.folder / "columns" / f"{fingerprint(self.inputs, block, params.detrend, read)}.npz"
        if not path.exists():
            made = encode_fold(data.fold, data.blocks, replace(params, columns=columns))
            described = json.dumps([asdict(column) for column in made.train.columns])
            with atomic_path(path) as partial, partial.open("wb") as stream:
                np.savez(stream, train=made.train.values, valid=_valid(made).values, columns=np.array(described))
        with np.load(path, allow_pickle=False) as kept:
            described_columns = tuple(MatrixColumn(**one) for one in json.loads(str(kept["columns"])))
            sides = [(kept["train"], data.fold.train), (kept["valid"], data.fold.valid)]
        train, valid = (Matrix(values, rows["pid"].to_list(), described_columns) for values, rows in sides)
        return train, valid


def columns_of_block(columns: ColumnParams, block: str) -> ColumnParams:
    """Section stack.columns that encodes this block alone, with all columns that a candidate may choose."""
    groups: tuple[FeatureGroup, ...]
    if block == "metadata":
        groups = tuple(group for group in get_args(FeatureGroup) if group not in ("neighbours", "image"))
    elif block == IMAGE_STATISTICS_BLOCK:
        groups = ("image",)
    else:  # neighbours take long: only where they are wanted
        groups = tuple(group for group in columns.feature_groups if group == "neighbours")
    return replace(
        columns,
        feature_blocks=() if block == IMAGE_STATISTICS_BLOCK else (block,),  # type: ignore[arg-type]
        feature_groups=groups,
        oof_ridge=("image", "text", "characters", "prototype"),
        uid_category=True,
    )


def _joined(parts: Sequence[Matrix], params: ColumnParams) -> Matrix:
    """The columns of some blocks that section stack.columns wants, block after block."""
    kept: list[Int64Array] = [np.flatnonzero([is_wanted(column, params) for column in part.columns]) for part in parts]
    values = np.hstack([part.values[:, positions] for part, positions in zip(parts, kept, strict=True)])
    columns = [part.columns[index] for part, positions in zip(parts, kept, strict=True) for index in positions]
    return Matrix(values, parts[0].pids, tuple(columns))


def is_wanted(column: MatrixColumn, params: ColumnParams) -> bool:
    """Whether section stack.columns has this column of an encoded block."""
    if column.group is not None and column.group not in params.feature_groups:
        return False
    if column.kind == "oof_ridge":
        return column.name.removesuffix("_oof_ridge") in params.oof_ridge
    return params.uid_category or column.name != "uid"


def _valid(encoded: EncodedFold) -> Matrix:
    if encoded.valid is None:
        key = encoded.fold.key
        raise ContractError(f"scheme {key.scheme}, fold {key.fold}: no valid row, so it scores no candidate")
    return encoded.valid
