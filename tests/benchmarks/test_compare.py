"""benchmarks.compare and benchmarks.schemes on random posts."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks import compare, rows, schemes
from benchmarks.systems import SHAPES, USERS_PER_NAME, FoldData, Project, ours, reshaped
from popularity.core import paths
from popularity.core.config import load_params
from popularity.core.contracts import FOLDS, IMAGES, POSTS, USERS, FoldKey, read_table, write_table
from popularity.core.errors import ConfigError, DataError
from popularity.core.manifest import REPOSITORY
from popularity.core.metrics import mean_absolute_error, spearman
from popularity.ensemble.members import Chosen, EnsembleParams
from popularity.features.columns import FROM_LABELS, FeatureColumn
from popularity.features.user_text import no_users
from popularity.stack import StackParams
from popularity.stack.members import write_members
from popularity.validation import make_splits, rows_of
from tests.encoders.tiny_encoders import encoder_sections, text_params
from tests.random_posts import random_images, random_posts
from tests.repository import PAIR
from tests.stack.small_stack import FEATURIZE, SPLIT, STACK, posts_with_signal, tree_bytes, write_blocks
from tests.text_model.test_text_model import PARAMS as TEXT_MODEL

ENSEMBLE = EnsembleParams(seed=0, text_model=True, members=(), shrinkage=0.5)


def write_project(folder: Path, posts: pl.DataFrame | None = None) -> Path:
    """What the benchmarks read of a run, in `folder`; labels from `posts`."""
    made, blocks = posts_with_signal(11, train=600, test=120)
    interim = folder / "data/interim"
    write_table(made if posts is None else posts, interim / "posts.parquet", POSTS)
    write_table(random_images(made.sort("pid"), seed=0), interim / "images.parquet", IMAGES)
    write_table(make_splits(made, SPLIT)[0], interim / "splits.parquet", FOLDS)
    write_table(no_users(), interim / "users.parquet", USERS)
    embeddings = folder / "data/embeddings"
    write_blocks(blocks, embeddings)
    for kind, name in PAIR.items():
        (embeddings / "stack" / kind).mkdir(parents=True)
        (embeddings / kind).rename(embeddings / "stack" / kind / name)
    params = {"split": asdict(SPLIT), "featurize": asdict(FEATURIZE), "stack": asdict(STACK)}
    params |= {"text_model": {**asdict(TEXT_MODEL), "epochs": 0}, **encoder_sections(text=text_params())}
    (folder / "params.yaml").write_text(json.dumps(params), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("project"))


def relabelled(folder: Path, scheme: str, fold: int, other: Path) -> Path:
    """A copy of the project in which the posts from the first that the fold scores on have other labels."""
    posts = read_table(folder / "data/interim/posts.parquet", POSTS)
    rows = make_splits(posts, replace(SPLIT, n_origins=3))[0].filter(scheme=scheme, fold=fold, role="valid")
    start = rows.join(posts, on="pid")["posted_at"].min()
    drawn = pl.Series(np.random.default_rng(0).uniform(1, 16, posts.height))
    later = (pl.col("posted_at") >= start) & (pl.col("split") == "train")
    return write_project(other, posts.with_columns(label=pl.when(later).then(drawn).otherwise("label")))


def run_table(folder: Path, *flags: str) -> pl.DataFrame:
    out = folder / "table.csv"
    compare.main(["--folders", str(folder), "--workers", "1", "--resamples", "30", "--csv", str(out), *flags])
    return pl.read_csv(out, schema_overrides={"split": pl.String})


SOME = ("--rows", "metadata", "user_mean", "constant", "- recency")


def test_a_score_a_system_metric_and_split_and_their_mean(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = run_table(project, *SOME)
    assert set(table["system"]) == {"ours", *SOME[1:]}
    assert table["split"].unique(maintain_order=True).to_list() == ["0", "1", "mean"]
    posts = read_table(project / "data/interim/posts.parquet", POSTS)
    made = rows.with_splits(Project.read(project), make_splits(posts, SPLIT)[0].filter(scheme="forward"), FEATURIZE)
    for system, change in (("ours", lambda data: data), ("metadata", rows.metadata_alone)):
        found = table.filter(system=system)
        each: dict[str, list[float]] = {"src": [], "mae": []}
        for data in made.folds(["forward"]):
            labels, predicted = made.labels(data), ours(change(data))
            each["src"].append(spearman(labels, predicted) or 0.0)
            each["mae"].append(mean_absolute_error(labels, predicted))
        for metric, values in each.items():
            expected = [*values, np.mean(values)]
            assert found.filter(metric=metric)["score"].to_list() == pytest.approx(expected)
    wide = table.filter(metric="mae", split="mean").select("system", "score", "difference", "low", "high")
    score = dict(wide.select("system", "score").iter_rows())
    for value, difference, low, high in wide.drop("system").iter_rows():
        assert difference == pytest.approx(value - score["ours"])
        assert low <= difference <= high
    assert score["ours"] != score["- recency"]
    shown = capsys.readouterr().out
    assert shown.count("metadata") == 2
    assert "holdout" not in shown


def test_ours_with_and_without_a_part_are_ensembles_with_the_text_model(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = json.loads((project / "params.yaml").read_text(encoding="utf-8"))
    params["text_model"]["epochs"] = 1
    params["ensemble"] = asdict(ENSEMBLE)
    (tmp_path / "params.yaml").write_text(json.dumps(params), encoding="utf-8")
    table = run_table(project, *SOME, "--params", str(tmp_path / "params.yaml"))
    assert set(table["system"]) == {"ours", *SOME[1:], "text model", "- text model"}
    alone = run_table(project, *SOME)
    score = {name: dict(found.filter(split="mean", metric="src").select("system", "score").iter_rows())
             for name, found in (("alone", alone), ("ensemble", table))}  # fmt: skip
    assert score["ensemble"]["- text model"] == score["alone"]["ours"]
    for name in SOME[1:-1]:
        assert score["ensemble"][name] == score["alone"][name]
    for name in ("ours", "- recency"):
        assert score["ensemble"][name] != score["alone"][name]
    made = pl.DataFrame(
        {
            "pid": list("abc"), "uid": list("abc"), "scheme": "forward", "fold": 0, "label": [1.0, 2.0, 3.0],
            "constant": 0.0,
            "ours": [2.0, 4.0, 6.0], "- image": [0.0, 1.0, 5.0], "metadata": [7.0, 8.0, 9.0],
            "text model": [8.0, 10.0, 9.0], "- text model": [2.0, 4.0, 6.0],
        }
    )  # fmt: skip
    quarter = {"stack": 0.75, "text_model": 0.25}
    monkeypatch.setattr(compare, "chosen_weights", lambda *_: Chosen(quarter, {0: quarter}))
    found = compare.with_text(made, ENSEMBLE)
    assert found["ours"].to_list() == [2.25, 4.25, 5.5]
    assert found["- image"].to_list() == [0.0, 1.25, 4.0]
    assert found.drop("ours", "- image").equals(made.drop("ours", "- image"))


def test_finished_predictions_are_found_again(tmp_path: Path) -> None:
    folder = write_project(tmp_path)
    table = run_table(folder, *SOME)
    before = tree_bytes(folder / ".state")
    assert run_table(folder, *SOME).equals(table)
    assert tree_bytes(folder / ".state") == before
    for file in (folder / ".state/benchmarks/compare").iterdir():  # altered, so that it shows
        kept = pl.read_parquet(file)
        kept.with_columns(pl.lit(3.0).alias("prediction")).write_parquet(file)
    assert run_table(folder, *SOME).filter(metric="mae")["difference"].unique().to_list() == [0.0]


def test_labels_of_the_holdout_reach_no_forward_split(project: Path, tmp_path: Path) -> None:
    other = relabelled(project, "holdout", 0, tmp_path)
    found, expected = (run_table(folder, *SOME).drop("set") for folder in (other, project))
    assert found.equals(expected)


def test_cached_predictions_depend_on_what_the_system_reads(project: Path) -> None:
    posts = read_table(project / "data/interim/posts.parquet", POSTS)
    made = rows.with_splits(Project.read(project), make_splits(posts, SPLIT)[0].filter(scheme="forward"), FEATURIZE)
    data, *_ = made.folds(["forward"])
    fold = data.fold
    others = {
        "label": replace(data, fold=replace(fold, label=fold.label + 1)),
        "dates": replace(data, fold=replace(fold, valid_at=fold.valid_at + 1)),
        "feature": replace(data, fold=replace(fold, valid=fold.valid.with_columns(hour=pl.lit(1, pl.Int8)))),
        "parameter": replace(data, params=replace(data.params, sample_weight_half_life_days=1.0)),
    }
    kinds = {"ours": rows.stack_row(lambda data: data), "constant": rows.simple_row("constant")}
    keys = [row.inputs(one) for row in kinds.values() for one in (data, *others.values())]
    assert len({str(key) for key in keys}) == len(keys)
    named = rows.stack_row(lambda data: replace(data, fold=replace(data.fold, key=FoldKey("random", 0))))
    assert named.inputs(data) == kinds["ours"].inputs(data)
    assert rows.stack_row(rows.metadata_alone).inputs(data) != kinds["ours"].inputs(data)


def test_every_part_that_there_is_can_be_left_out() -> None:
    assert set(rows.without_parts(STACK)) == {
        "- image", "- text", "- prototype", "- oof_ridge", "- characters", "- recency",
    }  # fmt: skip
    params = replace(
        STACK, n_seeds=2, detrend="linear", learners=("lightgbm", "linear"),
        columns=replace(STACK.columns, feature_groups=("words", "rhythm")),
    )  # fmt: skip
    parts = rows.without_parts(params)
    assert set(parts) - set(rows.without_parts(STACK)) == {
        "- feature group: words", "- feature group: rhythm", "- feature groups",
        "- detrend", "- lightgbm", "- linear", "- further seeds",
    }  # fmt: skip
    assert parts["- text"].columns.feature_blocks == ("metadata", "image", "prototype")
    assert parts["- text"].columns.oof_ridge == ("image", "characters", "prototype")
    assert parts["- feature group: words"].columns.feature_groups == ("rhythm",)
    assert parts["- linear"].learners == ("lightgbm",)


def test_a_fold_without_target_statistics_keeps_all_else(project: Path) -> None:
    posts = read_table(project / "data/interim/posts.parquet", POSTS)
    made = rows.with_splits(Project.read(project), make_splits(posts, SPLIT)[0].filter(scheme="forward"), FEATURIZE)
    data, *_ = made.folds(["forward"])
    fold = rows.without_target_statistics(data).fold
    gone = set(data.fold.train.columns) - set(fold.train.columns)
    assert {column.rpartition("_")[0] for column in gone if column.startswith("uid")} == {"uid_target"}
    assert all(FeatureColumn.named(column).fitted_on_labels for column in gone)
    assert not any(column in fold.train.columns for column in FROM_LABELS if "." not in column)
    assert fold.valid.columns == fold.train.columns


def git(folder: Path, *command: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    return subprocess.run(["git", "-C", folder, *who, *command], capture_output=True, text=True, check=True).stdout


def test_the_holdout_is_scored_for_a_commit_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is scored while parameters or code differ from the commit; then the log holds commit and scores."""
    folder = write_project(tmp_path)
    monkeypatch.setattr(compare, "REPOSITORY", folder)
    with pytest.raises(ConfigError, match="for a commit only"):
        run_table(folder, "--holdout")
    (folder / "src").mkdir()
    (folder / "src/code.py").write_text("")
    git(folder, "init")
    git(folder, "add", "params.yaml", "src")
    git(folder, "commit", "-m", "all")
    log = folder / "reports/holdout.log"
    for file in (folder / "params.yaml", folder / "src/further.py"):
        before = file.read_text() if file.exists() else None
        file.write_text((before or "") + "\n")
        with pytest.raises(ConfigError, match=f"commit the configuration(.|\n)*{file.name}"):
            run_table(folder, "--holdout")
        file.unlink() if before is None else file.write_text(before)
    assert not log.exists()
    assert not (folder / ".state").exists()
    capsys.readouterr()
    table = run_table(folder, *SOME, "--holdout")
    last = table.filter(split="holdout")
    assert set(last["system"]) == {"ours", *SOME[1:]}
    commit = git(folder, "rev-parse", "HEAD").strip()
    lines = log.read_text(encoding="utf-8").splitlines()
    assert len(lines) == last["system"].n_unique()
    assert all(f"commit {commit} " in line for line in lines)
    src, mae = (last.filter(system="ours", metric=metric)["score"].item() for metric in ("src", "mae"))
    assert lines[0].endswith(f"ours  SRC {src:.4f}  MAE {mae:.4f}")
    mean = table.filter(system="ours", metric="mae", split="mean")["score"].item()
    assert f"MAE: mean of the splits {mean:.4f}, holdout {mae:.4f}, {mae - mean:+.4f}" in capsys.readouterr().out
    run_table(folder, *SOME, "--holdout")
    assert len(log.read_text(encoding="utf-8").splitlines()) == 2 * len(lines)


