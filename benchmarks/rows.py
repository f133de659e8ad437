"""The rows of benchmarks.compare and benchmarks.schemes: systems by name, in groups.

    parts           ours without each of its parts
    baselines       metadata alone, the user's mean label, a constant
    peers           the installed systems of benchmarks.peers, but AutoGluon
    autogluon       AutoGluon, if it is installed or --autogluon-python names its environment
    choices         the baseline stack (raw label, sample weights that halve in a year, LightGBM alone) and variants
    feature_groups  the stack with no, one, all, and all but one of the groups of `stack.columns.feature_groups`
    members         the members that stage tune found

A row is a change of the fold or of section stack, or a system of its own. To add a row, add a name to its group.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import polars as pl

from benchmarks import autogluon_fit, peers, systems
from benchmarks.systems import POST_COLUMNS, FoldData, Project, System, block_folders, ours
from popularity import ensemble, features, stack, target, text_model, validation
from popularity.core import paths
from popularity.core.arrays import Float64Array
from popularity.core.atomic import atomic_directory, atomic_path, fingerprint
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import IMAGES, USERS, read_table
from popularity.core.resume import STATE_ROOT
from popularity.core.tensors import torch_threads
from popularity.encoders.sharding import start_processes
from popularity.encoders.text import EmbedTextParams
from popularity.features import FeaturizeParams, featurize
from popularity.features.columns import FeatureColumn
from popularity.stack import StackParams
from popularity.stack.fit import predict_simple
from popularity.stack.matrix import FeatureGroup
from popularity.stack.members import load_members
from popularity.text_model import TextModelParams
from popularity.text_model.model import Labels, fit

logger = logging.getLogger(__name__)

OURS, BASELINE, NO_FEATURE_GROUPS = "ours", "baseline", "no feature groups"
FURTHER_SEEDS = "- further seeds"
FEATURE_GROUPS: tuple[FeatureGroup, ...] = get_args(FeatureGroup)
USER_TARGET: FeatureGroup = "user_target"
Change = Callable[[FoldData], FoldData]


@dataclass(frozen=True)
class Row:
    """A system of the table.

    Args:
        system: predicts the valid rows of a fold.
        inputs: everything in the fold that changes the predictions.
        code: files whose changes change the predictions.
        is_peer: another's system, which may fail on a data set.
        all_cores: it uses all cores itself, so no other fold is fitted meanwhile.
    """

    system: System
    inputs: Callable[[FoldData], tuple[object, ...]]
    code: tuple[Path, ...]
    is_peer: bool = False
    all_cores: bool = False


Rows = dict[str, Row]


def groups_of_rows(
    params: StackParams, folder: Path = Path(), autogluon: peers.AutoGluon | None = None
) -> dict[str, Rows]:
    """All rows whose libraries are installed, by group and name.

    Args:
        params: section stack of ours.
        folder: project folder; group `members` exists if stage tune has run there.
        autogluon: AutoGluon, where it is installed.
    """
    groups = {
        "parts": {name: params_row(changed) for name, changed in without_parts(params).items()}
        | {"- target statistics": stack_row(without_target_statistics)},
        "baselines": {"metadata": stack_row(metadata_alone)} | {name: simple_row(name) for name in SIMPLE},
        "peers": {name: peer_row(name, system) for name, system in peers.PEERS.items() if peers.installed(name)},
        "choices": {name: params_row(changed) for name, changed in choices(params).items()},
        "feature_groups": {name: feature_groups_row(groups) for name, groups in feature_group_rows().items()},
    }
    if autogluon is not None:
        groups[peers.AUTOGLUON] = {peers.AUTOGLUON: autogluon_row(autogluon)}
    members = folder / paths.TUNING_MEMBERS
    if members.is_file():
        found = load_members(folder / PARAMS_FILE, members)
        groups["members"] = {f"member {name}": params_row(params) for name, params in found.items()}
    return groups


SIMPLE = ("user_mean", "constant")


def without_parts(params: StackParams) -> dict[str, StackParams]:
    """Section stack of ours without each of the parts that it has."""
    columns = params.columns
    changed = {
        f"- {block}": replace(params, columns=_without_block(columns, block)) for block in columns.feature_blocks[1:]
    }
    changed |= {
        f"- feature group: {group}": replace(
            params, columns=replace(columns, feature_groups=_other(columns.feature_groups, group))
        )
        for group in columns.feature_groups
    }
    if len(columns.feature_groups) > 1:
        changed["- feature groups"] = replace(params, columns=replace(columns, feature_groups=()))
    changed |= {
        "- oof_ridge": replace(params, columns=replace(columns, oof_ridge=())),
        "- characters": replace(params, columns=replace(columns, oof_ridge=_other(columns.oof_ridge, "characters"))),
        "- recency": replace(params, sample_weight_half_life_days=0.0),
        "- history_dropout": replace(params, history_dropout=0.0),
        "- row_selection": replace(params, row_selection=replace(params.row_selection, fraction=1.0)),
        "- detrend": replace(params, detrend="none"),
        **{f"- {name}": replace(params, learners=_other(params.learners, name) or (name,)) for name in params.learners},
        FURTHER_SEEDS: replace(params, n_seeds=1),
    }
    return {name: other for name, other in changed.items() if other != params}


def part_names(params: StackParams) -> set[str]:
    """The names of the parts that some section stack can have."""
    columns = replace(
        params.columns,
        feature_blocks=("metadata", "image", "text", "prototype"),
        feature_groups=FEATURE_GROUPS,
        oof_ridge=("image", "text", "characters", "prototype"),
    )
    every = replace(
        params,
        n_seeds=2,
        columns=columns,
        history_dropout=0.5,
        row_selection=replace(params.row_selection, fraction=0.5),
        sample_weight_half_life_days=1.0,
        detrend="linear",
        learners=("lightgbm", "extra_trees", "catboost", "linear"),
    )
    return {*without_parts(every), "- target statistics"}


def _without_block(columns: Any, block: str) -> Any:
    return replace(
        columns, feature_blocks=_other(columns.feature_blocks, block), oof_ridge=_other(columns.oof_ridge, block)
    )


def _other(names: Sequence[str], name: str) -> Any:
    return tuple(other for other in names if other != name)


def choices(params: StackParams) -> Mapping[str, StackParams]:
    """The baseline stack, and stacks that differ from it in trend, target, sample weights or learners."""
    baseline = replace(
        params, detrend="none", sample_weight_half_life_days=365.0, learners=("lightgbm",), target_transform="none"
    )
    detrended = replace(baseline, detrend="linear")
    found = {
        BASELINE: baseline,
        "rank_gauss": replace(baseline, target_transform="rank_gauss"),
        "detrend": detrended,
        "detrend, rank_gauss": replace(detrended, target_transform="rank_gauss"),
        "detrend, no recency": replace(detrended, sample_weight_half_life_days=0.0),
        "linear alone": replace(detrended, learners=("linear",)),
        "lightgbm + linear": replace(detrended, learners=("lightgbm", "linear")),
    }
    if find_spec("catboost") is not None:
        found |= {
            "catboost": replace(detrended, learners=("catboost",)),
            "lightgbm + catboost": replace(detrended, learners=("lightgbm", "catboost")),
            "catboost + linear": replace(detrended, learners=("catboost", "linear")),
            "all three": replace(detrended, learners=("lightgbm", "catboost", "linear")),
        }
    return found


def feature_group_rows() -> dict[str, tuple[FeatureGroup, ...]]:
    """Values of `stack.columns.feature_groups` by the name of the row."""
    return {
        NO_FEATURE_GROUPS: (),
        **{f"only {group}": (group,) for group in FEATURE_GROUPS},
        "all feature groups": FEATURE_GROUPS,
        **{f"all but {group}": tuple(other for other in FEATURE_GROUPS if other != group) for group in FEATURE_GROUPS},
    }


def feature_groups_row(groups: tuple[FeatureGroup, ...]) -> Row:
    """The stack with these feature groups and no other."""

    def change(data: FoldData) -> FoldData:
        return with_params(data, replace(data.params, columns=replace(data.params.columns, feature_groups=groups)))

    return stack_row(change)


def params_row(params: StackParams) -> Row:
    """The stack with other parameters."""
    return stack_row(partial(with_params, params=params))


def patched_row(params: Path, patch: Path) -> Row:
    """The stack with the parameters of file `params`, some replaced by those of file `patch`."""
    return params_row(load_params("stack", StackParams, params, patch))


def with_params(data: FoldData, params: StackParams) -> FoldData:
    """The fold with another section stack."""
    return replace(data, params=params)


def without_target_statistics(data: FoldData) -> FoldData:
    """The fold without columns of past labels of users and classes; feature group USER_TARGET leaves too."""
    columns = map(FeatureColumn.named, data.fold.train.columns)
    named = [column.name for column in columns if column.fitted_on_labels and column.group in (None, USER_TARGET)]
    return replace(data, fold=replace(data.fold, train=data.fold.train.drop(named), valid=data.fold.valid.drop(named)))


def metadata_alone(data: FoldData) -> FoldData:
    """The fold of the stage's baseline `metadata`."""
    columns = replace(data.params.columns, feature_blocks=("metadata",), oof_ridge=(), feature_groups=())
    return with_params(
        data, replace(data.params, columns=columns, row_selection=replace(data.params.row_selection, fraction=1.0))
    )


