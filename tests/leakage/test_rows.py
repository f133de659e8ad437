"""Dropped rows, row order and row names: none of them may be seen in a feature or a prediction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from popularity.core.contracts import FoldKey
from popularity.core.vectors import Block
from popularity.features import read_features
from popularity.stack import Blocks, StackModel, StackParams
from popularity.stack.feature_blocks import MaskedBlocks
from popularity.validation import rows_of
from popularity.validation.folds import load_fold
from tests.random_posts import random_images
from tests.stack.small_stack import EITHER, Run, Tables, fit_stack, posts_with_signal, run_all, tree_bytes, with_vectors

VALIDATED = ("holdout", "forward", "group")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    posts, blocks = posts_with_signal(7)
    return run_all(posts, blocks, tmp_path_factory.mktemp("rows"), fitted=(*VALIDATED, "random"))


def without(blocks: Blocks, pids: set[str]) -> Blocks:
    """The blocks as they would be if `pids` had never been published."""

    def rest(_: str, block: Block) -> Block:
        kept = [row for row, pid in enumerate(block.pids) if pid not in pids]
        return Block(block.values[kept], [block.pids[row] for row in kept], block.metadata)

    left = ~pl.col("pid").is_in(pids)
    assert blocks.masked is not None
    masked = {name: rest(name, block) for name, block in blocks.masked.vectors.items()}
    return replace(
        with_vectors(blocks, rest),
        scalars=blocks.scalars.filter(left),
        losses=blocks.losses.filter(left),
        masked=MaskedBlocks(masked, blocks.masked.scalars.filter(left), blocks.masked.classes.filter(left)),
    )


@pytest.mark.parametrize(
    ("scheme", "fold"), [("holdout", 0), ("forward", 0), ("forward", 1), ("group", 2), ("random", 1)]
)
def test_deleting_the_dropped_rows_changes_nothing_in_the_fold(
    made: Run, scheme: str, fold: int, tmp_path: Path
) -> None:
    """Not even the last bit of a prediction: they are neither fitted on, nor counted, nor scored."""
    mine = made.splits.filter(scheme=scheme, fold=fold)
    dropped = set(mine.filter(pl.col("role") == "excluded")["pid"])
    assert dropped
    other_cut = (pl.col("scheme") == "forward") & (pl.col("fold") != (fold if scheme == "forward" else 1))
    images = random_images(made.posts, seed=0)
    run = run_all(
        made.posts.filter(~pl.col("pid").is_in(dropped)),
        without(made.blocks, dropped),
        tmp_path,
        given=Tables(
            splits=made.splits.filter(~pl.col("pid").is_in(dropped) & ~other_cut),
            images=images.filter(~pl.col("pid").is_in(dropped)),
        ),
        fitted=(scheme,),
    )
    for name in ("context", "label"):
        found, table = (
            one.table(name, scheme).filter((pl.col("fold") == fold) | pl.col("fold").is_null()).drop("fold")
            for one in (run, made)
        )
        assert table.height
        assert found.equals(table)
    row = pl.read_parquet(made.features / "row.parquet").filter(~pl.col("pid").is_in(dropped))
    assert pl.read_parquet(run.features / "row.parquet").equals(row)
    file = FoldKey(scheme, fold).file_name
    assert run.finished(scheme)[file] == made.finished(scheme)[file]
    # The rows do count where they are shown.
    assert not run.table("context", "refit").equals(
        made.table("context", "refit").filter(pl.col("pid").is_in(row["pid"]))
    )


def test_a_pretended_unseen_user_loses_his_history(made: Run) -> None:
    """Users whose posts were dropped: scored posts of theirs show no earlier post and no past label."""
    rows = made.splits.filter(pl.col("scheme") == "holdout").join(made.posts.select("pid", "uid"), on="pid")
    unseen = rows.filter(pl.col("role") == "excluded")["uid"].unique()
    scored = rows.filter((pl.col("role") == "valid") & pl.col("uid").is_in(unseen.to_list()))
    assert scored.height > 5
    label = made.table("label", "holdout").join(scored.select("pid"), on="pid")
    assert label["uid_target_posts"].unique().to_list() == [0]
    assert label["uid_target_level"].null_count() == label.height
    context = made.table("context", "holdout").join(scored.select("pid", "uid"), on="pid")
    own = scored.group_by("uid").len()
    assert context.join(own, on="uid").select((pl.col("user_posts") == pl.col("len")).all()).item()


def test_row_order_of_the_inputs_changes_nothing(made: Run, tmp_path: Path) -> None:
    def shuffled(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
        return frame.sample(fraction=1.0, shuffle=True, seed=seed)

    run = run_all(
        shuffled(made.posts, 1),
        made.blocks,
        tmp_path,
        given=Tables(shuffled(made.splits, 2), shuffled(random_images(made.posts, seed=0), 3)),
        fitted=(*VALIDATED, "random"),
    )
    assert tree_bytes(run.folder) == tree_bytes(made.folder)
    assert run.predictions.equals(made.predictions)


def test_position_and_name_of_a_post_never_reach_the_matrix(made: Run) -> None:
    hidden = {"pid", "source_index", "label", "split", "posted_at", "image_path", "scheme", "fold", "role"}
    for key, rows in rows_of(made.splits, [*VALIDATED, "refit"]):
        features = read_features(made.features, key, rows)
        assert features.columns[0] == "pid"
        assert not hidden & set(features.columns[1:])
    for name in ("stack", "metadata"):
        model = StackModel.load(made.models / name)
        for booster in model.models["lightgbm"]:
            assert not (hidden | {"uid"}) & set(booster.feature_name())


def test_file_order_changes_nothing(made: Run, tmp_path: Path) -> None:
    order = pl.Series(np.random.default_rng(0).permutation(made.posts.height).astype(np.int64))
    posts = made.posts.with_columns(source_index=order, image_path=pl.lit("elsewhere"))
    run = run_all(posts, made.blocks, tmp_path, given=Tables(made.splits), fitted=("holdout",))
    assert tree_bytes(run.features) == tree_bytes(made.features)
    assert run.finished("holdout") == made.finished("holdout")
    assert tree_bytes(run.models) == tree_bytes(made.models)


def test_names_of_the_posts_change_nothing(made: Run, tmp_path: Path) -> None:
    """Other pids in the same order: the same numbers under the new names."""
    pids = made.posts["pid"].to_list()
    name = {pid: f"{place * place:08d}" for place, pid in enumerate(pids)}

    def renamed(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(pid=pl.col("pid").replace_strict(name))

    def renamed_block(_: str, block: Block) -> Block:
        return replace(block, pids=[name[pid] for pid in block.pids])

    blocks, masked = made.blocks, made.blocks.masked
    assert masked is not None
    blocks = replace(
        with_vectors(blocks, renamed_block),
        scalars=renamed(blocks.scalars),
        losses=renamed(blocks.losses),
        masked=MaskedBlocks(
            {part: renamed_block(part, block) for part, block in masked.vectors.items()},
            renamed(masked.scalars),
            renamed(masked.classes),
        ),
    )
    images = renamed(random_images(made.posts, seed=0))
    run = run_all(
        renamed(made.posts), blocks, tmp_path, given=Tables(renamed(made.splits), images), fitted=("holdout",)
    )
    mine = made.predictions.filter(pl.col("scheme").is_in(["holdout", "refit"]))
    assert run.predictions.equals(renamed(mine))
    assert tree_bytes(run.models) == tree_bytes(made.models)


@pytest.mark.parametrize("scheme", VALIDATED)
@pytest.mark.parametrize("params", EITHER)
def test_scored_rows_change_nothing_in_the_model_that_scores_them(
    made: Run, params: StackParams, scheme: str, tmp_path: Path
) -> None:
    """No encoder, tree, number of rounds, weight or error scale has seen vectors and features of valid rows."""
    (key, rows) = next(iter(rows_of(made.splits, [scheme])))
    data = load_fold(key, rows, made.posts, made.features)
    fit = set(data.train["pid"])
    strange = with_vectors(
        made.blocks,
        lambda _, block: replace(
            block, values=np.where([[pid in fit] for pid in block.pids], block.values, np.float16(50))
        ),
    )
    scored = ~pl.col("pid").is_in(fit)
    strange = replace(
        strange,
        scalars=strange.scalars.with_columns(
            pl.when(scored).then(pl.lit(50, pl.Float32)).otherwise(pl.exclude("pid")).name.keep()
        ),
    )
    for name, blocks in (("before", made.blocks), ("after", strange)):
        fit_stack(data, blocks, params).save(tmp_path / name)
    assert tree_bytes(tmp_path / "after") == tree_bytes(tmp_path / "before")
    model = StackModel.load(tmp_path / "before")
    usual, other = (model.predict(data.valid, blocks, data.valid_at).values for blocks in (made.blocks, strange))
    assert not np.array_equal(usual, other)