def test_a_part_is_compared_with_ours_where_all_is_fitted(project: Path, tmp_path: Path) -> None:
    """Only a finished run, whose parts are fitted with fewer seeds, has another row for them."""
    params = json.loads((project / "params.yaml").read_text(encoding="utf-8"))
    params["stack"]["n_seeds"] = 2
    (tmp_path / "params.yaml").write_text(json.dumps(params), encoding="utf-8")
    flags = ("--rows", "- recency", "- further seeds", "--params", str(tmp_path / "params.yaml"))
    means = run_table(project, *flags).filter(split="mean", metric="mae")
    score = dict(means.select("system", "score").iter_rows())
    assert score["- further seeds"] != score["ours"]
    found = means.filter(system="- recency")["difference"].item()
    assert found == pytest.approx(score["- recency"] - score["ours"])


def test_an_unknown_system_is_a_named_error(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"--rows other: expected groups \((.|\n)*parts, (.|\n)*- image, "):
        run_table(project, "--rows", "other")
    with pytest.raises(ConfigError, match="--against other: expected one of the rows ours, constant"):
        run_table(project, "--rows", "constant", "--against", "other")


def test_choices_are_different_stacks_whatever_params_say() -> None:
    found = rows.choices(STACK)
    assert found[rows.BASELINE] == replace(STACK, sample_weight_half_life_days=365.0)
    assert found["detrend"] == replace(STACK, sample_weight_half_life_days=365.0, detrend="linear")
    assert len({str(params) for params in found.values()}) == len(found)
    others = rows.choices(replace(STACK, detrend="linear", target_transform="rank_gauss", learners=("linear",)))
    assert others == found


