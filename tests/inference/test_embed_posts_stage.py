"""The stage against the equations, and everything that must not change what it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from popularity.core.contracts import (
    ATTENTION,
    ATTENTION_MASS,
    CLASS_LOSSES,
    CLASSES,
    NEAREST,
    POSTS,
    PROTOTYPE_SCALARS,
    read_table,
    write_table,
)
from popularity.core.errors import ConfigError, ContractError
from popularity.stack import read_blocks
from popularity.stack.feature_blocks import PROTOTYPE_SCALAR_PARTS, PROTOTYPE_VECTORS, dense_rows, scalar_names
from tests.full_disk import full_disk
from tests.inference.direct import Equations, of_class
from tests.inference.small_world import EMBED, LONE, UNSEEN, World, contents, vectors
from tests.network.small_network import ALL_LEVELS, INSTANCE, TOP_K
from tests.repository import REPOSITORY

MASKED_IMAGE = "masked_attended_image"  # x~ does not depend on the class


def scalars_of(folder: Path) -> pl.DataFrame:
    return read_table(folder / "scalars.parquet", PROTOTYPE_SCALARS)


def test_every_post_as_the_equations_have_it(world: World) -> None:
    world.make_network()
    out = world.embed()
    expected, posts = Equations(world), world.posts()
    blocks, scalars = vectors(out), scalars_of(out)
    nearest = read_table(world.folder / "out-explain" / "nearest.parquet", NEAREST)
    attention = read_table(world.folder / "out-explain" / "attention.parquet", ATTENTION)
    mass = read_table(world.folder / "out-explain" / "attention_mass.parquet", ATTENTION_MASS)
    keys = read_table(world.folder / "prototypes" / "classes.parquet", CLASSES).filter(level="subcategory")["key"]
    assert set(blocks) == {*PROTOTYPE_VECTORS, *(f"masked_{name}" for name in PROTOTYPE_VECTORS)} - {MASKED_IMAGE}
    assert scalars["pid"].to_list() == posts["pid"].to_list()
    kinds = set()
    for pid in posts["pid"]:
        found = expected(pid)
        kinds.add((pid in of_class(posts, UNSEEN), pid in expected.image, len(expected.tokens[pid]) > 0))
        for name, block in blocks.items():
            (row,) = block.rows([pid])
            assert (row >= 0) == (name in found.vectors), (pid, name)
            if row >= 0:
                np.testing.assert_allclose(block.values[row], found.vectors[name], rtol=2e-3, atol=1e-3, err_msg=name)
        own = scalars.row(by_predicate=pl.col("pid") == pid, named=True)
        assert set(own) == {"pid", *found.scalars}
        for name, value in found.scalars.items():
            assert own[name] == (None if value is None else pytest.approx(value, rel=1e-4, abs=1e-5)), (pid, name)
        lists: dict[str, torch.Tensor | None] = {**found.similarity, "attention": found.q}
        if pid not in expected.image:
            lists["attention"] = None
        for head, values in lists.items():
            listed = nearest.filter(pid=pid, head=head)
            check_top(listed, values, keys)
        weights = found.attention if pid in expected.image else None
        k = len(keys)
        for modality, start in (("visual", 1), ("text", 1 + k)):
            listed = attention.filter(pid=pid, modality=modality)
            check_top(listed, None if weights is None else weights[start : start + k], keys)
        shares = mass.filter(pid=pid)
        assert shares.height == (weights is not None)
        if weights is not None:
            shared_out = (weights[0], weights[1 : 1 + k].sum(), weights[1 + k :].sum(), 0)
            assert shares.row(0)[1:] == pytest.approx([float(share) for share in shared_out], abs=1e-5)
    # The world held every kind: of an unseen class without image or text, the lone one of its class, and so on.
    assert {(True, False, True), (True, True, False), (True, True, True)} <= kinds
    assert {(False, False, True), (False, True, False), (False, False, False), (False, True, True)} <= kinds
    (lone,) = of_class(posts, LONE)
    assert lone in expected.image


def check_top(listed: pl.DataFrame, values: torch.Tensor | None, keys: pl.Series) -> None:
    if values is None:
        assert not listed.height
        return
    order = values.argsort(descending=True)[: EMBED.nearest]
    assert listed["rank"].to_list() == [0, 1, 2]
    np.testing.assert_allclose(listed[listed.columns[-1]], values[order], rtol=1e-4, atol=1e-5)
    assert listed["key"].to_list() == [keys[int(index)] for index in order]
    assert listed["index"].to_list() == order.tolist()


def test_columns_are_named_by_head_and_class(world: World) -> None:
    world.make_network()
    block = vectors(world.embed())["logits"]
    keys = read_table(world.folder / "prototypes" / "classes.parquet", CLASSES).filter(level="subcategory")["key"]
    assert block.metadata["columns"] == [f"{head}.{key}" for head in ("p", "p_local", "q") for key in keys]


def close(left: Path, right: Path, without: Sequence[str] = ()) -> None:
    """Equal blocks and scalars, but for rounding; columns named in `without` aside."""
    first, second = vectors(left), vectors(right)
    assert set(first) == set(second)
    for name, block in first.items():
        assert block.pids == second[name].pids
        np.testing.assert_allclose(block.values, second[name].values, rtol=2e-3, atol=2e-3, err_msg=name)
    one, other = scalars_of(left).drop(without), scalars_of(right).drop(without)
    assert one.columns == other.columns
    for column in one.columns[1:]:
        assert one[column].is_null().equals(other[column].is_null()), column
        np.testing.assert_allclose(
            one[column].fill_null(0), other[column].fill_null(0), rtol=1e-4, atol=1e-4, err_msg=column
        )


def test_how_posts_are_cut_into_batches_does_not_matter(world: World) -> None:
    world.make_network(**TOP_K, **INSTANCE)
    close(world.embed("one"), world.embed("other", batch_size=3, shard_rows=50))


def test_same_bytes_again_whatever_the_labels(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No popularity label is read, and loader processes change nothing."""
    world.make_network()
    before = contents(world.embed("one"), world.folder / "one-explain")
    posts = world.posts().with_columns(label=pl.when(pl.col("label").is_not_null()).then(15.0 - pl.col("label")))
    write_table(posts, world.folder / "posts.parquet", POSTS)
    monkeypatch.setenv("POPULARITY_WORKERS", "2")
    assert contents(world.embed("other"), world.folder / "other-explain") == before
    assert json.loads((world.folder / "other.json").read_text())["stage"] == "embed_posts"
    assert not list((world.folder / ".state" / "embed_posts").iterdir())


