"""Screens ways to treat posts whose user has no past, as benchmarks.screen screens keys of section stack.

    python -m benchmarks.screen_history ../memes ../series ../sketches

A row has a past if a train row of its user is older than its as-of date. Every way is a LightGBM of fixed rounds on
the columns of the default, the mean of --seeds, on scheme `forward`. The tables are those of benchmarks.screen. Hidden
is a row whose user's target statistics are those of a user without a past.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.model_selection import GroupKFold
from tqdm import tqdm

from benchmarks.screen import DEFAULT, MEAN, ROUNDS, mean_over_sets, printed, printed_mean, sizes, with_share
from benchmarks.screen_fits import CONSTANT, Store, _valid, tasks_of
from benchmarks.systems import POST_COLUMNS, FoldData, Project, compare
from benchmarks.tables import add_csv_flag, write_csv
from popularity.core.arrays import BoolArray, Float32Array, Float64Array
from popularity.core.as_of import as_of_dates
from popularity.core.atomic import atomic_path, fingerprint
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import FORWARD
from popularity.core.resume import STATE_ROOT
from popularity.core.stage import run
from popularity.stack import StackParams
from popularity.stack.columns import MatrixColumn
from popularity.stack.fit import EncodedFold, predict_simple
from popularity.stack.learners import LEARNERS
from popularity.stack.matrix import Matrix
from popularity.stack.sample import Sample
from popularity.target.trend import Trend

PRIOR = 3.0  # posts' worth of 0 in a user's mean residual, as featurize.target_statistics_prior
HALF_LIFE = 90.0  # days, of the recent mean residual
WINDOW_DAYS = 30
PLAIN_MEANS = (
    "uid_target_level", "uid_target_last", "user_target.level", "user_target.beyond_class", "user_target.last",
    "user_target.trend", "user_target.own_class",
)  # fmt: skip
DRIFTING = (
    "account_age_days", "first_taken_age_days", "photo_count", "photos_per_day", "title_length", "title_words",
    "tags_length", "tags_words", "user_posts", "user_posts_before", "user_gap_previous", "user_gap_mean",
    "user_mean_title_length", "user_mean_tags_length", "category_posts", "subcategory_posts", "concept_posts",
    "day_posts", "tag_frequency_mean", "tag_frequency_min", "tag_frequency_max", "title_posts", "image_width",
    "image_bytes", "uid_target_posts", "subcategory_target_posts", "concept_target_posts",
)  # fmt: skip
# What a post of a user without a past has in place of the user's statistics; other history columns are missing there.
WITHOUT_PAST = dict.fromkeys(
    ("uid_target_posts", "user_target.level", "user_target.beyond_class", "user_target.trend", "user_target.own_class"),
    0.0,
)


@dataclass(frozen=True)
class Case:
    """A fold with its columns, and what the ways share.

    Args:
        data: the fold.
        encoded: its columns.
        params: section stack.
    """

    data: FoldData
    encoded: EncodedFold
    params: StackParams

    @property
    def train(self) -> Matrix:
        return self.encoded.train

    @property
    def valid(self) -> Matrix:
        return _valid(self.encoded)

    @cached_property
    def trend(self) -> Trend:
        fold = self.data.fold
        return Trend.fit(fold.posted_at, fold.label, self.params.detrend, fold.collected_at)

    @cached_property
    def target(self) -> Float64Array:
        return self.trend.detrend(self.data.fold.label, self.data.fold.posted_at)

    @cached_property
    def past(self) -> tuple[BoolArray, BoolArray]:
        """Whether a train row (n,) and a valid row (m,) have a past."""
        train, valid = ((one.values[:, one.names.index("uid_target_posts")] > 0) for one in (self.train, self.valid))
        return train, valid

    def fitted(
        self, train: Matrix, valid: Matrix, target: Float64Array | None = None, weight: Float64Array | None = None
    ) -> Float64Array:
        """(m,) predictions without the trend."""
        sample = Sample(train, self.target if target is None else target, weight)
        learner = LEARNERS["lightgbm"]
        models = (learner.fit(sample, self.params.num_boost_round, self.params, seed) for seed in self.params.each_seed)
        predicted: Float64Array = np.mean([learner.predict(model, valid) for model in models], axis=0)
        return predicted

    def labels(self, predicted: Float64Array) -> Float64Array:
        """(m,) predictions of the valid rows with the trend."""
        return self.trend.retrend(predicted, self.data.fold.valid_at)

    @cached_property
    def default(self) -> Float64Array:
        return self.fitted(self.train, self.valid)

    @cached_property
    def without(self) -> Float64Array:
        """Predictions of the valid rows by the model without history columns."""
        return self.fitted(dropped(self.train, is_history), dropped(self.valid, is_history))

    @cached_property
    def hidden(self) -> Float32Array:
        """(n, columns) of the train rows, all hidden."""
        values, names = self.train.values.copy(), self.train.names
        for index, name in enumerate(names):
            if is_history(name):
                values[:, index] = WITHOUT_PAST.get(name, np.nan)
        if "user_target.spread" in names:  # one value for each as-of date, from the nearest row without a past
            index, times = names.index("user_target.spread"), self.data.fold.posted_at
            rows = np.flatnonzero(~self.past[0])
            rows = rows[np.argsort(times[rows], kind="stable")]
            found = np.clip(np.searchsorted(times[rows], times), 0, len(rows) - 1)
            values[:, index] = self.train.values[rows[found], index]
        return values

    @cached_property
    def residuals(self) -> tuple[Float32Array, Float32Array]:
        """A user's shrunk mean residual over the model without history, the recent one, the last, their number."""
        fold, users = self.data.fold, self.data.fold.train["uid"].to_numpy()
        matrix = dropped(self.train, is_history)
        rest = np.empty(len(self.target))
        for train, valid in GroupKFold(5).split(matrix.values, groups=users):
            predicted = self.fitted(matrix.take(train), matrix.take(valid), self.target[train])
            rest[valid] = self.target[valid] - predicted
        rows = pl.concat(
            frame.select("pid", "uid", "posted_at", role=pl.lit(role))
            for frame, role in ((fold.train, "train"), (fold.valid, "valid"))
        )
        as_of = as_of_dates(rows, timedelta(days=1)).with_columns(as_of=pl.col("as_of").to_physical())
        rows = rows.join(as_of, on="pid", how="left", validate="1:1", maintain_order="left")
        past = fold.train.select("pid", "uid", at=pl.col("posted_at").to_physical(), rest=pl.Series(rest))
        joined = rows.select("pid", "uid", "as_of").join(past.drop("pid"), on="uid", how="inner")
        age = (pl.col("as_of") - pl.col("at")) / 86_400e6
        weight = 0.5 ** (age / HALF_LIFE)
        columns = (
            joined.filter(pl.col("at") < pl.col("as_of"))
            .sort("pid", "at")
            .group_by("pid", maintain_order=True)
            .agg(
                level=pl.col("rest").sum() / (pl.len() + PRIOR),
                recent=(weight * pl.col("rest")).sum() / (weight.sum() + PRIOR),
                last=pl.col("rest").last(),
            )
        )
        table = rows.select("pid").join(columns, on="pid", how="left", validate="1:1", maintain_order="left")
        values = table.drop("pid").to_numpy().astype(np.float32)
        return values[: fold.train.height], values[fold.train.height :]

    @cached_property
    def ranks(self) -> tuple[Float32Array, Float32Array, list[str]]:
        """Share of the shown posts of the WINDOW_DAYS before a post that have less, of every drifting column."""
        names = [name for name in DRIFTING if name in self.train.names]
        each = [one.values[:, [one.names.index(name) for name in names]] for one in (self.train, self.valid)]
        values = np.vstack(each)
        times = np.concatenate([self.data.fold.posted_at, self.data.fold.valid_at])
        order = np.argsort(times, kind="stable")
        sorted_values, sorted_times = values[order], times[order]
        starts = np.searchsorted(sorted_times, sorted_times - WINDOW_DAYS * 86_400_000_000)
        found = np.empty_like(values)
        for position, start in enumerate(starts):
            window, own = sorted_values[start : position + 1], sorted_values[position]
            known = np.maximum((~np.isnan(window)).sum(axis=0), 1)
            found[order[position]] = ((window < own).sum(axis=0) + 0.5 * (window == own).sum(axis=0)) / known
        found[np.isnan(values)] = np.nan
        n = len(each[0])
        return found[:n], found[n:], [f"{name}_rank" for name in names]