def test_rows_of_feature_groups_name_their_groups() -> None:
    found = rows.feature_group_rows()
    assert found[rows.NO_FEATURE_GROUPS] == ()
    assert found["only user_target"] == ("user_target",)
    assert set(found["all feature groups"]) == set(rows.FEATURE_GROUPS)
    assert set(found["all but words"]) == set(rows.FEATURE_GROUPS) - {"words"}


def test_a_group_is_compared_with_another_row(project: Path) -> None:
    table = run_table(project, "--rows", "rank_gauss", "only words", "--against", "baseline").filter(split="mean")
    assert table["system"].unique(maintain_order=True).to_list() == ["ours", "rank_gauss", "only words", "baseline"]
    assert table.filter(system="baseline")["difference"].to_list() == [0.0, 0.0]
    assert all(value != 0 for value in table.filter(system="rank_gauss")["difference"])
    every = rows.groups_of_rows(STACK, project)
    assert set(every) == {"parts", "baselines", "peers", "choices", "feature_groups"}
    assert set(every["choices"]) == set(rows.choices(STACK))


def test_changed_parameters_are_rows(project: Path, tmp_path: Path) -> None:
    """Of a file, and of the stage tune where it has run; without a change they equal ours."""
    same, other = tmp_path / "same.yaml", project / paths.TUNING_MEMBERS
    same.write_text("{}", encoding="utf-8")
    other.parent.mkdir(parents=True)
    write_members({"few": {"lightgbm.num_leaves": 2, "lightgbm.learning_rate": 0.01}}, other)
    table = run_table(project, "--rows", "members", "--patch", f"same={same}").filter(split="mean")
    other.unlink()
    difference = {name: own["difference"].to_list() for (name,), own in table.group_by("system")}
    assert difference["same"] == [0.0, 0.0]
    assert difference["member few"][1] > 0.1  # far fewer leaves: the error grows