def test_a_post_is_described_as_if_it_had_never_made_a_prototype(world: World) -> None:
    world.make_network(**{"prototypes.levels": list(ALL_LEVELS)})
    counts = world.posts().filter(split="train").group_by("concept").len().sort("len", "concept")
    pid = world.posts().filter(split="train", concept=counts["concept"][-1])["pid"][0]
    first = world.embed("first")
    world.make_prototypes(without=[pid])
    second = world.embed("second")
    changed = 0
    for name, block in vectors(first).items():
        other = vectors(second)[name]
        (row,) = block.rows([pid])
        np.testing.assert_allclose(block.values[row], other.values[row], rtol=2e-3, atol=1e-3, err_msg=name)
        changed += int((np.abs(block.values.astype(float) - other.values) > 5e-3).any(axis=1).sum())
    own, same = (scalars_of(folder).filter(pid=pid).row(0)[1:] for folder in (first, second))
    np.testing.assert_allclose(own, same, rtol=1e-4, atol=1e-5)
    assert changed  # of the other posts, whose prototypes have lost one


def test_posts_of_an_unseen_class(world: World) -> None:
    world.make_network()
    scalars = scalars_of(world.embed())
    unseen = scalars.filter(pl.col("pid").is_in(of_class(world.posts(), UNSEEN)))
    assert unseen.height == 3
    assert scalars.filter(class_unseen=1.0)["pid"].to_list() == unseen["pid"].to_list()
    own = [column for column in scalars.columns if column.split(".")[0] == "losses" or "_own" in column]
    own += [column for column in scalars.columns if "own_" in column or "margin_" in column] + ["logits.rank"]
    assert unseen.select(own).null_count().sum_horizontal().item() == 3 * len(own)


@pytest.mark.parametrize(
    ("changes", "losses"),
    [
        ({}, {"global", "local", "attention"}),
        ({"transductive": False}, set()),
        ({"weights.local_prompt": 0.0}, {"global", "attention"}),
    ],
)
def test_losses_are_written_where_they_do_not_tell_the_parts_apart(
    world: World, changes: dict[str, Any], losses: set[str]
) -> None:
    world.make_network(**changes)
    scalars = scalars_of(world.embed())
    assert {column.split(".")[1] for column in scalars.columns if column.startswith("losses.")} == losses
    assert "distance.image_text" not in scalars.columns  # the pair shares no space
    # For the selection of rows they are always there.
    written = read_table(world.folder / "out" / "losses.parquet", CLASS_LOSSES)
    assert written["pid"].equals(scalars["pid"])
    trained = {"global", "local", "attention"} - {"local" for name in changes if name == "weights.local_prompt"}
    assert {name for name in written.columns[1:] if written[name].count()} == trained
    for name in losses:
        assert written[name].equals(scalars[f"losses.{name}"].rename(name))


