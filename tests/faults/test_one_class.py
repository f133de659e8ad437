"""A data set of one class only, through every stage that learns or compares classes."""

from __future__ import annotations

import json

import polars as pl
import pytest
from accelerate.state import AcceleratorState

from popularity.schema import POSTS, PROTOTYPE_SCALARS, read_block, read_table, write_table
from stages import train
from tests.faults.test_pickles import train_arguments
from tests.post_features.small_world import World


@pytest.fixture
def one_class(world: World) -> World:
    posts = world.posts().with_columns(
        category=pl.lit("C0"), subcategory=pl.lit("C0/sea"), concept=pl.lit("C0/sea/cat")
    )
    write_table(posts, world.folder / "posts.parquet", POSTS)
    world.make_prototypes()
    return world


def test_training_and_vectors(one_class: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(one_class.folder)
    AcceleratorState._reset_state()
    train.main(train_arguments(one_class))
    (one_class.folder / "trained").rename(one_class.folder / "network")
    history = json.loads((one_class.folder / "network/network.json").read_text())["history"]
    assert history[-1]["train/global_prompt"] == 0  # there is nothing to tell apart
    assert history[-1]["validation/top1/mean"] == 1
    out = one_class.embed()
    scalars = read_table(out / "scalars.parquet", PROTOTYPE_SCALARS)
    assert scalars.height == one_class.posts().height
    for name in ("logits.margin_global", "distance.visual_other"):  # to another class, of which there is none
        if name in scalars.columns:
            assert scalars[name].null_count() == scalars.height
    assert read_block(out, "logits").values.shape[1] == 3