def test_the_same_network_twice_brings_nothing(project: Path, tmp_path: Path) -> None:
    again = write_project(tmp_path / "again")
    table = run_table(project, "--rows", "constant", "--runs", str(again)).filter(split="mean")
    combined = table.filter(pl.col("system").is_in([str(again), compare.RUNS_MEAN, compare.RUNS_WEIGHTED]))
    assert combined.height == 6
    assert combined["difference"].to_list() == pytest.approx([0] * 6, abs=1e-9)
    assert any(table.filter(system=compare.MORE)["difference"].to_list())
    path = again / "data/interim/posts.parquet"
    write_table(read_table(path, POSTS).head(-1), path, POSTS)
    with pytest.raises(DataError, match="other posts than those of the first run"):
        run_table(project, "--rows", "constant", "--runs", str(again))


def test_labels_of_a_split_do_not_change_its_own_weights() -> None:
    draw = np.random.default_rng(0)
    label = draw.normal(6, 2, 300)
    networks = {"sharp": label + draw.normal(0, 0.5, 300), "noisy": label + draw.normal(0, 4, 300)}
    found = pl.DataFrame({"scheme": "forward", "fold": np.repeat([0, 1, 2], 100), "label": label, **networks})
    split = found.filter(fold=1)
    weights = compare._weights(found, split, list(networks))
    assert weights[0] > 0.9
    turned = found.with_columns(label=pl.when(pl.col("fold") == 1).then("noisy").otherwise("label"))
    assert compare._weights(turned, split, list(networks)).tolist() == weights.tolist()
    assert compare._weights(turned, found.filter(fold=0), list(networks)).tolist() != weights.tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_no_forward_split_of_a_shape_has_valid_posts_of_the_holdout(shape: str, project: Path) -> None:
    run = Project.read(project)
    run = replace(run, splits=make_splits(run.posts, SPLIT)[0])
    found = reshaped(run, shape, SPLIT)
    assert found.posts.equals(SHAPES[shape](run.posts))
    before, forward, holdout = (
        own.splits.filter(scheme=scheme, role="valid").select("pid").unique().join(run.posts, on="pid")
        for own, scheme in ((run, "holdout"), (found, "forward"), (found, "holdout"))
    )
    assert forward["posted_at"].max() < before["posted_at"].min()  # type: ignore[operator]
    assert holdout.height
    assert set(holdout["pid"]) == set(before.join(found.posts, on="pid", how="semi")["pid"])  # begins where it did


