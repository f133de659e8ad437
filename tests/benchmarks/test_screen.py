"""benchmarks.screen: its columns, its fits, and its verdicts, on random posts."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from benchmarks import screen
from benchmarks.candidates import CANDIDATES, changed, chosen_candidates
from benchmarks.means import LOSS, SHARE, mean_over_sets, outside, with_share
from benchmarks.screen import DEFAULT, verdict_of
from benchmarks.screen_fits import UNREAD, Store, predictions_of, tasks_of
from benchmarks.systems import FoldData, Project, compare
from popularity.core.config import load_params
from popularity.core.contracts import FOLDS, IMAGES, POSTS, read_table, write_table
from popularity.core.errors import ConfigError, DataError
from popularity.core.manifest import REPOSITORY
from popularity.core.metrics import mean_absolute_error, spearman
from popularity.ensemble.members import CONSTANT
from popularity.features import featurize
from popularity.stack import StackParams
from popularity.stack.effort import Effort
from popularity.stack.fit import encode_fold, fit_fold
from popularity.stack.matrix import ColumnParams
from popularity.validation import make_splits
from tests.benchmarks.test_compare import write_project
from tests.stack.small_stack import FEATURIZE, SPLIT, STACK, posts_with_signal, tree_bytes

FILE = "small trees: {lightgbm.num_leaves: 3}\nno image: {columns.feature_blocks: [metadata, text]}\n"
FLAGS = ("--workers", "1", "--rounds", "8", "--resamples", "40")


def with_features(folder: Path, posts: pl.DataFrame | None = None) -> Path:
    """A project as `dvc repro embed_posts featurize` leaves it; labels from `posts`."""
    write_project(folder, posts)
    interim = folder / "data/interim"
    posts = read_table(interim / "posts.parquet", POSTS)
    splits = make_splits(posts, SPLIT)[0]
    write_table(splits, interim / "splits.parquet", FOLDS)
    featurize(posts, read_table(interim / "images.parquet", IMAGES), splits, FEATURIZE, folder / "data/features")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two data sets: in the second the labels are larger and noisier."""
    posts = posts_with_signal(11, train=600, test=120)[0]
    noise = pl.Series(np.random.default_rng(2).normal(size=posts.height))
    return [
        with_features(tmp_path_factory.mktemp("one")),
        with_features(tmp_path_factory.mktemp("two"), posts.with_columns(label=pl.col("label") * 2 + noise)),
    ]


@pytest.fixture(scope="module")
def data(folders: list[Path]) -> FoldData:
    """The first forward split of the first data set, with image statistics."""
    project = Project.read(folders[0])
    drawn = np.random.default_rng(5).random(project.blocks.scalars.height)
    scalars = project.blocks.scalars.with_columns(pl.Series("image_statistics.text", drawn, pl.Float32))
    blocks = replace(project.blocks, scalars=scalars)
    return next(iter(replace(project, blocks=blocks).folds(["forward"])))


def columns(**changes: Any) -> ColumnParams:
    return replace(STACK.columns, **changes)


VARIANTS = {
    "as it is": columns(),
    "two blocks in another order": columns(feature_blocks=("text", "metadata")),
    "groups": columns(feature_groups=("words", "rhythm")),
    "groups with columns of other blocks": columns(feature_groups=("image", "neighbours", "class_time")),
    "user": columns(uid_category=True, category_min_posts=5),
    "some ridges": columns(oof_ridge=("image", "characters")),
    "other vectors": columns(n_components=2, text_vectors="post", prototype_parts=("attended_image", "losses")),
    "raw vectors": columns(n_components=0, oof_ridge=()),
}


@pytest.mark.parametrize("detrend", ["none", "linear"])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_columns_are_those_of_the_stage(data: FoldData, name: str, detrend: Any, tmp_path: Path) -> None:
    params = replace(STACK, detrend=detrend, columns=VARIANTS[name])
    expected = encode_fold(data.fold, data.blocks, params)
    for _ in range(2):  # the second time from the files
        found = Store(tmp_path, "").encoded(data, params)
        for mine, stages in ((found.train, expected.train), (found.valid, expected.valid)):
            assert mine is not None
            assert stages is not None
            assert mine.columns == stages.columns
            assert list(mine.pids) == list(stages.pids)
            assert np.array_equal(mine.values, stages.values, equal_nan=True)