def is_history(name: str) -> bool:
    return name.startswith(("uid_target_", "user_target."))


def dropped(matrix: Matrix, unwanted: Callable[[str], bool]) -> Matrix:
    kept = [index for index, name in enumerate(matrix.names) if not unwanted(name)]
    return Matrix(matrix.values[:, kept], matrix.pids, tuple(matrix.columns[index] for index in kept))


def added(matrix: Matrix, values: Float32Array, names: Sequence[str]) -> Matrix:
    columns = tuple(MatrixColumn(name, "metadata", "number", None, fitted_on_labels=True) for name in names)
    return Matrix(np.hstack([matrix.values, values]), matrix.pids, (*matrix.columns, *columns))


def hide(case: Case, share: float) -> Float64Array:
    """Hides a share of the train rows that have a past; another draw for each seed."""
    rows, found = np.flatnonzero(case.past[0]), []
    for seed in case.params.each_seed:
        chosen = np.random.default_rng(seed).permutation(rows)[: round(share * len(rows))]
        values = case.train.values.copy()
        values[chosen] = case.hidden[chosen]
        one = replace(case, params=replace(case.params, seed=seed, n_seeds=1))
        found.append(one.fitted(replace(case.train, values=values), case.valid))
    mean: Float64Array = np.mean(found, axis=0)
    return mean


