"""Seven leaks: the gain that validation shows for each, and the loss on later posts.

    python -m benchmarks.leaks                        # `make leaks`: the run in this folder
    python -m benchmarks.leaks --folder ../run --csv leaks.csv

Two neighbouring splits of scheme `forward` make a case: the earlier split validates, the later one is the pseudo-test.
The honest practice scores each of CANDIDATES on the earlier split, takes the one of least MAE, fits it on the train
rows of the later split and predicts its valid rows. A leaky practice does the same with one mistake; on the pseudo-test
nothing can leak, as on a real test part. A line of the table is a metric of a practice, mean over cases:

    validation       its validation score
    validation gain  over the validation score of the honest practice; above 0 is better, for both metrics
    pseudo-test      its score there
    test loss        against the honest practice on the same posts, with an interval over users; above 0 is worse
    optimism         validation against pseudo-test; above 0: the validation score was too good

The learner is ours, with one seed, short training, and the columns of metadata and text. Scheme `holdout` is not read.
Needs `dvc repro embed_posts`, with `split.span: fractions` where forward splits share posts: a pseudo-test must be new.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sklearn.model_selection import KFold
from tqdm import tqdm

from benchmarks.systems import METRICS, FoldData, Project, Scored, ours, paired_interval
from benchmarks.tables import add_csv_flag, text_table, write_csv
from popularity.core.arrays import Float32Array, Float64Array, Int64Array
from popularity.core.errors import DataError
from popularity.core.metrics import mean_absolute_error, score
from popularity.core.stage import run
from popularity.stack import lightgbm
from popularity.stack.feature_blocks import Blocks, part_rows
from popularity.stack.matrix import MatrixEncoder
from popularity.stack.oof_ridge import fit_oof_ridge
from popularity.stack.params import StackParams
from popularity.stack.sample import Sample, recency_sample_weight
from popularity.validation.folds import Fold

HONEST = "none: honest"
N_FOLDS = 3  # of leak 3
N_SEEDS = 5  # among which leak 6 takes the best
WEIGHTS = np.linspace(0, 1, 11)  # of LightGBM in the ensemble of leak 6


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="project folder with data and params.yaml")
    parser.add_argument("--params", type=Path, help="by default the folder's params.yaml")
    parser.add_argument("--resamples", type=int, default=1000)
    add_csv_flag(parser)
    args = parser.parse_args(argv)
    project = Project.read(args.folder, args.params)
    project = replace(project, params=shortened(project.params))
    table = measure(list(cases(project)), args.resamples).to_dicts()
    print(text_table(table))
    write_csv(table, args.csv)


def shortened(params: StackParams) -> StackParams:
    """A stack that is fitted in seconds: one seed, few long steps, metadata and text, LightGBM alone."""
    columns = replace(
        params.columns, feature_blocks=("metadata", "text"), feature_groups=(), n_components=8, oof_ridge=("text",)
    )
    lightgbm_params = replace(params.lightgbm, learning_rate=0.1)
    return replace(
        params,
        n_seeds=1,
        num_boost_round=min(500, params.num_boost_round),
        early_stopping_rounds=30,
        target_transform="none",
        detrend="none",
        learners=("lightgbm",),
        columns=columns,
        lightgbm=lightgbm_params,
    )


def baseline(params: StackParams) -> StackParams:
    """The parameters unchanged."""
    return params


def user_category(params: StackParams) -> StackParams:
    """The user id is a category, so the model learns the users of the train rows."""
    return replace(params, columns=replace(params.columns, uid_category=True))


def large_trees(params: StackParams) -> StackParams:
    """Trees of more and smaller leaves."""
    return replace(params, lightgbm=replace(params.lightgbm, num_leaves=63, min_data_in_leaf=5))


CANDIDATES: tuple[Callable[[StackParams], StackParams], ...] = (baseline, user_category, large_trees)


@dataclass(frozen=True)
class Case:
    """Two neighbouring splits; all posts of the earlier one have labels.

    Args:
        earlier: its valid rows validate.
        later: its valid rows are the pseudo-test.
        truth: (m,) labels of the earlier split's valid rows.
        test: (pid, uid, label) of the later split's valid rows.
        honest_predictions: (n,) predictions of honest fits for the later split's valid rows, by name of the candidate.
    """

    earlier: FoldData
    later: FoldData
    truth: Float64Array
    test: pl.DataFrame
    honest_predictions: dict[str, Float64Array] = field(default_factory=dict)

    @property
    def params(self) -> StackParams:
        return self.later.params

    @property
    def blocks(self) -> Blocks:
        return self.later.blocks

    @property
    def labelled_earlier(self) -> pl.DataFrame:
        """The posts of the earlier split, its valid rows with their labels."""
        truth = pl.DataFrame({"pid": self.earlier.fold.valid["pid"], "truth": self.truth})
        posts = self.earlier.posts.join(truth, on="pid", how="left", validate="1:1", maintain_order="left")
        return posts.with_columns(label=pl.coalesce("label", "truth")).drop("truth")

    @property
    def labelled_later(self) -> pl.DataFrame:
        """The train posts of the later split: all labels that exist when it begins."""
        return self.later.posts.filter(pl.col("label").is_not_null())


@dataclass(frozen=True)
class Outcome:
    """A practice's validation score by metric, and its predictions (m,) for the later split's valid rows."""

    validation: dict[str, float | None]
    predictions: Float64Array


def cases(project: Project) -> Iterator[Case]:
    """The neighbouring splits of `forward` in order of time.

    Raises:
        DataError: the scheme has a single split.
    """
    folds = list(project.folds(["forward"]))
    if len(folds) < 2:
        raise DataError(
            "scheme forward has a single split",
            expected="at least two",
            fix="set split.n_origins: 3 and run dvc repro",
        )
    for earlier, later in pairwise(folds):
        yield Case(earlier, later, project.labels(earlier), project.scored(later))


def measure(given: Sequence[Case], resamples: int) -> pl.DataFrame:
    """A row a metric and practice, as the module's docstring says."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in PRACTICES}
    for case in given:
        for name, practice in tqdm(PRACTICES.items(), unit="practice"):
            outcomes[name].append(practice(case))
    labels, users = (np.concatenate([case.test[name].to_numpy() for case in given]) for name in ("label", "uid"))
    splits = np.repeat(np.arange(len(given)), [len(case.test) for case in given])
    honest = np.concatenate([one.predictions for one in outcomes[HONEST]])
    rows: list[dict[str, Any]] = []
    for metric in METRICS:
        better = 1.0 if metric == "src" else -1.0
        validation = {name: _mean(metric, own) for name, own in outcomes.items()}
        for name, own in outcomes.items():
            mine = np.concatenate([one.predictions for one in own])
            loss = paired_interval(
                Scored(labels, users, splits), mine[:, None], honest[:, None], metric, resamples=resamples
            )
            bounds = [None if bound is None else -better * bound + 0.0 for bound in (loss.value, loss.low, loss.high)]
            reached = score(labels, mine, splits)[metric]
            gain, missed = (_minus(validation[name], other) for other in (validation[HONEST], reached))
            rows.append(
                {
                    "metric": metric,
                    "leak": name,
                    "validation": validation[name],
                    "validation gain": None if gain is None else better * gain + 0.0,
                    "pseudo-test": reached,
                    "test loss": bounds[0],
                    "low": bounds[1] if better < 0 else bounds[2],
                    "high": bounds[2] if better < 0 else bounds[1],
                    "optimism": None if missed is None else better * missed,
                }
            )
    return pl.DataFrame(rows, schema_overrides=dict.fromkeys(("low", "high", "test loss", "validation"), pl.Float64))


