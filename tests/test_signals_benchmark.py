"""The shapes of the signals benchmark: what they change, and that none of them scores a row of `report`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks import signals
from benchmarks.systems import Project, ours
from popularity.errors import ConfigError
from popularity.features.profiles import no_users
from popularity.schema import USERS, write_table
from popularity.splits import make_splits
from tests.random_posts import random_images, random_posts
from tests.stack.small_stack import SPLIT, STACK, random_blocks


def project_of(posts: pl.DataFrame, splits: pl.DataFrame, folder: Path) -> Project:
    write_table(no_users(), folder / "data/interim/users.parquet", USERS)
    return Project(posts, splits, folder, random_blocks(posts), STACK, folder)


def test_names_of_rows() -> None:
    assert signals.groups_of("none") == ()
    assert signals.groups_of("all") == signals.GROUPS
    assert signals.groups_of("picture+history") == ("history", "picture")
    assert set(signals.groups_of("all-words")) == {*signals.GROUPS} - {"words"}
    with pytest.raises(ConfigError, match="history"):
        signals.groups_of("history+colours")


def test_shapes() -> None:
    posts = random_posts(0, train=400, test=100, users=100)
    merged = signals.coarse_users(posts)
    assert merged.drop("uid").equals(posts.drop("uid"))
    groups = posts.select("uid", to=merged["uid"]).unique().group_by("to").len()["len"]
    assert groups.max() == signals.MERGED
    assert posts.select("uid", to=merged["uid"]).unique()["uid"].is_unique().all()
    half = signals.half_classes(posts)
    assert half["subcategory"].n_unique() == posts["subcategory"].n_unique() // 2
    assert half.equals(posts.filter(pl.col("subcategory").is_in(half["subcategory"].unique().implode())))


@pytest.mark.parametrize("shape", signals.SHAPES)
def test_no_cut_scores_what_report_scores(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = Path("params.yaml").absolute()
    monkeypatch.chdir(tmp_path)
    posts = random_posts(1, train=400, test=100, users=100)
    splits, _ = make_splits(posts, SPLIT)
    project = project_of(posts, splits, tmp_path)
    found = signals._shape(signals.SHAPES[shape](posts), random_images(posts, 0), project, params)
    reported = splits.filter(scheme="report", role="score").join(posts, on="pid")
    assert found.splits["scheme"].unique().to_list() == ["matched"]
    scored = found.splits.filter(role="score").join(posts.select("pid", "posted_at"), on="pid")
    assert scored["posted_at"].max() < reported["posted_at"].min()  # type: ignore[operator]
    assert scored["fold"].unique().sort().to_list() == [0, 1, 2]
    fitted = found.splits.filter(role="fit").select("pid").unique()
    assert fitted.join(reported, on="pid", how="semi").is_empty()


def test_a_row_is_the_stack_with_its_groups_and_is_fitted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = Path("params.yaml").absolute()
    monkeypatch.chdir(tmp_path)
    posts = random_posts(2, train=400, test=100, users=100)
    project = project_of(posts, make_splits(posts, SPLIT)[0], tmp_path)
    shape = signals._shape(posts, random_images(posts, 0), project, params)
    systems = {name: signals._system(shape, signals.groups_of(name)) for name in ("none", "history")}
    first = shape.run(systems, signals.SCHEME)
    assert first["none"].to_list() == np.concatenate([ours(data) for data in shape.folds([signals.SCHEME])]).tolist()
    assert not first["history"].equals(first["none"], check_names=False)
    (kept, *_) = sorted((shape.features / "fits").iterdir())
    pl.read_parquet(kept).with_columns(prediction=pl.lit(-3.0)).write_parquet(kept)
    assert -3.0 in shape.run(systems, signals.SCHEME).select("none", "history").unpivot()["value"].to_list()