@pytest.mark.parametrize("kind", ["visual", "text"])
def test_a_network_without_one_kind_of_prototype_and_without_layers(world: World, kind: str) -> None:
    world.make_network(**{"attention.prototypes": [kind], "attention.depth": 0})
    out = world.embed()
    missing = {"visual": "attended_text", "text": "attended_visual"}[kind]
    written = set(PROTOTYPE_VECTORS) - {missing}
    assert set(vectors(out)) == written | {f"masked_{name}" for name in written} - {MASKED_IMAGE}
    assert not read_table(world.folder / "out-explain" / "attention.parquet", ATTENTION).height
    assert not read_table(world.folder / "out-explain" / "attention_mass.parquet", ATTENTION_MASS).height
    blocks = read_blocks(world.folder / "image", world.folder / "text", out)
    assert dense_rows(blocks, f"attended_{kind}", ["none"]).shape == (1, 16)
    with pytest.raises(ConfigError, match=missing):
        dense_rows(blocks, missing, ["none"])


def test_attention_to_the_other_levels(world: World) -> None:
    world.make_network(**TOP_K)
    world.embed()
    mass = read_table(world.folder / "out-explain" / "attention_mass.parquet", ATTENTION_MASS)
    np.testing.assert_allclose(mass.drop("pid").sum_horizontal(), 1, atol=1e-5)
    assert mass["other_levels"].min() > 0.05  # type: ignore[operator]


def test_the_stack_reads_it(world: World) -> None:
    world.make_network()
    blocks = read_blocks(world.folder / "image", world.folder / "text", world.embed())
    parts = tuple(PROTOTYPE_SCALAR_PARTS.values())
    assert scalar_names("prototype", blocks, parts) == tuple(blocks.scalars.columns[1:])
    for part in parts:
        assert scalar_names("prototype", blocks, (part,)), part
    pids = world.posts()["pid"].to_list()
    known = ~np.isnan(dense_rows(blocks, "attended_text", pids)).any(axis=1)
    assert known.tolist() == [pid in set(blocks.vectors["image"].pids) for pid in pids]
    assert not np.isnan(dense_rows(blocks, "logits", pids)).any()


def test_an_interrupted_run_ends_in_the_same_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.make_network()
    expected = contents(world.embed("whole"), world.folder / "whole-explain")
    with full_disk("shard-000001.npz"):
        world.embed()
    (shard,) = (world.folder / ".state" / "embed_posts").glob("*/shard-*.npz")
    assert not (world.folder / "out").exists()
    with np.load(shard) as stored:
        arrays = dict(stored)
    # Proof that finished shards are used as they are: one is marked, and restored afterwards.
    np.savez(shard, **{**arrays, "global_prompt": arrays["global_prompt"] * 0})
    assert (vectors(world.embed("marked"))["global_prompt"].values == 0).all(axis=1).sum() == EMBED.shard_rows
    shard.parent.mkdir()
    np.savez(shard, **arrays)
    assert contents(world.embed(), world.folder / "out-explain") == expected


def test_another_networks_parts_are_not_taken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.make_network()
    first = vectors(world.embed("first"))["attended_image"].values
    world.make_network(seed=1)
    assert not np.array_equal(vectors(world.embed("second"))["attended_image"].values, first)


def test_a_network_of_other_classes_is_refused(world: World) -> None:
    world.make_network()
    world.make_prototypes(without=of_class(world.posts(), LONE))
    with pytest.raises(ContractError, match="other classes"):
        world.embed()
    assert not (world.folder / "out").exists()


def test_two_processes_equal_one(world: World) -> None:
    world.make_network()
    environment = {**os.environ, "POPULARITY_TOPOLOGY": "two_cpu_processes", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(REPOSITORY / "src"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "popularity.launch", "stages.embed_posts", *world.arguments("two")]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "process 1 of 2 has 1 shards" in done.stderr
    close(world.embed("one"), world.folder / "two")
    for name, contract in (("nearest", NEAREST), ("attention", ATTENTION)):
        one, two = (read_table(world.folder / f"{run}-explain" / f"{name}.parquet", contract) for run in ("one", "two"))
        assert one[:, :-1].equals(two[:, :-1])
