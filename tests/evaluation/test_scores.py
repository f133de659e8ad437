from __future__ import annotations

import polars as pl
import pytest
from scipy.stats import spearmanr

from popularity.core.contracts import PREDICTIONS as PREDICTIONS_CONTRACT
from popularity.core.contracts import check_table
from popularity.core.errors import ContractError
from popularity.evaluation.scheme_scores import scheme_scores
from popularity.evaluation.scores import EvaluateConfig, collect, score_groups, score_overall
from tests.small_tables import small_posts, small_predictions, small_splits, with_forward

CONFIG = EvaluateConfig(seed=0, n_resamples=60, confidence_level=0.9)
POSTS = small_posts()
SPLITS = small_splits(POSTS)
PREDICTIONS = small_predictions(POSTS, SPLITS)


def _value(table: pl.DataFrame, **wanted: str | None) -> float:
    rows = table.filter(
        *(pl.col(name).is_null() if value is None else pl.col(name) == value for name, value in wanted.items())
    )
    assert len(rows) == 1, rows
    return float(rows["value"][0])


def test_holdout_is_first_and_refit_is_not_scored() -> None:
    assert [one.scheme for one in collect(POSTS, SPLITS, PREDICTIONS)] == ["holdout", "group"]


def test_seeds_are_averaged_before_scoring() -> None:
    scores = score_overall(collect(POSTS, SPLITS, PREDICTIONS), CONFIG)
    rows = (
        PREDICTIONS.filter((pl.col("scheme") == "holdout") & (pl.col("model") == "stack"))
        .group_by("pid")
        .agg(pl.mean("prediction"))
        .join(POSTS, on="pid")
    )
    expected = spearmanr(rows["label"], rows["prediction"]).statistic
    found = _value(scores, scheme="holdout", model="stack", minus=None, metric="src")
    assert found == pytest.approx(expected, abs=1e-6)
    mae = (rows["label"] - rows["prediction"]).abs().mean()
    assert _value(scores, scheme="holdout", model="stack", minus=None, metric="mae") == pytest.approx(mae, abs=1e-6)


def test_a_post_that_is_valid_in_two_splits_is_scored_in_each() -> None:
    """With the prediction of that split; a scheme's manifest scores agree."""
    splits, predictions = with_forward(SPLITS), with_forward(PREDICTIONS)
    both = splits.filter(scheme="forward", fold=0, role="valid")["pid"].head(20).implode()
    is_both, second = pl.col("pid").is_in(both), pl.col("scheme").eq("forward") & pl.col("fold").eq(1)
    role = pl.when(second & is_both).then(pl.lit("valid")).otherwise("role")
    again = predictions.filter(is_both, scheme="forward", fold=0).with_columns(
        fold=pl.lit(1, pl.Int32), prediction=pl.col("prediction") + 2
    )
    predictions = pl.concat([predictions, again]).sort(PREDICTIONS_CONTRACT.key)
    check_table(predictions, PREDICTIONS_CONTRACT)
    scored = collect(POSTS, splits.with_columns(role=role), predictions)
    (forward,) = (one.rows for one in scored if one.scheme == "forward")
    twice = forward.filter(pl.col("pid").is_in(both)).sort("pid", "fold").partition_by("fold", maintain_order=True)
    assert [len(rows) for rows in twice] == [20, 20]
    for model in ("stack", "constant"):
        apart = twice[1][f"prediction:{model}"] - twice[0][f"prediction:{model}"]
        assert apart.to_list() == pytest.approx([2.0] * 20)
    scores = score_overall(scored, CONFIG).filter(pl.col("minus").is_null(), scheme="forward", model="stack")
    means = {row["metric"]: row["value"] for row in scores.filter(pl.col("fold").is_null()).iter_rows(named=True)}
    assert scheme_scores(POSTS, predictions)["forward"] == {name: means[name] for name in ("mae", "src")}
    assert score_groups(scored, CONFIG).filter(scheme="forward", group="seen").height > 0


def test_scores_of_forward_are_means_over_its_splits() -> None:
    """Each split has scores of its own; the folds of `group` are scored together."""
    scored = collect(POSTS, with_forward(SPLITS), with_forward(PREDICTIONS))
    scores = score_overall(scored, CONFIG).filter(pl.col("minus").is_null())
    assert set(scores.filter(pl.col("fold").is_not_null())["scheme"]) == {"forward"}
    (forward,) = (one.rows for one in scored if one.scheme == "forward")
    for metric in ("src", "mae"):
        each = []
        for fold in (0, 1):
            rows = forward.filter(fold=fold)
            labels, predictions = rows["label"], rows["prediction:stack"]
            expected = {"mae": (predictions - labels).abs().mean(), "src": spearmanr(labels, predictions).statistic}
            row = scores.filter(scheme="forward", fold=fold, model="stack", metric=metric)
            assert row["value"].item() == pytest.approx(expected[metric], abs=1e-6)
            assert row["posts"].item() == len(rows)
            assert row["users"].item() == rows["uid"].n_unique()
            each.append(row["value"].item())
        whole = scores.filter(scheme="forward", model="stack", metric=metric).filter(pl.col("fold").is_null())
        assert whole["value"].item() == pytest.approx(sum(each) / 2, abs=1e-6)
        assert whole["posts"].item() == len(forward)
        assert whole["low"].item() < whole["value"].item() < whole["high"].item()
    fitted = with_forward(SPLITS).filter(scheme="forward", role="train").join(POSTS, on="pid")
    (found,) = (one.train_means for one in scored if one.scheme == "forward")
    assert found == {fold: pytest.approx(fitted.filter(fold=fold)["label"].mean()) for fold in (0, 1)}