def _mean(metric: str, outcomes: Sequence[Outcome]) -> float | None:
    values = [value for one in outcomes if (value := one.validation[metric]) is not None]
    return float(np.mean(values)) if len(values) == len(outcomes) else None


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


Change = Callable[[Case], tuple[Fold, Fold]]


def unchanged(case: Case) -> tuple[Fold, Fold]:
    return case.earlier.fold, case.later.fold


def validated_on_the_earlier_split(change: Change) -> Callable[[Case], Outcome]:
    """The practice that validates on the earlier split, with changed columns."""

    def practice(case: Case) -> Outcome:
        earlier, later = change(case)
        each = [_predict(earlier, case, candidate) for candidate in CANDIDATES]
        best = int(np.argmin([mean_absolute_error(case.truth, one) for one in each]))
        honest = change is unchanged
        return Outcome(score(case.truth, each[best]), _test(later, case, CANDIDATES[best], kept=honest))

    return practice


def _predict(fold: Fold, case: Case, candidate: Callable[[StackParams], StackParams]) -> Float64Array:
    """(m,) predictions for the fold's valid rows."""
    return ours(replace(case.later, fold=fold, params=candidate(case.params)))


def _test(fold: Fold, case: Case, candidate: Callable[[StackParams], StackParams], *, kept: bool) -> Float64Array:
    """(m,) predictions for the pseudo-test; several practices share the honest ones."""
    if not kept:
        return _predict(fold, case, candidate)
    if candidate.__name__ not in case.honest_predictions:
        case.honest_predictions[candidate.__name__] = _predict(fold, case, candidate)
    return case.honest_predictions[candidate.__name__]