def test_shapes_are_made_from_the_posts() -> None:
    posts = random_posts(0, train=400, test=100, users=100)
    merged = SHAPES["coarse users"](posts)
    assert merged.drop("uid").equals(posts.drop("uid"))
    groups = posts.select("uid", to=merged["uid"]).unique()
    assert groups["uid"].is_unique().all()
    assert groups.group_by("to").len()["len"].max() == USERS_PER_NAME
    for shape, column, parts in (("half the classes", "subcategory", 2), ("a third of the users", "uid", 3)):
        some = SHAPES[shape](posts)
        assert some[column].n_unique() == posts[column].n_unique() // parts
        assert some.equals(posts.filter(pl.col(column).is_in(some[column].unique().implode())))


@pytest.fixture(scope="module")
def world(project: Path) -> tuple[Project, pl.DataFrame]:
    """The data set before the last of three forward splits, and the rows of that split."""
    run = Project.read(project)
    made = make_splits(run.posts, replace(SPLIT, n_origins=3))[0]
    (*_, (_, last)) = rows_of(made, ["forward"])
    return schemes.world_of(run, last, SPLIT, FEATURIZE), last


def test_a_forward_split_takes_the_place_of_the_test_part(project: Path, world: tuple[Project, pl.DataFrame]) -> None:
    made, last = world
    truth = Project.read(project).posts
    posts = made.posts.join(last, on="pid", validate="1:1")
    assert posts.height == made.posts.height == last.height
    assert (posts["split"] == "train").equals(posts["role"] == "train")
    assert posts["label"].is_null().equals(posts["role"] == "valid")
    labels = posts.filter(role="train").join(truth, on="pid", suffix=" before")
    assert labels["label"].equals(labels["label before"])
    (final,) = made.folds(["refit"])
    assert set(final.fold.train["pid"]) == set(last.filter(role="train")["pid"])
    assert set(final.fold.valid["pid"]) == set(last.filter(role="valid")["pid"])
    start = posts.filter(role="valid")["posted_at"].min()
    shown = {"forward": 3, schemes.LATE: 1, "group": schemes.N_FOLDS, "random": schemes.N_FOLDS}
    for scheme, count in shown.items():
        folds = list(made.folds([scheme]))
        assert len(folds) == count
        for data in folds:
            pids = [*data.fold.train["pid"], *data.fold.valid["pid"]]
            assert posts.filter(pl.col("pid").is_in(pids))["posted_at"].max() < start  # type: ignore[operator]
    used = {pid for data in made.folds(["group"]) for pid in data.fold.valid["pid"]}
    fitted = posts.filter(role="train")
    assert used == set(
        fitted.filter(pl.col("posted_at") < pl.col("posted_at").max())["pid"]
    )  # the last one is in `holdout`