def test_intervals_hold_the_value_and_pairs_are_differences() -> None:
    scores = score_overall(collect(POSTS, SPLITS, PREDICTIONS), CONFIG)
    plain = scores.filter(pl.col("value").is_not_null() & pl.col("minus").is_null())
    assert (plain["low"] < plain["high"]).all()
    assert len(plain.filter(pl.col("value").is_between("low", "high"))) > 0.9 * len(plain)
    pair = _value(scores, scheme="group", model="stack", minus="metadata", metric="mae")
    single = [_value(scores, scheme="group", model=model, minus=None, metric="mae") for model in ("stack", "metadata")]
    assert pair == pytest.approx(single[0] - single[1], abs=2e-6)
    assert pair < 0  # the stack has half the noise


def test_the_constant_has_no_rank_score_and_no_nan_is_written() -> None:
    scores = score_overall(collect(POSTS, SPLITS, PREDICTIONS), CONFIG)
    constant = scores.filter((pl.col("model") == "constant") & (pl.col("metric") == "src"))
    assert constant.select("value", "low", "high").null_count().row(0) == (len(constant),) * 3
    assert scores.filter((pl.col("minus") == "constant") & (pl.col("metric") == "src"))["value"].null_count() > 0
    assert scores.select(pl.col(pl.Float64).is_nan().any()).row(0) == (False, False, False)


def test_seen_means_a_train_row_in_the_same_fold() -> None:
    """Slow reference: find each valid user among the train rows of its scheme and fold."""
    uid = dict(POSTS.select("pid", "uid").iter_rows())
    for one in collect(POSTS, SPLITS, PREDICTIONS):
        roles = SPLITS.filter(pl.col("scheme") == one.scheme)
        seen = {row["pid"]: row["seen"] for row in one.rows.iter_rows(named=True)}
        for _, fold, pid, _ in roles.filter(pl.col("role") == "valid").iter_rows():
            fit = roles.filter((pl.col("fold") == fold) & (pl.col("role") == "train"))
            assert seen[pid] == (uid[pid] in {uid[other] for other in fit["pid"]})
        assert len(seen) == len(one.rows)
    holdout = collect(POSTS, SPLITS, PREDICTIONS)[0].rows
    assert set(holdout["seen"]) == {True, False}  # excluded users count as unseen


def test_groups_partition_the_posts() -> None:
    groups = score_groups(collect(POSTS, SPLITS, PREDICTIONS), CONFIG)
    one = groups.filter((pl.col("model") == "stack") & (pl.col("metric") == "mae") & pl.col("minus").is_null())
    total = one.filter(pl.col("scheme") == "holdout").group_by("grouping").agg(pl.col("posts").sum()).sort("grouping")
    assert total.rows() == [("category", 30), ("month", 30), ("subcategory", 30), ("user", 30)]
    assert set(groups.filter(pl.col("grouping") == "month")["group"]) <= {f"2016-{month:02}" for month in range(1, 13)}
    assert groups.filter(pl.col("users") == 1)["low"].null_count() == groups.filter(pl.col("users") == 1).height


def test_a_missing_prediction_is_an_error() -> None:
    hit = PREDICTIONS.filter((pl.col("scheme") == "group") & (pl.col("model") == "metadata"))["pid"][4]
    hole = PREDICTIONS.filter(
        ~((pl.col("scheme") == "group") & (pl.col("model") == "metadata") & (pl.col("pid") == hit))
    )
    with pytest.raises(ContractError, match=rf"1 missing, for example .*'pid': '{hit}'.*'metadata'"):
        collect(POSTS, SPLITS, hole)


def test_a_surplus_prediction_is_an_error() -> None:
    dropped = SPLITS.filter((pl.col("scheme") == "holdout") & (pl.col("role") == "excluded"))["pid"][0]
    extra = PREDICTIONS.filter((pl.col("scheme") == "holdout") & (pl.col("model") == "stack")).head(1)
    extra = extra.with_columns(pid=pl.lit(dropped))
    with pytest.raises(ContractError, match=rf"1 surplus, for example .*'{dropped}'"):
        collect(POSTS, SPLITS, pl.concat([PREDICTIONS, extra]))


def test_a_double_prediction_is_an_error() -> None:
    with pytest.raises(ContractError, match="1 surplus"):
        collect(POSTS, SPLITS, pl.concat([PREDICTIONS, PREDICTIONS.head(1)]))


def test_a_scheme_without_stack_and_no_holdout_are_errors() -> None:
    with pytest.raises(ContractError, match="none for scheme 'holdout'"):
        collect(POSTS, SPLITS, PREDICTIONS.filter(pl.col("scheme") != "holdout"))
    with pytest.raises(ContractError, match="has no model 'stack'"):
        collect(POSTS, SPLITS, PREDICTIONS.filter(pl.col("model") != "stack"))


def test_row_order_of_the_inputs_does_not_matter() -> None:
    shuffled = [frame.sample(fraction=1, shuffle=True, seed=5) for frame in (POSTS, SPLITS, PREDICTIONS)]
    straight = collect(POSTS, SPLITS, PREDICTIONS)
    for left, right in zip(straight, collect(*shuffled), strict=True):
        assert left.rows.equals(right.rows.select(left.rows.columns))
