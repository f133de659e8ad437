"""The rows of the signals benchmark, and the shapes of a data set that it and benchmarks.cuts score."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import polars as pl
import pytest

from benchmarks import shapes, signals
from benchmarks.cuts import Kept, stack_row
from benchmarks.systems import Project, ours
from popularity.errors import ConfigError
from popularity.features.user_text import no_users
from popularity.schema import IMAGES, USERS, write_table
from popularity.splits import make_splits
from tests.random_posts import random_images, random_posts
from tests.stack.small_stack import FEATURIZE, SPLIT, STACK, random_blocks, write_blocks


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("project")
    posts = random_posts(1, train=600, test=150, users=100)
    blocks = random_blocks(posts)
    write_table(no_users(), folder / "data/interim/users.parquet", USERS)
    write_table(random_images(posts.sort("pid"), 0), folder / "data/interim/images.parquet", IMAGES)
    write_blocks(blocks, folder / "data/embeddings")
    params = {"split": asdict(SPLIT), "featurize": asdict(FEATURIZE)}
    (folder / "params.yaml").write_text(json.dumps(params), encoding="utf-8")
    return Project(posts, make_splits(posts, SPLIT)[0], folder / "none", blocks, STACK, folder)


def test_names_of_rows() -> None:
    assert signals.groups_of("none") == ()
    assert signals.groups_of("all") == signals.GROUPS
    assert signals.groups_of("image+history") == ("history", "image")
    assert set(signals.groups_of("all-words")) == {*signals.GROUPS} - {"words"}
    with pytest.raises(ConfigError, match="history"):
        signals.groups_of("history+colours")


def test_shapes() -> None:
    posts = random_posts(0, train=400, test=100, users=100)
    merged = shapes.coarse_users(posts)
    assert merged.drop("uid").equals(posts.drop("uid"))
    groups = posts.select("uid", to=merged["uid"]).unique().group_by("to").len()["len"]
    assert groups.max() == shapes.MERGED
    assert posts.select("uid", to=merged["uid"]).unique()["uid"].is_unique().all()
    half = shapes.half_classes(posts)
    assert half["subcategory"].n_unique() == posts["subcategory"].n_unique() // 2
    assert half.equals(posts.filter(pl.col("subcategory").is_in(half["subcategory"].unique().implode())))
    third = shapes.third_of_users(posts)
    assert third["uid"].n_unique() == posts["uid"].n_unique() // 3
    assert third.equals(posts.filter(pl.col("uid").is_in(third["uid"].unique().implode())))


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_no_cut_scores_what_report_scores(shape: str, project: Project) -> None:
    found = signals.shape_of(project, shape, project.folder / "params.yaml")
    reported = project.splits.filter(scheme="report", role="score").join(project.posts, on="pid")
    assert found.splits["scheme"].unique().to_list() == ["matched"]
    assert found.posts.equals(shapes.SHAPES[shape](project.posts))
    scored = found.splits.filter(role="score").join(found.posts.select("pid", "posted_at"), on="pid", validate="m:1")
    assert scored["posted_at"].max() < reported["posted_at"].min()  # type: ignore[operator]
    assert scored["fold"].unique().sort().to_list() == [0, 1, 2]
    fitted = found.splits.filter(role="fit").select("pid").unique()
    assert fitted.join(reported, on="pid", how="semi").is_empty()


def test_report_of_a_shape_begins_where_it_did(project: Project) -> None:
    whole, half = (shapes.reshaped(project, shape, SPLIT) for shape in ("whole", "half the classes"))
    assert whole.splits.equals(project.splits)
    reported = project.splits.filter(scheme="report", role="score").select("pid")
    kept = half.splits.filter(scheme="report", role="score").select("pid")
    assert kept.height
    assert kept.equals(reported.join(half.posts.select("pid"), on="pid", how="semi", maintain_order="left"))


def test_a_row_is_the_stack_with_its_groups(project: Project) -> None:
    shape = signals.shape_of(project, "whole", project.folder / "params.yaml")
    rows = {name: stack_row(signals.with_signals(signals.groups_of(name))) for name in ("none", "history")}
    kept = Kept.below(project.folder)
    for data in shape.folds([signals.SCHEME]):
        found = {name: kept(row, data) for name, row in rows.items()}
        assert found["none"].tolist() == ours(signals.with_signals(())(data)).tolist()
        assert not np.array_equal(found["none"], found["history"])