def equal_share(case: Case) -> Float64Array:
    """Hides train rows until the share with a past is that of the valid rows; none where it is smaller already."""
    train, valid = (float(past.mean()) for past in case.past)
    return case.default if train <= valid else hide(case, 1 - valid / train)


def copies(case: Case) -> Float64Array:
    """Every train row that has a past is there a second time, hidden; both count half."""
    rows = np.flatnonzero(case.past[0])
    matrix = Matrix(
        np.vstack([case.train.values, case.hidden[rows]]),
        [*case.train.pids, *(f"{case.train.pids[row]}-hidden" for row in rows)],
        case.train.columns,
    )
    weight = np.where(case.past[0], 0.5, 1.0)
    return case.fitted(
        matrix, case.valid, np.concatenate([case.target, case.target[rows]]), np.concatenate([weight, weight[rows]])
    )


def equal_weights(case: Case) -> Float64Array:
    """Rows with and without a past have together the weight that they have among the valid rows."""
    past, share = case.past[0], float(case.past[1].mean())
    own = max(float(past.mean()), 1 / len(past))
    weight = np.where(past, share / own, (1 - share) / max(1 - own, 1 / len(past)))
    return case.fitted(case.train, case.valid, weight=weight / weight.mean())


def two_models(case: Case) -> Float64Array:
    """Valid rows without a past are predicted by a model without history columns."""
    return np.where(case.past[1], case.default, case.without)


RESIDUALS = ("user_residual_level", "user_residual_recent", "user_residual_last")


def residuals_instead(case: Case) -> Float64Array:
    """The residuals in place of the plain means of the user."""
    sides = [dropped(one, lambda name: name in PLAIN_MEANS) for one in (case.train, case.valid)]
    return case.fitted(*(added(one, own, RESIDUALS) for one, own in zip(sides, case.residuals, strict=True)))