def target_statistics(case: Case) -> tuple[Fold, Fold]:
    """Mean labels of user, class and concept that include the row's own label and the labels of valid rows."""

    def means(fold: Fold, labelled: pl.DataFrame) -> Fold:
        for key in ("uid", "subcategory", "concept"):
            table = labelled.group_by(key).agg(pl.col("label").mean().alias(f"mean_of_{key}")).sort(key)
            fold = _joined(fold, table, key)
        return fold

    return means(case.earlier.fold, case.labelled_earlier), means(case.later.fold, case.labelled_later)


def totals_after_the_posts(case: Case) -> tuple[Fold, Fold]:
    """Total posts and views of each user, crawled when the later split begins: after the posts that they describe."""

    def totals(labelled: pl.DataFrame) -> pl.DataFrame:
        views = (pl.lit(2.0) ** pl.col("label") - 1).sum()
        return labelled.group_by("uid").agg(total_posts=pl.len(), total_views=(views + 1).log(2)).sort("uid")

    crawled = pl.concat([case.labelled_later, case.labelled_earlier]).unique("pid")
    return _joined(case.earlier.fold, totals(crawled), "uid"), _joined(
        case.later.fold, totals(case.labelled_later), "uid"
    )


def encoders_on_valid_rows(case: Case) -> tuple[Fold, Fold]:
    """A ridge regression on the text vectors, fitted once on all labelled rows, before the folds were made."""

    def with_ridge(fold: Fold, extra: pl.DataFrame, label: Float64Array) -> Fold:
        pids = [*fold.train["pid"], *extra["pid"]]
        vectors = part_rows(case.blocks, "text", pids)
        users = np.concatenate([fold.train["uid"].to_numpy(), extra["uid"].to_numpy()])
        given = case.params.columns
        ridge, _ = fit_oof_ridge(
            vectors, np.concatenate([fold.label, label]), users,
            folds=given.oof_ridge_folds, alphas=given.oof_ridge_alphas, seed=case.params.seed,
        )  # fmt: skip
        both = pl.concat([fold.train.select("pid"), fold.valid.select("pid")])
        values = pl.Series(ridge.predict(part_rows(case.blocks, "text", both["pid"].to_list()))).fill_nan(None)
        return _joined(fold, both.with_columns(ridge_of_all=values), "pid")

    earlier, later = case.earlier.fold, case.later.fold
    return with_ridge(earlier, earlier.valid, case.truth), with_ridge(later, later.valid.head(0), np.empty(0))


def shifted_join(case: Case) -> tuple[Fold, Fold]:
    """The previous label of the post's user, joined by position to a table that lacks its first row.

    So a post gets its own label, unless it is its user's last; a post without a label gets none.
    """

    def previous(fold: Fold, posts: pl.DataFrame) -> Fold:
        ordered = posts.sort("uid", "posted_at", "pid")
        column = ordered.select(previous_label=pl.col("label").shift(1).over("uid"))["previous_label"]
        return _joined(fold, ordered.select("pid").with_columns(column.shift(-1)), "pid")

    return previous(case.earlier.fold, case.labelled_earlier), previous(case.later.fold, case.later.posts)


def _joined(fold: Fold, table: pl.DataFrame, key: str) -> Fold:
    """The fold with the columns of `table`, null where the table lacks the key."""
    train, valid = (
        rows.join(table, on=key, how="left", validate="m:1", maintain_order="left") for rows in (fold.train, fold.valid)
    )
    return replace(fold, train=train, valid=valid)


