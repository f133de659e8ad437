"""Which labels reach what, through split, featurize and stack."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from popularity.core.contracts import FoldKey
from popularity.core.metrics import spearman
from popularity.features import FeatureColumn, featurize
from popularity.stack import Blocks, StackParams
from popularity.stack.matrix import FeatureGroup, Matrix, MatrixEncoder
from popularity.validation import rows_of
from popularity.validation.folds import load_fold
from tests.random_posts import random_images
from tests.stack.small_stack import (
    ALL_PARTS,
    FEATURIZE,
    STACK,
    WITH_SECOND,
    Run,
    fit_stack,
    needs_catboost,
    posts_with_signal,
    run_all,
    tree_bytes,
)

VALIDATED = ("holdout", "forward", "group")
FORWARD_SPLITS = (0, 1)
USER_FOLDS = (0, 1, 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    posts, blocks = posts_with_signal(0)
    return run_all(posts, blocks, tmp_path_factory.mktemp("leakage"))


def scored(run: Run, scheme: str, fold: int = 0) -> list[str]:
    rows = run.splits.filter(
        (pl.col("scheme") == scheme) & (pl.col("fold") == fold) & (pl.col("role") == "valid"),
    )
    return rows["pid"].to_list()


def with_other_labels(posts: pl.DataFrame, pids: list[str]) -> pl.DataFrame:
    """Labels of `pids` far away from what they were, each in its own way."""
    other = pl.Series(np.random.default_rng(9).uniform(-60, 60, posts.height).round(2))
    changed = posts.with_columns(label=pl.when(pl.col("pid").is_in(pids)).then(other).otherwise("label"))
    assert (changed["label"] != posts["label"]).sum() == len(pids)
    return changed


def file_of(run: Run, scheme: str, fold: int = 0) -> bytes:
    """Predictions of one fold by every model."""
    return run.finished(scheme)[FoldKey(scheme, fold).file_name]


def label_table(run: Run, scheme: str, fold: int = 0) -> pl.DataFrame:
    return run.table("label", scheme).filter(pl.col("fold") == fold)


@pytest.mark.parametrize(
    ("scheme", "fold"),
    [("holdout", 0), *(("forward", split) for split in FORWARD_SPLITS), *(("group", fold) for fold in USER_FOLDS)],
)
def test_labels_of_scored_rows_change_no_feature_and_no_prediction_of_their_fold(
    made: Run, scheme: str, fold: int, tmp_path: Path
) -> None:
    posts = with_other_labels(made.posts, scored(made, scheme, fold))
    changed = run_all(posts, made.blocks, tmp_path, fitted=VALIDATED)
    assert changed.splits.equals(made.splits)
    assert changed.label_free() == made.label_free()
    assert label_table(changed, scheme, fold).equals(label_table(made, scheme, fold))
    assert file_of(changed, scheme, fold) == file_of(made, scheme, fold)
    # Where those rows are fitted on, the same change shows: the test can fail.
    assert not changed.table("label", "refit").equals(made.table("label", "refit"))
    assert not final(changed).equals(final(made))
    if scheme == "group" or (scheme == "forward" and fold == 0):  # the last cut is fitted on what the first scores
        other = (fold + 1) % len(USER_FOLDS)
        assert not label_table(changed, scheme, other).equals(label_table(made, scheme, other))
        assert file_of(changed, scheme, other) != file_of(made, scheme, other)


def final(run: Run) -> pl.DataFrame:
    return run.predictions.filter(pl.col("scheme") == "refit")


def test_labels_of_report_rows_influence_nothing_but_the_final_fit(made: Run, tmp_path: Path) -> None:
    """Not the splits, not a feature, not the rounds, ridges or trees of any scheme that selects or is scored."""
    changed = run_all(with_other_labels(made.posts, scored(made, "holdout")), made.blocks, tmp_path)
    schemes = (*VALIDATED, "random")
    assert changed.splits.equals(made.splits)
    assert changed.table("context", *schemes, "refit").equals(made.table("context", *schemes, "refit"))
    assert changed.table("label", *schemes).equals(made.table("label", *schemes))
    assert changed.finished(*VALIDATED) == made.finished(*VALIDATED)
    n_folds = 1 + len(FORWARD_SPLITS) + len(USER_FOLDS)
    assert len(made.finished(*VALIDATED)) == 2 * n_folds  # predictions and members of the trend
    assert not final(changed).equals(final(made))


def test_no_label_reaches_row_and_context_features(made: Run, tmp_path: Path) -> None:
    train = made.posts.filter(pl.col("split") == "train")["pid"].to_list()
    changed = run_all(with_other_labels(made.posts, train), made.blocks, tmp_path, fitted=())
    assert changed.label_free() == made.label_free()


@pytest.mark.parametrize("scheme", ["holdout", "group"])
def test_the_label_of_a_fit_row_changes_nothing_in_its_own_row(made: Run, scheme: str, tmp_path: Path) -> None:
    """Histories end before the post, and head columns are out of fold with all posts of a user on one side."""
    feature_groups: tuple[FeatureGroup, ...] = ("user_target", "words", "rhythm", "class_time", "neighbours")
    columns = replace(STACK.columns, oof_ridge_alphas=(10.0,), feature_groups=feature_groups)
    (key, rows) = next(iter(rows_of(made.splits, [scheme])))
    fit = rows.filter(pl.col("role") == "train").join(made.posts, on="pid").sort("posted_at", "pid")
    ((uid, _),) = fit["uid"].value_counts().sort("count", "uid").tail(1).iter_rows()
    mine = fit.filter(pl.col("uid") == uid)["pid"].to_list()
    assert len(mine) > 3

    def matrix_of(posts: pl.DataFrame, folder: Path) -> Matrix:
        splits = made.splits.filter(pl.col("scheme").is_in([scheme, "forward"]))  # forward dates the target statistics
        featurize(posts, random_images(posts, seed=0), splits, FEATURIZE, folder)
        data = load_fold(key, rows, posts, folder)
        return MatrixEncoder.fit(data.train, data.label, made.blocks, columns)[1]

    before = matrix_of(made.posts, tmp_path / "before")
    ridges = [before.names.index(f"{block}_oof_ridge") for block in columns.oof_ridge]
    for pid in (mine[0], mine[-1]):
        after = matrix_of(with_other_labels(made.posts, [pid]), tmp_path / pid)
        own, user = before.pids.index(pid), [before.pids.index(other) for other in mine]
        np.testing.assert_allclose(after.values[own], before.values[own], rtol=1e-5)
        np.testing.assert_allclose(after.values[user][:, ridges], before.values[user][:, ridges], rtol=1e-5)
        assert not np.allclose(after.values, before.values, rtol=1e-5, equal_nan=True)


def test_only_columns_that_say_so_know_labels(made: Run, tmp_path: Path) -> None:
    """Of features and of the matrix: other labels of all train rows leave the rest as it was."""
    feature_groups: tuple[FeatureGroup, ...] = (
        "user_target",
        "words",
        "rhythm",
        "class_time",
        "neighbours",
        "user_text",
    )
    columns = replace(STACK.columns, feature_groups=feature_groups)
    (key, rows) = next(iter(rows_of(made.splits, ["holdout"])))
    splits = made.splits.filter(pl.col("scheme").is_in(["holdout", "forward"]))  # forward dates the target statistics

    def matrix_of(posts: pl.DataFrame, folder: Path) -> Matrix:
        featurize(posts, random_images(posts, seed=0), splits, FEATURIZE, folder)
        data = load_fold(key, rows, posts, folder)
        return MatrixEncoder.fit(data.train, data.label, made.blocks, columns)[1]

    fitted = rows.filter(role="train")["pid"].to_list()
    before, after = (
        matrix_of(made.posts, tmp_path / "a"),
        matrix_of(with_other_labels(made.posts, fitted), tmp_path / "b"),
    )
    assert before.columns == after.columns
    free = [not column.fitted_on_labels for column in before.columns]
    np.testing.assert_array_equal(before.values[:, free], after.values[:, free])
    changed = {
        (column.kind, column.group)
        for column, own, other in zip(before.columns, before.values.T, after.values.T, strict=True)
        if not np.array_equal(own, other, equal_nan=True)
    }
    knowing = {(column.kind, column.group) for column in before.columns if column.fitted_on_labels}
    assert changed == knowing
    for file, knows in (("label/holdout-0.parquet", True), ("context/holdout.parquet", False), ("row.parquet", False)):
        stored = pl.read_parquet_schema(tmp_path / "a" / file)
        assert {FeatureColumn.named(name).fitted_on_labels for name in stored if name != "pid"} == {knows}


# Both learners count in the ensemble; a column of noise, as characters are here, would leave one of them out.
TWO = replace(WITH_SECOND, seed=4, columns=replace(STACK.columns, oof_ridge=("image", "text", "prototype")))


@pytest.mark.parametrize(
    "params",
    [
        pytest.param(TWO, id="two learners", marks=needs_catboost),
        pytest.param(ALL_PARTS, id="all parts"),
        pytest.param(replace(ALL_PARTS, detrend="family"), id="family"),
    ],
)
@pytest.mark.parametrize("scheme", ["holdout", "forward"])
def test_labels_of_scored_rows_change_nothing_in_the_model(
    made: Run, params: StackParams, scheme: str, tmp_path: Path
) -> None:
    """The whole saved model of a fold, with its rounds, penalty, ensemble weights, trend and error scale, stays;
    a train row's label shows."""
    (key, rows) = next(iter(rows_of(made.splits, [scheme])))
    splits = made.splits.filter(pl.col("scheme").is_in([scheme, "forward"]))

    def saved(posts: pl.DataFrame, name: str) -> dict[str, bytes]:
        featurize(posts, random_images(posts, seed=0), splits, FEATURIZE, tmp_path / name / "features")
        data = load_fold(key, rows, posts, tmp_path / name / "features")
        fit_stack(data, made.blocks, params).save(tmp_path / name / "model")
        return tree_bytes(tmp_path / name / "model")

    before = saved(made.posts, "before")
    facts = json.loads(before["model.json"])
    assert all(0 < weight < 1 for weight in facts["weights"]["weights"])
    assert (facts["trend"]["line"]["slope"] != 0) == (params.detrend == "linear")
    assert (facts["trend"]["family"] is not None) == (params.detrend == "family")
    assert saved(with_other_labels(made.posts, scored(made, scheme)), "scored") == before
    fitted = rows.filter(pl.col("role") == "train")["pid"].to_list()
    after = saved(with_other_labels(made.posts, fitted[::5]), "fitted")
    models = [name for name in before if name.partition("_")[0] in params.learners]
    assert len(models) == 2
    assert all(after[name] != before[name] for name in (*models, "model.json", "error_scale.txt"))


