"""Chooses among a few registered configurations of section `stack`, for this data set.

Data sets differ in size, classes, users and trend, so the best configuration of one need not be the best of another.
Each candidate is fitted as stage `stack` fits, on the forward splits, which hold no valid row of `holdout`. The choice
is the first candidate whose loss is within one standard error of the best, so the default stands first.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field
from ruamel.yaml import YAML
from tqdm import tqdm

from popularity.core.arrays import Float64Array, Int64Array
from popularity.core.atomic import atomic_path, fingerprint, write_json, write_text
from popularity.core.config import Section
from popularity.core.contracts import FOLDS, POSTS, PREDICTIONS, FoldKey, read_table, write_table
from popularity.core.errors import ConfigError
from popularity.core.metrics import fold_rows, loss_of_scores, mean_absolute_error, selection_loss, spearman
from popularity.core.parallel import ordered_map
from popularity.evaluation.bootstrap import resample_folds
from popularity.stack import Blocks, StackParams, catboost, read_blocks
from popularity.stack.effort import Effort
from popularity.stack.fit import fit_and_predict
from popularity.tuning.objective import StackInputs
from popularity.tuning.space import Space, nested
from popularity.validation import rows_of
from popularity.validation.folds import load_fold

logger = logging.getLogger(__name__)

SCHEME = "forward"  # never holdout, which measures the choice
MAX_CANDIDATES = 8  # the more candidates, the more the best of them owes to chance
EFFORT = Effort(n_seeds=1, max_train_rows=0, learning_rate_factor=1.0)  # of a fit
N_RESAMPLES = 1000  # bootstrap draws of users: a standard error is then known to some 2 %
CHOICE_FILE = "choice.yaml"
SCORES = {
    "configuration": pl.String,
    "fold": pl.Int64,
    "posts": pl.Int64,
    "src": pl.Float64,
    "mae": pl.Float64,
    "mae_of_constant": pl.Float64,
    "value": pl.Float64,
}


@dataclass(frozen=True)
class SelectParams(Section):
    """Section select of params.yaml.

    Args:
        candidates: names of the configurations that are fitted, the default first; if there are none, nothing is
            chosen. A list of its own, because neither DVC nor an override keeps the order of a mapping.
        configurations: values by dotted key of section stack, by name.
    """

    candidates: Annotated[tuple[str, ...], Field(max_length=MAX_CANDIDATES)]
    configurations: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Candidate:
    """A configuration of section stack.

    Args:
        name: in select.configurations.
        keys: the values that it replaces, by dotted key.
        stack: section stack with these values.
    """

    name: str
    keys: Mapping[str, Any]
    stack: StackParams


@dataclass(frozen=True)
class CandidatePredictions:
    """Predictions of the candidates for the n valid rows of all forward splits, split after split.

    Args:
        names: of the candidates, the default first.
        folds: fold number of each split.
        fold_index: (n,) position of the row's split in `folds`.
        labels: (n,).
        users: (n,) index of the post's user.
        baseline: (n,) median label of the train rows of the row's split.
        predictions: (n, candidates).
    """

    names: Sequence[str]
    folds: Sequence[int]
    fold_index: Int64Array
    labels: Float64Array
    users: Int64Array
    baseline: Float64Array
    predictions: Float64Array


@dataclass(frozen=True)
class Choice:
    """The chosen candidate.

    Args:
        chosen: index of the chosen candidate.
        best: index of the candidate of least loss.
        values: (candidates,) losses.
        differences: (candidates,) of the losses to the least one.
        errors: (candidates,) standard errors of these differences.
    """

    chosen: int
    best: int
    values: Float64Array
    differences: Float64Array
    errors: Float64Array


def candidates_of(params: SelectParams, stack: StackParams) -> list[Candidate]:
    """The candidates, in their order; configurations that are no candidates are checked too.

    Args:
        params: section select.
        stack: section stack.

    Raises:
        ConfigError: a candidate is no configuration or is listed twice, or section stack does not take a key or value.
    """
    space: Space[StackParams] = Space("stack", stack, {})
    known = {
        name: Candidate(name, keys, space.apply(keys, f"select.configurations.{name}"))
        for name, keys in params.configurations.items()
    }
    for index, name in enumerate(params.candidates):
        if name not in known:
            raise ConfigError(
                f"select.candidates.{index}: found {name!r}; expected a name in select.configurations: "
                f"{', '.join(known) or 'there is none'}"
            )
        if name in params.candidates[:index]:
            raise ConfigError(f"select.candidates.{index}: {name!r} is listed before; expected each name once")
    return [known[name] for name in params.candidates]


def predict_candidates(candidates: Sequence[Candidate], inputs: StackInputs, state: Path) -> CandidatePredictions:
    """Predictions of every candidate in every forward split, fitted with one seed.

    Args:
        candidates: the default first.
        inputs: files that the stack is fitted on.
        state: folder of finished fits, which are not fitted again.

    Raises:
        ConfigError: CatBoost is one of the learners and is not installed.
    """
    if any("catboost" in candidate.stack.learners for candidate in candidates):
        catboost.library()
    posts, blocks = read_table(inputs.posts, POSTS), read_blocks(inputs.image, inputs.text, inputs.prototype)
    splits = list(rows_of(read_table(inputs.splits, FOLDS), [SCHEME]))
    stacks = [EFFORT.apply(candidate.stack) for candidate in candidates]
    keys = [fingerprint(asdict(stack)) for stack in stacks]
    fits = dict(zip(keys, stacks, strict=True))  # two configurations of the same values share a fit
    work = partial(_predictions, posts, blocks, inputs.features, state)
    tasks = [(split, fit) for split in splits for fit in fits.items()]
    named = [(fold, key) for fold, _ in splits for key in fits]
    parallel, threads = min(stack.parallel_fits for stack in stacks), max(stack.num_threads for stack in stacks)
    results = tqdm(ordered_map(work, tasks, parallel=parallel, threads=threads), "select", len(tasks), unit="fit")
    found = dict(zip(named, results, strict=True))
    tables: list[pl.DataFrame] = []
    for fold_index, (fold, roles) in enumerate(splits):
        labelled = roles.join(posts.select("pid", "uid", "label"), on="pid", how="left", validate="1:1").sort("pid")
        baseline = labelled.filter(role="train")["label"].median()
        valid = labelled.filter(role="valid")
        table = valid.select("pid", "uid", "label", fold_index=fold_index, baseline=baseline)
        for index, key in enumerate(keys):
            column = found[fold, key].select("pid", pl.col("prediction").alias(str(index)))
            table = table.join(column, on="pid", how="left", validate="1:1", maintain_order="left")
        tables.append(table)
    rows = pl.concat(tables)
    return CandidatePredictions(
        names=[candidate.name for candidate in candidates],
        folds=[fold.fold for fold, _ in splits],
        fold_index=rows["fold_index"].to_numpy().astype(np.int64),
        labels=rows["label"].to_numpy(),
        users=np.unique(rows["uid"].to_numpy(), return_inverse=True)[1].astype(np.int64),
        baseline=rows["baseline"].to_numpy(),
        predictions=rows.select(str(index) for index in range(len(candidates))).to_numpy(),
    )


def _predictions(
    posts: pl.DataFrame,
    blocks: Blocks,
    features: Path,
    state: Path,
    task: tuple[tuple[FoldKey, pl.DataFrame], tuple[str, StackParams]],
) -> pl.DataFrame:
    """Predictions (contract PREDICTIONS) of one split by one (fingerprint, section stack)."""
    (fold, rows), (key, stack) = task
    finished = state / f"{key}-{fold.file_name}"
    if not finished.exists():
        write_table(fit_and_predict(load_fold(fold, rows, posts, features), blocks, stack), finished, PREDICTIONS)
    return read_table(finished, PREDICTIONS)


def scores_of(predicted: CandidatePredictions) -> pl.DataFrame:
    """SRC, MAE and selection loss of every candidate in every split, a table of SCORES.

    An undefined SRC (for example of equal predictions, or of a single post) is null and counts as 0. If the median has
    no error, in a split of one or two posts, the loss takes the MAE as it is.
    """
    rows: list[tuple[Any, ...]] = []
    for index, name in enumerate(predicted.names):
        for fold, own in zip(predicted.folds, fold_rows(len(predicted.labels), predicted.fold_index), strict=True):
            label, prediction, baseline = (
                predicted.labels[own],
                predicted.predictions[own, index],
                predicted.baseline[own],
            )
            src, mae = spearman(label, prediction), mean_absolute_error(label, prediction)
            if src is None:
                logger.warning("%s: SRC is not defined on split %d: it counts as 0", name, fold)
            value = selection_loss(label, prediction, baseline)
            rows.append((name, fold, len(own), src, mae, mean_absolute_error(label, baseline), value))
    return pl.DataFrame(rows, schema=SCORES, orient="row")


def resampled_losses(predicted: CandidatePredictions, seed: int) -> Float64Array:
    """(N_RESAMPLES, candidates) losses on draws of users, the same for all candidates; NaN if a split has no post."""
    both = np.column_stack([predicted.predictions, predicted.baseline])
    drawn = resample_folds(
        predicted.labels, both, predicted.users, resamples=N_RESAMPLES, seed=seed, folds=predicted.fold_index
    )
    value = loss_of_scores(drawn["mae"][..., :-1], drawn["mae"][..., -1:], drawn["src"][..., :-1])
    return np.asarray(value.mean(axis=0))


def choose(values: Float64Array, draws: Float64Array) -> Choice:
    """The choice by the one-standard-error rule: the first candidate within one standard error of the best.

    The standard error is that of the paired difference, draw by draw. Candidates err on the same posts, so a draw of
    users changes them alike, and errors of single losses would hide real differences. The error covers the choice of
    users; it does not cover the differences between splits.

    Args:
        values: (candidates,) losses, of the default first.
        draws: (draws, candidates) losses; draws with a NaN are left out.
    """
    best = int(np.argmin(values))
    differences = values - values[best]
    paired = draws - draws[:, [best]]
    paired = paired[np.isfinite(paired).all(axis=1)]
    errors = paired.std(axis=0, ddof=1) if len(paired) > 1 else np.zeros(len(values))
    return Choice(int(np.flatnonzero(differences <= errors)[0]), best, values, differences, errors)


def write_selection(
    candidates: Sequence[Candidate], predicted: CandidatePredictions | None, seed: int, folder: Path
) -> Candidate | None:
    """The chosen candidate, None if there are none; writes the choice and its scores into `folder`.

    choice.yaml: {stack: {...}}, the keys of the choice, a patch of params.yaml; empty if it has no key.
    scores.csv: SCORES, a row for each candidate and split.
    selection.json: the names of the chosen and the best candidate, and of every candidate keys, mean SRC and MAE over
    the splits, loss, difference to the best and its standard error.

    Args:
        candidates: the default first.
        predicted: their predictions; None if there are no candidates.
        seed: of the draws of users.
        folder: of the files.
    """
    if predicted is None:
        scores, summary, choice = pl.DataFrame(schema=SCORES), [], None
    else:
        scores = scores_of(predicted)
        means = scores.group_by("configuration", maintain_order=True).agg(
            pl.col("src").fill_null(0.0).mean(), pl.mean("mae", "value")
        )
        choice = choose(means["value"].to_numpy(), resampled_losses(predicted, seed))
        summary = [
            {
                "name": candidate.name, "keys": candidate.keys, "src": src, "mae": mae, "value": value,
                "difference": difference, "standard_error": error,
            }
            for candidate, (_, src, mae, value), difference, error in zip(
                candidates, means.iter_rows(), choice.differences.tolist(), choice.errors.tolist(), strict=True
            )
        ]  # fmt: skip
    chosen = candidates[choice.chosen] if choice else None
    with atomic_path(folder / CHOICE_FILE) as partial:
        YAML().dump({"stack": nested(chosen.keys)} if chosen and chosen.keys else {}, partial)
    write_text(folder / "scores.csv", scores.write_csv())
    write_json(
        folder / "selection.json",
        {
            "scheme": SCHEME,
            "draws": N_RESAMPLES,
            "chosen": chosen.name if chosen else None,
            "best": candidates[choice.best].name if choice else None,
            "configurations": summary,
        },
    )
    for one in summary:
        logger.info(
            "%s %-12s SRC %.4f  MAE %.4f  loss %.4f  difference to the best %+.4f, standard error %.4f",
            "->" if chosen and one["name"] == chosen.name else "  ",
            *(one[name] for name in ("name", "src", "mae", "value", "difference", "standard_error")),
        )
    return chosen
