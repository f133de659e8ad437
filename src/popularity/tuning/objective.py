"""The search over the stack: the parameters of section `stack` of least selection loss on `forward` and `group`.

A trial fits every fold as stage `stack` does (popularity.stack.fit: fit_fold), with less effort: `tune.effort`. The
columns of a fold are encoded once and shared by the trials. The valid posts of `holdout` are in no fold of these
schemes: they are neither train nor valid rows and are counted in no feature (popularity.validation), so the search does
not bias the scores of `holdout`. On the folds of the search itself, the scores of the tuned stack are too good.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from pydantic import Field
from threadpoolctl import threadpool_limits

from popularity.core import paths
from popularity.core.arrays import Float64Array
from popularity.core.atomic import fingerprint
from popularity.core.contracts import FOLDS, POSTS, FoldKey, read_table
from popularity.core.errors import ConfigError, ContractError
from popularity.core.metrics import selection_loss
from popularity.core.parallel import ordered_map
from popularity.core.resume import code_fingerprint
from popularity.stack.effort import Effort
from popularity.stack.feature_blocks import Blocks, read_blocks
from popularity.stack.fit import EncodedFold, encode_fold, fit_fold
from popularity.stack.params import StackParams
from popularity.tuning.space import Choices, Space, Values
from popularity.tuning.study import Budget, Search, Step
from popularity.validation import rows_of
from popularity.validation.folds import Fold, load_fold

BLOCKS_KEY = "columns.feature_blocks"
# Keys of section stack that no trial reads: the effort sets the seeds, and the others change no prediction of a fold.
UNREAD_KEYS = ("n_seeds", "schemes", "text_model_weights", "parallel_folds", "cluster.workers", "cluster.scheduler")
MAX_CACHE_BYTES = 4 * 2**30  # of encoded folds, in each worker


@dataclass(frozen=True)
class TuneParams(Budget):
    """Section tune of params.yaml.

    Args:
        schemes: that score a trial; never `holdout`, which measures the tuned stack.
        effort: of the fits of a trial.
        space: axes by dotted key of section stack: see popularity.tuning.space.
    """

    schemes: Annotated[tuple[Literal["forward", "group"], ...], Field(min_length=1)]
    effort: Effort
    space: dict[str, Any]


@dataclass(frozen=True)
class StackInputs:
    """The files that the stack is fitted on: outs of earlier stages."""

    posts: Path
    splits: Path
    features: Path
    image: Path
    text: Path
    prototype: Path

    @classmethod
    def below(cls, folder: Path) -> StackInputs:
        """The files in the project `folder`, at their places of dvc.yaml."""
        return cls(
            folder / paths.POSTS,
            folder / paths.SPLITS,
            folder / paths.FEATURES,
            folder / paths.STACK_IMAGE_EMBEDDINGS,
            folder / paths.STACK_TEXT_EMBEDDINGS,
            folder / paths.PROTOTYPE_EMBEDDINGS,
        )


@dataclass(frozen=True)
class Losses:
    """Selection losses of a stack.

    Args:
        value: mean over the folds of a scheme, then over schemes: every scheme counts alike.
        folds: by `<scheme>_<fold>`.
    """

    value: float
    folds: Mapping[str, float]

    @classmethod
    def of(cls, folds: Mapping[str, float]) -> Losses:
        """The losses of the folds, by `<scheme>_<fold>`, and their mean."""
        by_scheme: dict[str, list[float]] = {}
        for name, loss in folds.items():
            by_scheme.setdefault(name.rpartition("_")[0], []).append(loss)
        return cls(float(np.mean([np.mean(own) for own in by_scheme.values()])), dict(folds))


def stack_search(params: TuneParams, stack: StackParams, inputs: StackInputs) -> tuple[Search, partial[StackObjective]]:
    """The search, and a function that makes its objective in any process.

    The study's name depends on parameters, inputs and code, but not on budget and storage: in a storage that is kept (a
    journal, a database) a larger search continues a smaller one. Without trials the space is not read, so that section
    stack may hold any value.

    Args:
        params: section tune.
        stack: section stack, where the search starts.
        inputs: files that the stack is fitted on.

    Raises:
        ConfigError: the space is not valid, or has a key that no trial reads.
    """
    if unread := [key for key in params.space if key in UNREAD_KEYS]:
        raise ConfigError(f"tune.space.{unread[0]}: no trial reads stack.{unread[0]}; leave it out of the space")
    space = Space.parse("tune.space", params.space if params.n_trials else {}, "stack", stack)
    budget = Budget(params.seed, params.n_trials, params.timeout_hours, params.storage)
    key = fingerprint(
        code_fingerprint(),
        asdict(stack),
        params.space,
        params.schemes,
        asdict(params.effort),
        params.seed,
        *vars(inputs).values(),
    )
    make = partial(StackObjective, inputs, params.schemes, space, params.effort)
    return Search(f"stack-{key}", space, budget), make


class StackObjective:
    """The selection loss of a trial: of the valid rows of each fold, mean over folds, then over schemes.

    Trials run in this process, without `stack.cluster`: several workers share a search, not a fit.

    Args:
        inputs: files that the stack is fitted on.
        schemes: that score a trial.
        space: of section stack.
        effort: of the fits.
    """

    def __init__(self, inputs: StackInputs, schemes: Sequence[str], space: Space[StackParams], effort: Effort) -> None:
        self.inputs, self.schemes, self.space, self.effort = inputs, schemes, space, effort
        self.encoded: dict[str, EncodedFold] = {}

    @cached_property
    def posts(self) -> pl.DataFrame:
        return read_table(self.inputs.posts, POSTS)

    @cached_property
    def blocks(self) -> Blocks:
        return read_blocks(self.inputs.image, self.inputs.text, self.inputs.prototype)

    @cached_property
    def folds(self) -> list[Fold]:
        rows = rows_of(read_table(self.inputs.splits, FOLDS), list(self.schemes))
        return [load_fold(key, own, self.posts, self.inputs.features) for key, own in rows]

    @property
    def steps(self) -> int:
        return len(self.folds)

    def __call__(self, values: Values) -> Iterator[Step]:
        """A step for each fold; its metrics are the losses of the folds so far."""
        params = self.space.apply(values)
        params = replace(params, cluster=replace(params.cluster, workers=0, scheduler="local"))
        found: dict[str, float] = {}
        for fold in self.folds:
            with threadpool_limits(params.num_threads, user_api="blas"):  # more threads would sum in another order
                encoded = self._encode(fold, params)
                found[f"{fold.key.scheme}_{fold.key.fold}"] = fold_loss(encoded, self.posts, params, self.effort)
            losses = Losses.of(found)
            yield Step(losses.value, dict(losses.folds))

    def _encode(self, fold: Fold, params: StackParams) -> EncodedFold:
        """The fold with the columns of the trial; the blocks of all trials are encoded at once and cached."""
        axis = self.space.axes.get(BLOCKS_KEY)
        choices = axis.choices if isinstance(axis, Choices) else (params.columns.feature_blocks,)
        every = tuple(dict.fromkeys(block for one in choices for block in one))
        params_of_all = replace(params, columns=replace(params.columns, feature_blocks=every))
        key = fingerprint(fold.key.file_name, params.detrend, asdict(params_of_all.columns))
        encoded = self.encoded.get(key) or encode_fold(fold, self.blocks, params_of_all)
        # What no longer fits is encoded in every trial; trials take the folds in turn, so nothing else would be kept.
        if sum(one.nbytes for one in {**self.encoded, key: encoded}.values()) <= MAX_CACHE_BYTES:
            self.encoded[key] = encoded
        return encoded.with_blocks(params.columns.feature_blocks)


def losses_of_stage(inputs: StackInputs, schemes: Sequence[str], params: StackParams) -> Losses:
    """The selection losses of the stack that stage `stack` fits with section stack `params`, without the text model."""
    posts = read_table(inputs.posts, POSTS)
    blocks = read_blocks(inputs.image, inputs.text, inputs.prototype)
    folds = list(rows_of(read_table(inputs.splits, FOLDS), list(schemes)))

    def loss(task: tuple[FoldKey, pl.DataFrame]) -> float:
        fold = load_fold(*task, posts, inputs.features)
        return fold_loss(encode_fold(fold, blocks, params), posts, params, Effort.full(params))

    found = ordered_map(loss, folds, parallel=params.parallel_fits, threads=params.num_threads)
    names = [f"{key.scheme}_{key.fold}" for key, _ in folds]
    return Losses.of(dict(zip(names, found, strict=True)))


def fold_loss(encoded: EncodedFold, posts: pl.DataFrame, params: StackParams, effort: Effort) -> float:
    """The selection loss of the valid rows of a fold.

    Args:
        encoded: the fold and its columns.
        posts: contract POSTS, with the labels of the valid rows.
        params: section stack.
        effort: of the fit.
    """
    fold = encoded.fold
    if encoded.valid is None:
        raise ContractError(f"scheme {fold.key.scheme}, fold {fold.key.fold}: no valid row, so it scores no trial")
    model = fit_fold(encoded, params, effort)
    predicted = model.predict_each(encoded.valid, fold.valid_at).mean(axis=0)
    labels = fold.valid.select("pid").join(
        posts.select("pid", "label"), on="pid", how="left", validate="1:1", maintain_order="left"
    )
    label: Float64Array = labels["label"].to_numpy()
    return selection_loss(label, predicted, np.median(fold.label))