OTHER: dict[str, Any] = {
    "prototype_parts": ("losses",),
    "text_vectors": "post",
    "n_components": 2,
    "oof_ridge_folds": 2,
    "oof_ridge_alphas": (30.0,),
    "oof_ridge_character_alphas": (3.0,),
    "category_min_posts": 40,
}


@pytest.mark.parametrize("block", UNREAD)
def test_a_field_that_a_block_does_not_read_changes_no_column(data: FoldData, block: str, tmp_path: Path) -> None:
    """And of the fields that it reads, each gives a file of its own."""
    chosen = {"feature_blocks", "feature_groups", "oof_ridge", "uid_category"}  # among the encoded columns
    assert {field.name for field in fields(ColumnParams)} == {*OTHER, *chosen}

    def encoded(folder: str, params: ColumnParams) -> bytes:
        train, valid = Store(tmp_path / folder, "").block(data, block, replace(STACK, columns=params))
        return train.values.tobytes() + valid.values.tobytes()

    before = encoded("all", STACK.columns)
    for name, value in OTHER.items():
        other = replace(STACK.columns, **{name: value})
        count = len(tree_bytes(tmp_path / "all"))
        encoded("all", other)
        assert len(tree_bytes(tmp_path / "all")) == count + (name not in UNREAD[block]), name
        if name in UNREAD[block]:
            assert encoded(name, other) == before, name


def test_a_fit_has_all_rounds_and_no_inner_cv(data: FoldData, tmp_path: Path) -> None:
    params = replace(STACK, num_boost_round=9, early_stopping_rounds=1)
    found = Store(tmp_path, "").predictions(data, params)
    fixed = replace(params, inner_cv=replace(params.inner_cv, n_splits=0))
    encoded = encode_fold(data.fold, data.blocks, params)
    model = fit_fold(encoded, fixed, Effort.full(fixed))
    assert model.models["lightgbm"][0].num_trees() == 9
    assert encoded.valid is not None
    assert found.tolist() == model.predict_each(encoded.valid, data.fold.valid_at)[0].tolist()


def test_each_key_of_lightgbm_is_another_fit(data: FoldData, tmp_path: Path) -> None:
    base = replace(STACK, num_boost_round=9)
    stacks = {DEFAULT: base} | {name: changed(base, name, keys) for name, keys in CANDIDATES["learners"].items()}
    del stacks["absolute error"]
    each = {
        tuple(Store(tmp_path, "").predictions(data, stack).tolist())
        for stack in stacks.values()
        if stack.learners == ("lightgbm",)
    }
    assert len(each) == len([stack for stack in stacks.values() if stack.learners == ("lightgbm",)])


def screened(folders: list[Path], out: Path, *flags: str) -> pl.DataFrame:
    file = out / "candidates.yaml"
    file.write_text(FILE, encoding="utf-8")
    given = ["--file", str(file), "--params", str(folders[0] / "params.yaml"), "--csv", str(out / "screen.csv")]
    screen.main([*map(str, folders), *given, *FLAGS, *flags])
    return pl.read_csv(out / "screen.csv")


