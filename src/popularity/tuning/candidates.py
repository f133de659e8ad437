"""Which of a few registered configurations of section `stack` this data set is fitted with.

Data sets differ in size, classes, users and drift: what is best on one is a bet on another. So each candidate is fitted
as the stage `stack` fits, on the cuts of `matched`, pseudo-tests inside the training posts; no row that `report` scores
is in any of them. Of those that the scored posts cannot tell from the best, the simplest is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field
from ruamel.yaml import YAML
from tqdm import tqdm

from popularity.core.atomic import atomic_path, fingerprint, write_json, write_text
from popularity.core.config import Section
from popularity.core.contracts import FOLDS, POSTS, PREDICTIONS, FoldKey, read_table, write_table
from popularity.core.errors import ConfigError
from popularity.core.metrics import fold_rows, loss_of_scores, mean_absolute_error, selection_loss, spearman
from popularity.core.parallel import ordered_map
from popularity.evaluation.bootstrap import resample_folds
from popularity.stack import Blocks, StackParams, catboost, read_blocks
from popularity.stack.fit import fit_and_predict
from popularity.tuning.objective import StackInputs
from popularity.tuning.space import Space, nested
from popularity.validation import rows_of
from popularity.validation.folds import load_fold

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]
SCHEME = "forward"  # never report, which says what the choice is worth
MOST = 8  # candidates: the more there are, the more the best of them owes to chance
DRAWS = 1000  # of users: a standard error is then known to some 2 %
CHOICE = "choice.yaml"
SCORES = {
    "configuration": pl.String,
    "cut": pl.Int64,
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
        candidates: names of those that are tried, simplest first; with none nothing is chosen. A list of its own,
            because neither DVC nor an override heeds the order of a mapping.
        configurations: by name, values by dotted key of section stack.
    """

    candidates: Annotated[tuple[str, ...], Field(max_length=MOST)]
    configurations: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Candidate:
    """A configuration.

    Args:
        name: in select.configurations.
        keys: what it replaces, by dotted key.
        stack: section stack with these values.
    """

    name: str
    keys: Mapping[str, Any]
    stack: StackParams


@dataclass(frozen=True)
class Judged:
    """The scored rows of all cuts, one cut below the other, and what each candidate says of them.

    Args:
        names: of the candidates, simplest first.
        cuts: fold of each cut.
        place: (n,) its place in `cuts`.
        labels: (n,).
        users: (n,) index of the post's user.
        constant: (n,) median label of the fit rows of its cut.
        predictions: (n, candidates).
    """

    names: Sequence[str]
    cuts: Sequence[int]
    place: npt.NDArray[np.int64]
    labels: Array
    users: npt.NDArray[np.int64]
    constant: Array
    predictions: Array


@dataclass(frozen=True)
class Choice:
    """Who is taken.

    Args:
        chosen: place of the candidate.
        best: place of the one of least value.
        values: (candidates,) their values.
        differences: (candidates,) to the best one's.
        errors: (candidates,) standard errors of these differences.
    """

    chosen: int
    best: int
    values: Array
    differences: Array
    errors: Array


def candidates_of(params: SelectParams, stack: StackParams) -> list[Candidate]:
    """The candidates in their order; configurations that are not tried are checked as well.

    Raises:
        ConfigError: a candidate that is no configuration or is listed twice, or a key or value that section stack does
            not take.
    """
    space: Space[StackParams] = Space("stack", stack, {})
    known = {
        name: Candidate(name, keys, space.apply(keys, f"select.configurations.{name}"))
        for name, keys in params.configurations.items()
    }
    for place, name in enumerate(params.candidates):
        if name not in known:
            raise ConfigError(
                f"select.candidates.{place}: found {name!r}; expected a name in select.configurations: "
                f"{', '.join(known) or 'it has none'}"
            )
        if name in params.candidates[:place]:
            raise ConfigError(f"select.candidates.{place}: {name!r} is listed before; expected each name once")
    return [known[name] for name in params.candidates]


