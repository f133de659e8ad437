"""The search over the stack: the parameters of section `stack` of least selection loss on splits of this data set.

Searched are the keys of section stack that are `search`; a key with a value keeps it, in the registered configurations
too. The registered configurations are the first trials.

A trial fits every fold as stage `stack` does (popularity.stack.fit: fit_fold), with less effort: `tune.effort`. The
columns of a fold are encoded once, from the rows of that effort, and shared by the trials. The valid posts of `holdout`
are in no fold of these schemes: they are neither train nor valid rows and are counted in no feature
(popularity.validation), so the search does not bias the scores of `holdout`. On the folds of the search itself, the
scores of the tuned stack are too good.
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
from popularity.core.atomic import atomic_path, fingerprint
from popularity.core.contracts import FOLDS, POSTS, read_table
from popularity.core.errors import ConfigError, ContractError, DataError
from popularity.core.metrics import selection_loss
from popularity.core.resume import code_fingerprint
from popularity.stack.effort import Effort
from popularity.stack.feature_blocks import Blocks, read_blocks
from popularity.stack.fit import EncodedFold, encode_fold, fit_fold
from popularity.stack.matrix import ColumnParams, columns_of_all
from popularity.stack.params import StackParams
from popularity.tuning.configurations import MAX_CANDIDATES, registered
from popularity.tuning.space import Choices, Space, Values
from popularity.tuning.study import Budget, Search, Step
from popularity.validation import rows_of
from popularity.validation.folds import Fold, load_fold

COLUMN_KEYS = ("feature_blocks", "feature_groups", "uid_category")  # of section stack.columns: see columns_of_all
# Keys of section stack that no trial reads: the effort sets the seeds, and the others change no prediction of a fold.
UNREAD_KEYS = ("n_seeds", "schemes", "parallel_folds", "cluster.workers", "cluster.scheduler")
TREND_KEY = "detrend"  # has one value for all members: splits in time cannot tell trends apart
MAX_MEMBERS = 8  # stage stack fits each of them in every fold
MAX_CACHE_BYTES = 4 * 2**30  # of encoded folds, in each worker


@dataclass(frozen=True)
class TuneParams(Budget):
    """Section tune of params.yaml; its n_trials counts the trials after the registered configurations.

    Args:
        candidates: names of the configurations that are the first trials, in their order. A list of its own, because
            neither DVC nor an override keeps the order of a mapping.
        configurations: values by dotted key of section stack, by name; they replace values of `start`.
        n_members: at most so many trials become members of the ensemble.
        schemes: that score a trial; never `holdout`, which measures the ensemble.
        effort: of the fits of a trial.
        start: values by dotted key, of the keys of section stack that are `search`.
        space: axes by dotted key of section stack: see popularity.tuning.space.
    """

    candidates: Annotated[tuple[str, ...], Field(max_length=MAX_CANDIDATES)]
    configurations: dict[str, dict[str, Any]]
    n_members: Annotated[int, Field(ge=1, le=MAX_MEMBERS)]
    schemes: Annotated[tuple[Literal["forward", "group"], ...], Field(min_length=1)]
    effort: Effort
    start: dict[str, Any]
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


def stack_search(
    params: TuneParams, stack: StackParams, searched: Sequence[str], inputs: StackInputs, state: Path | None = None
) -> tuple[Search, partial[StackObjective]]:
    """The search, and a function that makes its objective in any process.

    The study's name depends on parameters, inputs and code, but not on budget and storage: in a storage that is kept (a
    journal, a database) a larger search continues a smaller one. Where there is a single trial there is nothing to
    choose, and the search has none.

    Args:
        params: section tune.
        stack: section stack, with the values of tune.start.
        searched: the keys of section stack that are `search`.
        inputs: files that the stack is fitted on.
        state: folder of the predictions of trials; None: they are not kept.

    Raises:
        ConfigError: the space is not valid, has a key that no trial reads or lacks one that is searched, or a candidate
            is no point of it.
    """
    space, first = check_search(params, stack, searched)
    n_trials = len(first) + (params.n_trials if space.axes else 0)
    budget = Budget(params.seed, n_trials if n_trials > 1 else 0, params.timeout_hours, params.storage)
    key = fingerprint(
        code_fingerprint(),
        asdict(stack),
        {key: params.space[key] for key in space.axes},
        first,
        params.schemes,
        asdict(params.effort),
        params.seed,
        *vars(inputs).values(),
    )
    make = partial(StackObjective, inputs, params.schemes, space, params.effort, state)
    return Search(f"stack-{key}", space, budget, first), make


def check_search(
    params: TuneParams, stack: StackParams, searched: Sequence[str]
) -> tuple[Space[StackParams], dict[str, dict[str, Any]]]:
    """The space of the searched keys, and the registered trials' values on its axes, by name.

    Args:
        params: section tune.
        stack: section stack, with the values of tune.start.
        searched: the keys of section stack that are `search`.

    Raises:
        ConfigError: as `stack_search`.
    """
    if unread := [key for key in params.space if key in UNREAD_KEYS]:
        raise ConfigError(f"tune.space.{unread[0]}: no trial reads stack.{unread[0]}; leave it out of the space")
    if TREND_KEY in (*searched, *params.space):
        raise ConfigError(
            f"stack.{TREND_KEY} is not searched, because splits in time cannot tell trends apart: give it a value "
            "(family) and leave it out of tune.space"
        )
    for key in (*searched, *params.start):
        if key not in params.space:
            raise ConfigError(f"tune.space has no {key}: add a range or choices, or give stack.{key} a value")
    whole = Space.parse("tune.space", params.space, "stack", stack, checked=searched)
    space = replace(whole, axes={key: axis for key, axis in whole.axes.items() if key in searched})
    return space, registered(params.candidates, params.configurations, space, list(params.space))


class StackObjective:
    """The selection loss of a trial: of the valid rows of each fold, mean over folds, then over schemes.

    Trials run in this process, without `stack.cluster`: several workers share a search, not a fit.

    Args:
        inputs: files that the stack is fitted on.
        schemes: that score a trial.
        space: of section stack.
        effort: of the fits.
        state: folder of the predictions; a fit whose predictions are there is not fitted again. None: none are kept.
    """

    def __init__(
        self,
        inputs: StackInputs,
        schemes: Sequence[str],
        space: Space[StackParams],
        effort: Effort,
        state: Path | None = None,
    ) -> None:
        self.inputs, self.schemes, self.space, self.effort, self.state = inputs, schemes, space, effort, state
        self.encoded: dict[str, EncodedFold] = {}

    @cached_property
    def posts(self) -> pl.DataFrame:
        return read_table(self.inputs.posts, POSTS)

    @cached_property
    def blocks(self) -> Blocks:
        return read_blocks(self.inputs.image, self.inputs.text, self.inputs.prototype)

    @cached_property
    def folds(self) -> list[Fold]:
        if found := self.folds_of(self.schemes):
            return found
        raise DataError(
            f"no fold of {', '.join(self.schemes)}, so no trial has a loss",
            file=self.inputs.splits,
            expected="at least one fold of tune.schemes",
            fix="name group in tune.schemes, or switch the search off: tune.candidates [] and tune.n_trials 0",
        )

    def folds_of(self, schemes: Sequence[str]) -> list[Fold]:
        """The folds of some schemes."""
        rows = rows_of(read_table(self.inputs.splits, FOLDS), list(schemes))
        return [load_fold(key, own, self.posts, self.inputs.features) for key, own in rows]

    @property
    def steps(self) -> int:
        return len(self.folds)

    def __call__(self, values: Values) -> Iterator[Step]:
        """A step for each fold; its metrics are the losses of the folds so far."""
        found: dict[str, float] = {}
        for fold in self.folds:
            label, baseline = self.label_of(fold), np.median(fold.label)
            found[f"{fold.key.scheme}_{fold.key.fold}"] = selection_loss(label, self.predict(fold, values), baseline)
            yield Step(mean_loss(found), dict(found))

    def label_of(self, fold: Fold) -> Float64Array:
        """(n,) labels of the valid rows of a fold."""
        label: Float64Array = (
            fold.valid.select("pid")
            .join(self.posts.select("pid", "label"), on="pid", how="left", validate="1:1", maintain_order="left")[
                "label"
            ]
            .to_numpy()
        )
        return label

    def predict(self, fold: Fold, values: Values) -> Float64Array:
        """(n,) predictions of the valid rows of a fold by a trial.

        Args:
            fold: of any scheme, with valid rows.
            values: of the trial on the axes of the space.
        """
        params = self.space.apply(values)
        params = replace(params, cluster=replace(params.cluster, workers=0, scheduler="local"))
        file = None
        if self.state is not None:
            file = self.state / "predictions" / f"{fingerprint(asdict(params))}-{fold.key.file_name}"
        if file is not None and file.exists():
            return pl.read_parquet(file)["prediction"].to_numpy()
        with threadpool_limits(params.num_threads, user_api="blas"):  # more threads would sum in another order
            encoded = self._encode(fold, params)
            if encoded.valid is None:
                raise ContractError(f"{fold.key}: no valid row, so it scores no trial")
            each = fit_fold(encoded, params, self.effort).predict_each(encoded.valid, fold.valid_at)
        prediction: Float64Array = each.mean(axis=0)
        if file is not None:
            with atomic_path(file) as partial_file:
                pl.DataFrame({"prediction": prediction}).write_parquet(partial_file)
        return prediction

    def _encode(self, fold: Fold, params: StackParams) -> EncodedFold:
        """The fold at this effort with the columns of the trial; those of all trials are encoded at once and cached."""
        of_all = replace(params, columns=self._columns_of_all(params.columns))
        key = f"{fingerprint(of_all.detrend, asdict(of_all.columns))}-{fold.key.file_name}"
        encoded = self.encoded.get(key) or encode_fold(self.effort.of_fold(fold, params.seed), self.blocks, of_all)
        # What no longer fits is encoded in every trial; trials take the folds in turn, so nothing else would be kept.
        if sum(one.nbytes for one in {**self.encoded, key: encoded}.values()) <= MAX_CACHE_BYTES:
            self.encoded[key] = encoded
        return encoded.with_columns(params.columns)

    def _columns_of_all(self, columns: ColumnParams) -> ColumnParams:
        """Parameters whose columns hold those of every trial, these among them."""
        each = []
        for key in COLUMN_KEYS:
            axis = self.space.axes.get(f"columns.{key}")
            for choice in axis.choices if isinstance(axis, Choices) else ():
                each.append(replace(columns, **{key: choice}))
        return columns_of_all([*each, columns])


def mean_loss(folds: Mapping[str, float]) -> float:
    """The mean over the folds of a scheme, then over schemes, of losses by `<scheme>_<fold>`: schemes count alike."""
    by_scheme: dict[str, list[float]] = {}
    for name, loss in folds.items():
        by_scheme.setdefault(name.rpartition("_")[0], []).append(loss)
    return float(np.mean([np.mean(own) for own in by_scheme.values()]))