def stack_row(change: Change, system: System = ours, name: str = OURS) -> Row:
    """The stack on a changed fold, or another `system` that reads the fold's features alone, called `name`."""

    def inputs(data: FoldData) -> tuple[object, ...]:
        changed = change(data)
        return (name, *fold_digests(changed), asdict(changed.params))

    code = [file for module in (stack, target, ensemble, validation, systems) for file in code_of(module)]
    return Row(lambda data: system(change(data)), inputs, tuple(code))


def simple_row(name: str) -> Row:
    """The baseline `user_mean` or `constant` of the stage."""
    return stack_row(
        lambda data: data, lambda data: predict_simple(data.fold, data.params, name)["prediction"].to_numpy(), name
    )


def peer_row(name: str, system: System) -> Row:
    """A peer; it reads the posts, the blocks, and the keys seed and num_threads of section stack."""
    return Row(
        system,
        lambda data: (name, digest(data.posts), data.params.seed, data.params.num_threads),
        code_of(peers),
        is_peer=True,
    )


def autogluon_row(system: peers.AutoGluon) -> Row:
    """AutoGluon; it reads the posts and the key seed of section stack."""
    return Row(
        system,
        lambda data: (peers.AUTOGLUON, system.seconds, system.presets, digest(data.posts), data.params.seed),
        (*code_of(peers), *code_of(autogluon_fit)),
        is_peer=True,
        all_cores=True,
    )