def judge(candidates: Sequence[Candidate], inputs: StackInputs, state: Path) -> Judged:
    """Fits every candidate in every cut, one model a learner; finished fits are kept in `state`.

    Raises:
        ConfigError: CatBoost is asked for and not installed.
    """
    if any("catboost" in candidate.stack.learners for candidate in candidates):
        catboost.library()
    posts, blocks = read_table(inputs.posts, POSTS), read_blocks(inputs.image, inputs.text, inputs.prototype)
    cuts = list(rows_of(read_table(inputs.splits, FOLDS), [SCHEME]))
    stacks = [replace(candidate.stack, n_seeds=1) for candidate in candidates]
    keys = [fingerprint(asdict(stack)) for stack in stacks]
    fits = dict(zip(keys, stacks, strict=True))  # two configurations of the same values share one
    work = partial(_predictions, posts, blocks, inputs.features, state)
    tasks = [(cut, fit) for cut in cuts for fit in fits.items()]
    named = [(cut, key) for cut, _ in cuts for key in fits]
    parallel, threads = min(stack.parallel_fits for stack in stacks), max(stack.num_threads for stack in stacks)
    results = tqdm(ordered_map(work, tasks, parallel=parallel, threads=threads), "select", len(tasks), unit="fit")
    found = dict(zip(named, results, strict=True))
    parts: list[pl.DataFrame] = []
    for place, (cut, roles) in enumerate(cuts):
        facts = roles.join(posts.select("pid", "uid", "label"), on="pid", how="left", validate="1:1").sort("pid")
        constant = facts.filter(role="train")["label"].median()
        part = facts.filter(role="valid").select("pid", "uid", "label", place=place, constant=constant)
        for number, key in enumerate(keys):
            column = found[cut, key].select("pid", pl.col("prediction").alias(str(number)))
            part = part.join(column, on="pid", how="left", validate="1:1", maintain_order="left")
        parts.append(part)
    rows = pl.concat(parts)
    return Judged(
        names=[candidate.name for candidate in candidates],
        cuts=[cut.fold for cut, _ in cuts],
        place=rows["place"].to_numpy().astype(np.int64),
        labels=rows["label"].to_numpy(),
        users=np.unique(rows["uid"].to_numpy(), return_inverse=True)[1].astype(np.int64),
        constant=rows["constant"].to_numpy(),
        predictions=rows.select(str(number) for number in range(len(candidates))).to_numpy(),
    )


def _predictions(
    posts: pl.DataFrame,
    blocks: Blocks,
    features: Path,
    state: Path,
    task: tuple[tuple[FoldKey, pl.DataFrame], tuple[str, StackParams]],
) -> pl.DataFrame:
    """Contract PREDICTIONS, of one cut and (key, section stack)."""
    (cut, rows), (key, stack) = task
    finished = state / f"{key}-{cut.file_name}"
    if not finished.exists():
        write_table(fit_and_predict(load_fold(cut, rows, posts, features), blocks, stack), finished, PREDICTIONS)
    return read_table(finished, PREDICTIONS)


def scores_of(judged: Judged) -> pl.DataFrame:
    """SRC and MAE of every candidate in every cut, and their value: MAE over the constant's, minus SRC.

    A SRC that is not defined (equal predictions, say, or a single post) is null, and counts as 0. A constant without an
    error, in a cut of a post or two, leaves the MAE as it is.
    """
    rows: list[tuple[Any, ...]] = []
    for number, name in enumerate(judged.names):
        for cut, own in zip(judged.cuts, fold_rows(len(judged.labels), judged.place), strict=True):
            label, predicted = judged.labels[own], judged.predictions[own, number]
            src, mae = spearman(label, predicted), mean_absolute_error(label, predicted)
            constant = mean_absolute_error(label, judged.constant[own])
            if src is None:
                logger.warning("%s: SRC is not defined on cut %d: it counts as 0", name, cut)
            value = selection_loss(label, predicted, judged.constant[own])
            rows.append((name, cut, len(own), src, mae, constant, value))
    return pl.DataFrame(rows, schema=SCORES, orient="row")