def random_folds(case: Case) -> Outcome:
    """Validates on random folds of the later split's train rows."""
    fold = case.later.fold
    parts = list(KFold(N_FOLDS, shuffle=True, random_state=case.params.seed).split(fold.label))
    each = []
    for candidate in CANDIDATES:
        predictions = np.empty(len(fold.label))
        for rows, scored in parts:
            predictions[scored] = _predict(_part(fold, rows, scored), case, candidate)
        each.append(predictions)
    best = int(np.argmin([mean_absolute_error(fold.label, one) for one in each]))
    return Outcome(score(fold.label, each[best]), _test(fold, case, CANDIDATES[best], kept=True))


def known_users(case: Case) -> Outcome:
    """Validates on the last train rows of the later split, by users with earlier posts; most test users are new."""
    fold = case.later.fold
    start = np.quantile(fold.posted_at, 1 - case.params.inner_cv.valid_fraction)
    before = np.flatnonzero(fold.posted_at < start)
    users = fold.train["uid"]
    known = users.is_in(users.gather(before).unique().to_list()).to_numpy()
    scored = np.flatnonzero((fold.posted_at >= start) & known)
    each = [_predict(_part(fold, before, scored), case, candidate) for candidate in CANDIDATES]
    best = int(np.argmin([mean_absolute_error(fold.label[scored], one) for one in each]))
    return Outcome(score(fold.label[scored], each[best]), _test(fold, case, CANDIDATES[best], kept=True))


def _part(fold: Fold, rows: Int64Array, scored: Int64Array) -> Fold:
    """A fold inside the train rows of another."""
    times = fold.posted_at
    return replace(
        fold, train=fold.train[rows], valid=fold.train[scored],
        label=fold.label[rows], posted_at=times[rows], valid_at=times[scored],
    )  # fmt: skip


def chosen_on_valid_rows(case: Case) -> Outcome:
    """Rounds, seed and weight of an ensemble of LightGBM and ridge: the best on the reported rows themselves."""
    params = case.params

    def fitted(fold: Fold, seed: int, rounds: int) -> tuple[Any, Float32Array, Float64Array]:
        """A booster, the matrix of the valid rows, and the ridge regression's predictions for them."""
        encoder, matrix = MatrixEncoder.fit(fold.train, fold.label, case.blocks, params.columns)
        sample = Sample(matrix, fold.label, recency_sample_weight(fold.posted_at, params.sample_weight_half_life_days))
        scored = encoder.apply(fold.valid, case.blocks)
        linear = scored.values[:, scored.names.index("text_oof_ridge")].astype(np.float64)
        linear[np.isnan(linear)] = np.median(fold.label)
        return lightgbm.fit(sample, rounds, params, seed), scored.values, linear

    best: tuple[float, int, int, float, Float64Array] | None = None
    for seed in range(params.seed, params.seed + N_SEEDS):
        booster, values, linear = fitted(case.earlier.fold, seed, params.num_boost_round)
        for rounds in range(10, params.num_boost_round + 1, 10):
            boosted = np.asarray(booster.predict(values, num_iteration=rounds))
            for weight in WEIGHTS:
                mixed = weight * boosted + (1 - weight) * linear
                error = mean_absolute_error(case.truth, mixed)
                if best is None or error < best[0]:
                    best = error, seed, rounds, float(weight), mixed
    assert best is not None
    _, seed, rounds, weight, mixed = best
    booster, values, linear = fitted(case.later.fold, seed, rounds)
    return Outcome(score(case.truth, mixed), weight * np.asarray(booster.predict(values)) + (1 - weight) * linear)


PRACTICES: dict[str, Callable[[Case], Outcome]] = {
    HONEST: validated_on_the_earlier_split(unchanged),
    "1 target statistics with the row and the valid rows": validated_on_the_earlier_split(target_statistics),
    "2 encoders fitted on valid rows": validated_on_the_earlier_split(encoders_on_valid_rows),
    "3 random folds for a task split in time": random_folds,
    "4 known users on both sides": known_users,
    "5 user totals dated after the posts": validated_on_the_earlier_split(totals_after_the_posts),
    "6 stopping, seed and weight chosen on the reported rows": chosen_on_valid_rows,
    "7 a join by position that shifts": validated_on_the_earlier_split(shifted_join),
}


if __name__ == "__main__":
    run(main)