def text_row(encoder: EmbedTextParams, params: TextModelParams) -> Row:
    """The fine-tuned text model of stage text_model alone; it reads the fold's features and labels."""

    def system(data: FoldData) -> Float64Array:
        with torch_threads(params.num_threads):
            device = start_processes().device
            fitted = fit(data.fold.train, Labels.of(data.fold), encoder, params, device)
            return fitted.predict(data.fold.valid, data.fold.valid_at)

    def inputs(data: FoldData) -> tuple[object, ...]:
        return ("text model", *fold_digests(data), asdict(encoder), asdict(replace(params, parallel_folds=1)))

    return Row(system, inputs, (*code_of(text_model), *code_of(target)))


def fold_digests(data: FoldData) -> list[str]:
    """A digest of each table and array of the fold."""
    parts = [part for part in vars(data.fold).values() if isinstance(part, pl.DataFrame | np.ndarray)]
    return [str(data.fold.collected_at), *(digest(pl.DataFrame(part)) for part in parts)]


def digest(table: pl.DataFrame) -> str:
    """SHA-256 of the table's values, names and types."""
    stream = io.BytesIO()
    table.write_parquet(stream, compression="uncompressed", statistics=False)
    return hashlib.sha256(stream.getvalue()).hexdigest()


def code_of(module: ModuleType) -> tuple[Path, ...]:
    """The files of a package without its subpackages, or the file of a module."""
    file = Path(str(module.__file__))
    return tuple(sorted(file.parent.glob("*.py"))) if file.name == "__init__.py" else (file,)