def test_scores_by_set_and_their_mean(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = screened(folders, tmp_path)
    shares: dict[str, list[float]] = {DEFAULT: [], "no image": []}
    ranks: dict[str, list[float]] = {DEFAULT: [], "no image": []}
    base = replace(STACK, num_boost_round=8)
    stacks = {DEFAULT: base, "no image": replace(base, columns=columns(feature_blocks=("metadata", "text")))}
    for folder in folders:
        tasks = tasks_of(folder, folder / "params.yaml", "forward", stacks)
        parts = [predictions_of(task) for task in tasks]
        assert [part["fold"].unique().to_list() for part in parts] == [[0], [1]]

        def mean(metric: Any, name: str, parts: list[pl.DataFrame] = parts) -> float:
            return float(np.mean([metric(part["label"].to_numpy(), part[name].to_numpy()) for part in parts]))

        own = table.filter(set=str(folder))
        for name, known in shares.items():
            src, mae = mean(spearman, name), mean(mean_absolute_error, name)
            known.append(mae / mean(mean_absolute_error, CONSTANT))
            ranks[name].append(src)
            scores = dict(own.filter(system=name).select("metric", "score").iter_rows())
            assert scores == pytest.approx({"src": src, "mae": mae, SHARE: known[-1]})
    assert ranks[DEFAULT] != ranks["no image"]
    over = table.filter(set="mean", system="no image").rows_by_key("metric", named=True, unique=True)
    assert over["src"]["score"] == pytest.approx(np.mean(ranks["no image"]))
    assert over[SHARE]["score"] == pytest.approx(np.mean(shares["no image"]))
    assert over[LOSS]["score"] == pytest.approx(np.mean(shares["no image"]) - np.mean(ranks["no image"]))
    for metric, values in (("src", ranks), (SHARE, shares)):
        assert over[metric]["difference"] == pytest.approx(np.mean(values["no image"]) - np.mean(values[DEFAULT]))
        assert over[metric]["low"] < over[metric]["difference"] < over[metric]["high"]
    shown = capsys.readouterr().out
    assert screen.RULE in shown
    assert "holdout was not scored." in shown
    assert set(table["scheme"]) == {"forward"}
    assert set(table["system"]) == {DEFAULT, "small trees", "no image", CONSTANT}


def test_what_is_cached_is_read_again(folders: list[Path], tmp_path: Path) -> None:
    copies = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in folders]
    table = screened(copies, tmp_path)
    before = [tree_bytes(folder / ".state") for folder in copies]
    assert screened(copies, tmp_path).equals(table)
    assert [tree_bytes(folder / ".state") for folder in copies] == before
    for file in (copies[0] / ".state/benchmarks/screen/predictions").iterdir():  # altered, so that it shows
        pl.read_parquet(file).with_columns(prediction=pl.lit(3.0)).write_parquet(file)
    found = screened(copies, tmp_path).filter(set=str(copies[0]), metric="mae")
    assert found.filter(pl.col("system") != CONSTANT)["difference"].unique().to_list() == [0.0]


def test_labels_of_the_holdout_change_nothing(folders: list[Path], tmp_path: Path) -> None:
    project = Project.read(folders[0])
    late = project.splits.filter(scheme="holdout", role="valid")["pid"].implode()
    label = pl.when(pl.col("pid").is_in(late)).then(17 - pl.col("label")).otherwise("label")
    other = with_features(tmp_path / "other", project.posts.with_columns(label=label))
    tables = [screened([folder], tmp_path).drop("set") for folder in (folders[0], other)]
    assert tables[0].equals(tables[1])


def test_the_holdout_is_scored_with_the_flag_alone(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in folders]
    with pytest.raises(ConfigError, match="commit"):  # the copies are no repositories
        screened(copies, tmp_path, "--holdout")
    logs = [folder / "reports/holdout.log" for folder in copies]
    assert not any(log.exists() for log in logs)
    monkeypatch.setattr(screen, "commit_of", lambda *_: "abc")
    table = screened(copies, tmp_path, "--holdout")
    assert set(table["scheme"]) == {"forward", "holdout"}
    assert "holdout was scored for 3 stacks on 2 sets" in capsys.readouterr().out
    for folder, log in zip(copies, logs, strict=True):
        mae = table.filter(set=str(folder), scheme="holdout", system="no image", metric="mae")["score"].item()
        (line,) = [line for line in log.read_text(encoding="utf-8").splitlines() if "  no image  " in line]
        assert "commit abc" in line
        assert line.endswith(f"MAE {mae:.4f}")


def set_of(splits: int, better: float, seed: int) -> pl.DataFrame:
    """Predictions in a data set: those of `a` err less than those of the default by the factor 1 - `better`."""
    rng = np.random.default_rng(seed)
    labels, noise = rng.normal(6, 2, 300), rng.normal(size=300)
    return pl.DataFrame(
        {
            "scheme": "forward", "fold": np.arange(300) % splits, "pid": [f"{row}" for row in range(300)],
            "uid": [f"u{row // 3}" for row in range(300)], "label": labels,
            DEFAULT: labels + noise, "a": labels + (1 - better) * noise, CONSTANT: 6.0,
        }
    )  # fmt: skip