def scores(run: Run) -> dict[tuple[str, str], tuple[float, float]]:
    """(scheme, model) -> SRC and the bound on its size that chance stays within: 3 / sqrt(users scored)."""
    rows = run.predictions.filter(pl.col("scheme") != "refit").join(run.posts, on="pid", how="left", validate="m:1")
    result = {}
    for (scheme, model), part in rows.group_by("scheme", "model"):
        src = spearman(part["label"].to_numpy(), part["prediction"].to_numpy())
        if model != "constant" and src is not None:
            result[str(scheme), str(model)] = (src, 3 / part["uid"].n_unique() ** 0.5)
    return result


@pytest.fixture(scope="module")
def many() -> tuple[pl.DataFrame, Blocks]:
    """More posts and users, for a bound that is worth something."""
    return posts_with_signal(0, train=900, test=300, users=500)


def permuted(posts: pl.DataFrame) -> pl.DataFrame:
    """Labels of the training posts dealt out anew."""
    train = posts.filter(pl.col("split") == "train")
    shuffled = train.with_columns(label=pl.col("label").shuffle(seed=4))
    return pl.concat([shuffled, posts.filter(pl.col("split") == "test")]).sort("pid")


def test_permuted_labels_leave_nothing_to_predict(many: tuple[pl.DataFrame, Blocks], tmp_path: Path) -> None:
    posts, blocks = many
    found = scores(run_all(permuted(posts), blocks, tmp_path))
    assert {scheme for scheme, _ in found} == set(VALIDATED)
    assert {model for _, model in found} >= {"stack", "metadata"}
    for where, (src, bound) in found.items():
        assert abs(src) < bound, (where, src, bound)


def test_true_labels_are_predicted_beyond_the_bound(many: tuple[pl.DataFrame, Blocks], tmp_path: Path) -> None:
    found = scores(run_all(*many, tmp_path))
    for scheme in VALIDATED:
        src, bound = found[scheme, "stack"]
        assert src > 2 * bound, (scheme, src, bound)


def test_a_planted_leak_shows_under_permuted_labels(many: tuple[pl.DataFrame, Blocks], tmp_path: Path) -> None:
    """A block that carries the label, as an encoder fitted on valid rows would."""
    posts, blocks = many
    leaking = permuted(posts)
    label = dict(leaking.select("pid", "label").iter_rows())
    image = blocks.vectors["image"]
    values = image.values.copy()
    noise = np.random.default_rng(0).normal(0, 1, len(values))
    values[:, 0] = [label[pid] or 0.0 for pid in image.pids] + noise
    planted = replace(blocks, vectors={**blocks.vectors, "image": replace(image, values=values)})
    found = scores(run_all(leaking, planted, tmp_path))
    for scheme in VALIDATED:
        src, bound = found[scheme, "stack"]
        assert src > 2 * bound, (scheme, src, bound)
        assert abs(found[scheme, "metadata"][0]) < bound