def draws_of(judged: Judged, seed: int) -> Array:
    """(DRAWS, candidates) values on draws of users, the same for all candidates; NaN where a cut has no post left."""
    both = np.column_stack([judged.predictions, judged.constant])
    drawn = resample_folds(judged.labels, both, judged.users, resamples=DRAWS, seed=seed, folds=judged.place)
    value = loss_of_scores(drawn["mae"][..., :-1], drawn["mae"][..., -1:], drawn["src"][..., :-1])
    return np.asarray(value.mean(axis=0))


def choose(values: Array, draws: Array) -> Choice:
    """By the rule of one standard error: the first candidate that is no further from the best than that.

    The error is that of the difference, taken draw by draw. Candidates err on the same posts, so most of what a draw of
    users changes is common to them: errors of single values would hide differences that are there. It is about which
    users were scored; a choice by it says nothing of how cuts differ.

    Args:
        values: (candidates,) simplest first; the less, the better.
        draws: (draws, candidates) of them; draws with a NaN are left out.
    """
    best = int(np.argmin(values))
    differences = values - values[best]
    paired = draws - draws[:, [best]]
    paired = paired[np.isfinite(paired).all(axis=1)]
    errors = paired.std(axis=0, ddof=1) if len(paired) > 1 else np.zeros(len(values))
    return Choice(int(np.flatnonzero(differences <= errors)[0]), best, values, differences, errors)


def write_selection(
    candidates: Sequence[Candidate], judged: Judged | None, seed: int, folder: Path
) -> Candidate | None:
    """The chosen candidate, None if there are none; writes the choice and its evidence into `folder`.

    choice.yaml: {stack: {...}}, the keys of the chosen one, a patch of params.yaml; empty where it has none.
    scores.csv: SCORES, a row a candidate and cut.
    selection.json: the names of the chosen and of the best one, and by candidate its keys, mean SRC and MAE over the
    cuts, value, difference to the best and the standard error of that.
    """
    if judged is None:
        scores, told, choice = pl.DataFrame(schema=SCORES), [], None
    else:
        scores = scores_of(judged)
        means = scores.group_by("configuration", maintain_order=True).agg(
            pl.col("src").fill_null(0.0).mean(), pl.mean("mae", "value")
        )
        choice = choose(means["value"].to_numpy(), draws_of(judged, seed))
        told = [
            {
                "name": candidate.name, "keys": candidate.keys, "src": src, "mae": mae, "value": value,
                "difference": difference, "standard_error": error,
            }
            for candidate, (_, src, mae, value), difference, error in zip(
                candidates, means.iter_rows(), choice.differences.tolist(), choice.errors.tolist(), strict=True
            )
        ]  # fmt: skip
    chosen = candidates[choice.chosen] if choice else None
    with atomic_path(folder / CHOICE) as partial:
        YAML().dump({"stack": nested(chosen.keys)} if chosen and chosen.keys else {}, partial)
    write_text(folder / "scores.csv", scores.write_csv())
    write_json(
        folder / "selection.json",
        {
            "scheme": SCHEME,
            "draws": DRAWS,
            "chosen": chosen.name if chosen else None,
            "best": candidates[choice.best].name if choice else None,
            "configurations": told,
        },
    )
    for one in told:
        logger.info(
            "%s %-12s SRC %.4f  MAE %.4f  value %.4f  to the best %+.4f, standard error %.4f",
            "->" if chosen and one["name"] == chosen.name else "  ",
            *(one[name] for name in ("name", "src", "mae", "value", "difference", "standard_error")),
        )
    return chosen