def test_the_late_slice_keeps_every_user(world: tuple[Project, pl.DataFrame]) -> None:
    made, _ = world
    *_, forward = made.folds(["forward"])
    (late,) = made.folds([schemes.LATE])
    assert late.fold.valid["pid"].equals(forward.fold.valid["pid"])
    start = forward.posts.filter(pl.col("label").is_null())["posted_at"].min()
    before = made.posts.filter(pl.col("posted_at") < start)["pid"].sort()
    assert late.fold.train["pid"].equals(before)
    assert len(forward.fold.train) < len(before)


def test_validation_scores_depend_on_labels_before_the_split_alone(project: Path, tmp_path: Path) -> None:
    """With other labels after the start of the split, every validation score stays and the test score changes."""
    other = relabelled(project, "forward", 1, tmp_path)
    for name in ("metadata", "user_mean"):
        first, second = (schemes.scores_of(folder, folder / "params.yaml", 1, name) for folder in (project, other))
        assert first.drop("test").equals(second.drop("test"))
        assert not first["test"].equals(second["test"])
        assert first.height == 2 * 6
        assert first.group_by("metric").agg(pl.col("test").n_unique())["test"].to_list() == [1, 1]


def test_scores_of_a_scheme_are_of_its_posts(world: tuple[Project, pl.DataFrame]) -> None:
    made, _ = world

    def system(data: FoldData) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.arange(data.fold.valid.height, dtype=np.float64)

    scored = {scheme: made.run({"one": system}, scheme) for scheme in ("forward", schemes.LATE, "group", "random")}
    scored["refit"] = scored["group"]
    found = schemes.scheme_scores(scored, "one")
    by_split = scored["forward"].partition_by("fold", maintain_order=True)
    each = [mean_absolute_error(part["label"].to_numpy(), part["one"].to_numpy()) for part in by_split]
    assert found["forward, mean of splits"]["mae"] == pytest.approx(np.mean(each))
    assert found["forward, last split"]["mae"] == pytest.approx(each[-1])
    pooled = mean_absolute_error(scored["group"]["label"].to_numpy(), scored["group"]["one"].to_numpy())
    assert found["group"]["mae"] == pytest.approx(pooled)
    assert found["forward and group"]["mae"] == pytest.approx((pooled + np.mean(each)) / 2)