@dataclass(frozen=True)
class PredictionCache:
    """Predictions of a row, computed once and stored in a file that is named by everything they depend on.

    Args:
        folder: of the files.
        vectors: fingerprint of the blocks.
    """

    folder: Path
    vectors: str

    @classmethod
    def below(cls, folder: Path) -> PredictionCache:
        """The cache in .state/benchmarks of the project `folder`."""
        return cls(folder / STATE_ROOT / "benchmarks/compare", fingerprint(*block_folders(folder)))

    def __call__(self, row: Row, data: FoldData) -> Float64Array:
        path = self.folder / f"{fingerprint(row.inputs(data), self.vectors, *row.code)}.parquet"
        if not path.exists():
            with atomic_path(path) as partial_path:
                pl.DataFrame({"prediction": row.system(data)}).write_parquet(partial_path)
        return pl.read_parquet(path)["prediction"].to_numpy()


def predicted(
    project: Project, rows: Mapping[str, Row], scheme: str, folder: Path | None = None, *, workers: int = 1
) -> pl.DataFrame:
    """(POST_COLUMNS, a column a row) of the valid posts of a scheme; predictions are cached in the project's folder.

    A column of a peer that failed on a fold holds NaN there.

    Args:
        project: the posts, splits, features and vectors.
        rows: by the name of their column.
        scheme: of the splits.
        folder: the project folder that made the vectors, if not the project's own.
        workers: folds at a time.
    """
    cache = PredictionCache.below(project.folder if folder is None else folder)
    one_by_one, together = (
        {name: partial(_attempted, cache, name, row) for name, row in rows.items() if row.all_cores is alone}
        for alone in (True, False)
    )
    found = project.run(together, scheme, workers)
    if one_by_one:
        found = found.hstack(project.run(one_by_one, scheme).select(list(one_by_one)))
    return found.select(*POST_COLUMNS, *rows)


def _attempted(cache: PredictionCache, name: str, row: Row, data: FoldData) -> Float64Array:
    """The predictions of a row; NaN where a peer fails, which may have bounds of its own."""
    try:
        return cache(row, data)
    except Exception as error:
        if not row.is_peer:
            raise
        logger.warning("%s fails in %s: %s", name, data.fold.key, error)
        return np.full(data.fold.valid.height, np.nan)


def with_splits(project: Project, splits: pl.DataFrame, params: FeaturizeParams) -> Project:
    """The project with other `splits` of its posts, and the features for them, which are computed once and cached."""
    images = read_table(project.folder / "data/interim/images.parquet", IMAGES)
    images = images.join(project.posts.select("pid"), on="pid", how="semi", maintain_order="left")
    users = read_table(project.folder / "data/interim/users.parquet", USERS)
    key = fingerprint(asdict(params), *map(digest, (project.posts, images, splits, users)), *code_of(features))
    folder = project.folder / STATE_ROOT / "benchmarks/features" / key
    if not folder.exists():
        with atomic_directory(folder) as out:
            featurize(project.posts, images, splits, params, out, users)
    return replace(project, splits=splits, features=folder)