def test_sets_count_alike_whatever_their_size() -> None:
    """One set has three splits and gains, the other has one and loses as much of its share."""
    sets = {"one": set_of(3, 0.5, 0), "two": set_of(1, -0.5, 1)}
    both, *alone = (
        mean_over_sets(chosen, DEFAULT, resamples=200).filter(metric=SHARE, system="a").row(0, named=True)
        for chosen in (sets, {"one": sets["one"]}, {"two": sets["two"]})
    )
    assert both["score"] == pytest.approx((alone[0]["score"] + alone[1]["score"]) / 2)
    assert both["difference"] == pytest.approx((alone[0]["difference"] + alone[1]["difference"]) / 2)
    assert alone[0]["high"] < 0 < alone[1]["low"]
    assert both["low"] < 0 < both["high"]


def test_a_candidate_that_loses_on_one_set_is_no_finalist() -> None:
    def found(**sets: pl.DataFrame) -> tuple[str, list[str], list[str]]:
        scored = {name: with_share(compare(rows, DEFAULT, resamples=200)) for name, rows in sets.items()}
        loss = mean_over_sets(sets, DEFAULT, resamples=200).filter(metric=LOSS, system="a").row(0, named=True)
        better, worse = (outside(scored, "a", word) for word in ("better", "worse"))
        return verdict_of(loss, worse), better, worse

    good, bad, same = set_of(2, 0.6, 0), set_of(2, -0.2, 1), set_of(2, 0.0, 2)
    assert found(good=good, same=same) == ("finalist", ["good (src)", "good (mae)"], [])
    verdict, better, worse = found(good=good, bad=bad)
    assert verdict == "loses"
    assert better == ["good (src)", "good (mae)"]
    assert set(worse) == {"bad (src)", "bad (mae)"}
    assert found(same=same)[0] == "no gain"
    little = {"difference": -0.001, "low": -0.01, "high": 0.01}
    assert verdict_of(little, []) == "finalist, gain within its interval"


def test_every_candidate_fits_the_parameters_of_the_repository() -> None:
    base = load_params("stack", StackParams, REPOSITORY / "params.yaml")
    every = chosen_candidates([], None, ())
    assert len(every) == sum(map(len, CANDIDATES.values()))  # no name twice
    stacks = [changed(base, name, keys) for name, keys in every.items()]
    others = [json.dumps(asdict(stack)) for stack in stacks if stack != base]
    assert len(set(others)) == len(others) > 0.9 * len(every)


def test_candidates_are_chosen_by_name_group_and_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(FILE, encoding="utf-8")
    assert list(chosen_candidates(["no trend", "ridges"], None, ())) == ["no trend", *CANDIDATES["ridges"]]
    assert list(chosen_candidates([], file, ())) == ["small trees", "no image"]
    assert list(chosen_candidates(["no trend"], file, ())) == ["small trees", "no image", "no trend"]
    with pytest.raises(ConfigError, match=r"--candidates other: expected groups \(vectors, (.|\n)*no trend"):
        chosen_candidates(["other"], None, ())
    with pytest.raises(ConfigError, match=r"mine\.yaml: no image: expected a name other than default, no image"):
        chosen_candidates([], file, (DEFAULT, "no image"))
    with pytest.raises(ConfigError, match=r"candidate 'wide'(.|\n)*stack\.lightgbm\.leaves: unknown key"):
        changed(STACK, "wide", {"lightgbm.leaves": 63})


def test_a_folder_without_features_is_a_named_error(folders: list[Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders[0], tmp_path / "copy"))
    shutil.rmtree(folder / "data/features")
    with pytest.raises(DataError, match=r"data/features: missing(.|\n)*next: run `dvc repro embed_posts featurize` in"):
        tasks_of(folder, folder / "params.yaml", "forward", {})