def residual_on_top(case: Case) -> Float64Array:
    """The model without history, plus the user's shrunk mean residual over it."""
    return case.without + np.nan_to_num(case.residuals[1][:, 0].astype(np.float64))


def ranks_added(case: Case) -> Float64Array:
    train, valid, names = case.ranks
    return case.fitted(added(case.train, train, names), added(case.valid, valid, names))


WAYS: Mapping[str, Callable[[Case], Float64Array]] = {
    DEFAULT: lambda case: case.default,
    "no history": lambda case: case.without,
    "hidden until shares are equal": equal_share,
    "15 % of pasts hidden": lambda case: hide(case, 0.15),
    "30 % of pasts hidden": lambda case: hide(case, 0.3),
    "50 % of pasts hidden": lambda case: hide(case, 0.5),
    "hidden copies": copies,
    "weighted until shares are equal": equal_weights,
    "two models": two_models,
    "user residuals in place of means": residuals_instead,
    "user residual on top": residual_on_top,
    "ranks of the last 30 days added": ranks_added,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="project folders, one a data set")
    parser.add_argument("--params", type=Path, default=PARAMS_FILE, help="file with section stack of the default")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each fit")
    parser.add_argument("--seeds", type=int, default=2, help="of each fit, averaged")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap draws of users")
    add_csv_flag(parser)
    args = parser.parse_args(argv)
    base = load_params("stack", StackParams, args.params)
    base = replace(base, n_seeds=args.seeds, num_boost_round=args.rounds, learners=("lightgbm",))
    sets = {str(folder): predicted(folder, args.params, base) for folder in args.folders}
    scored = {name: with_share(compare(rows, DEFAULT, resamples=args.resamples)) for name, rows in sets.items()}
    over_sets = mean_over_sets(sets, args.resamples)
    for name, table in scored.items():
        print(f"\n{name}: {sizes(table)}\n{printed(table)}")
    print(f"\nmean over the sets: {FORWARD}\n{printed_mean(over_sets, scored, choose=True)}")
    every = {**scored, MEAN: over_sets}
    write_csv([{"set": name, **row} for name, table in every.items() for row in table.to_dicts()], args.csv)


def predicted(folder: Path, params: Path, base: StackParams) -> pl.DataFrame:
    """(POST_COLUMNS, a column a way, CONSTANT) of the valid posts of the forward splits; kept in a file."""
    kept = folder / STATE_ROOT / "benchmarks/screen_history" / f"{fingerprint(asdict(base), Path(__file__))}.parquet"
    if kept.exists():
        return pl.read_parquet(kept)
    project = Project.read(folder, params)
    digest = tasks_of(folder, params, FORWARD, {})[0].vectors
    fixed = replace(base, inner_cv=replace(base.inner_cv, n_splits=0))
    tables = []
    for data in tqdm(list(project.folds([FORWARD])), folder.name, unit="fold"):
        case = Case(data, Store.of(folder, data, digest).encoded(data, fixed), fixed)
        past = [f"{one.mean():.3f}" for one in case.past]
        tqdm.write(f"{folder.name} {data.fold.key.fold}: share with a past, train and valid rows: {', '.join(past)}")
        posts = project.scored(data).with_columns(scheme=pl.lit(FORWARD), fold=pl.lit(data.fold.key.fold, pl.Int64))
        constant = predict_simple(data.fold, project.params, CONSTANT)["prediction"]
        columns = [pl.Series(name, case.labels(way(case))) for name, way in WAYS.items()]
        tables.append(posts.select(POST_COLUMNS).with_columns(*columns, constant.alias(CONSTANT)))
    with atomic_path(kept) as partial:
        pl.concat(tables).write_parquet(partial)
    return pl.concat(tables)


if __name__ == "__main__":
    run(main)