def test_rank_bias_and_regret_of_a_scheme() -> None:
    test = {"a": 0.5, "b": 0.4, "c": 0.1}
    validation = {"good": {"a": 0.6, "b": 0.5, "c": 0.2}, "bad": {"a": 0.1, "b": 0.4, "c": 0.5}}
    lines = [
        {
            "split": split,
            "system": name,
            "scheme": scheme,
            "metric": metric,
            "validation": values[name],
            "test": test[name],
        }
        for metric in ("src", "mae")
        for scheme, values in validation.items()
        for split in (0, 1)
        for name in test
    ]
    src, mae = (
        {row["scheme"]: row for row in schemes.ranked_schemes(pl.DataFrame(lines), metric)} for metric in ("src", "mae")
    )
    names = ("rank", "rank_0", "rank_1", "bias", "absolute_bias", "regret")
    assert [src["good"][name] for name in names] == pytest.approx([1, 1, 1, 0.1, 0.1, 0])
    assert [src["bad"][name] for name in names] == pytest.approx([-1, -1, -1, 0, 0.8 / 3, 0.4])
    assert [mae[scheme]["regret"] for scheme in ("good", "bad")] == pytest.approx([0, 0.4])
    assert "1.000 [1.00 1.00]  +0.1000         0.1000  0.0000" in schemes.printed([src["good"]])


def test_the_loss_is_the_mae_over_that_of_the_constant_minus_the_rank_correlation() -> None:
    scores = {"one": {"src": (0.5, 0.4), "mae": (1.0, 1.5)}, "constant": {"src": (0.0, 0.0), "mae": (2.0, 2.5)}}
    lines = [
        {"split": 0, "system": name, "scheme": "a", "metric": metric, "validation": validation, "test": test}
        for name, own in scores.items()
        for metric, (validation, test) in own.items()
    ]
    table = schemes.with_loss(pl.DataFrame(lines))
    assert table.head(4).equals(pl.DataFrame(lines))
    values = table.filter(metric=schemes.LOSS).rows_by_key("system", named=True, unique=True)
    assert values["one"]["validation"] == pytest.approx(1.0 / 2.0 - 0.5)
    assert values["one"]["test"] == pytest.approx(1.5 / 2.5 - 0.4)
    assert (values["constant"]["validation"], values["constant"]["test"]) == (1.0, 1.0)


def test_the_command_prints_a_line_a_scheme(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--systems", "user_mean", "--workers", "1", "--csv", str(tmp_path / "scores.csv")]
    schemes.main(["--folder", str(project), *flags])
    table = pl.read_csv(tmp_path / "scores.csv")
    assert table.height == 3 * 6  # of metrics and schemes
    assert {f"rank_{split}" for split in range(schemes.N_SPLITS)} < set(table.columns)
    shown = capsys.readouterr().out
    assert shown.count("forward, mean of splits") == shown.count("last split with all users") == 3


def test_there_are_enough_varied_systems(project: Path) -> None:
    """Each reads something else of the same fold, at the parameters of the repository."""
    assert len(schemes.SYSTEMS) >= 12
    world = schemes.truncated(project, project / "params.yaml", 2)
    world = replace(world, params=load_params("stack", StackParams, REPOSITORY / "params.yaml"))
    (data,) = world.folds(["refit"])
    assert len({str(row.inputs(data)) for row in schemes.SYSTEMS.values()}) == len(schemes.SYSTEMS)
