"""The popularity head on the network: out of fold by user, blind to scored labels, the same for the same seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import torch
from torch.nn import functional

from popularity.errors import ConfigError
from popularity.network.params import AttentionParams
from popularity.network.shared import ATTENTION_FILE, SharedAttention
from popularity.stack import Blocks, StackModel, network_learner, read_blocks
from popularity.stack.fit import Fold, fit_model
from popularity.stack.inner import Sample
from popularity.stack.matrix import Matrix, MatrixEncoder
from popularity.stack.network_head import NAME, NetworkHead, Posts, fit_network_head
from tests.stack.small_stack import STACK, posts_with_signal, run_all, tree_bytes, write_blocks

Floats = npt.NDArray[np.float64]
HEAD = STACK.columns.network
WITH_HEAD = replace(STACK, columns=replace(STACK.columns, heads=("text", "network")))
BLENDED = replace(WITH_HEAD, learners=("lightgbm", "network"))


def with_attention(posts: pl.DataFrame, blocks: Blocks, seed: int = 0) -> Blocks:
    """Blocks with an untrained attention over random prototypes of half of the classes."""
    torch.manual_seed(seed)
    keys = posts["subcategory"].unique().sort().to_list()[::2]
    widths = {"visual": blocks.vectors["image"].values.shape[1], "text": 5}
    prototypes = {kind: functional.normalize(torch.randn(len(keys), width), dim=1) for kind, width in widths.items()}
    params = AttentionParams(dim=8, depth=1, num_heads=2, mlp_ratio=2, dropout=0.1, prototypes=("visual", "text"))
    classes = {key: row for row, key in enumerate(keys)}
    return replace(blocks, attention=SharedAttention(params, prototypes, {"visual": 0.07, "text": 0.07}, classes))


@pytest.fixture(scope="module")
def made() -> tuple[pl.DataFrame, Blocks]:
    """Training posts whose labels follow the picture vector, and their blocks."""
    posts, blocks = posts_with_signal(2, train=300, test=60, users=60)
    return posts, with_attention(posts, blocks)


def fitted(
    posts: pl.DataFrame, blocks: Blocks, label: Floats | None = None, seed: int = 0, **changes: float
) -> tuple[NetworkHead, npt.NDArray[np.float32]]:
    train = posts.filter(split="train")
    label = train["label"].to_numpy() if label is None else label
    params = replace(HEAD, **changes)  # type: ignore[arg-type]
    return fit_network_head(blocks, train.select("pid", "uid", "subcategory"), label, params, folds=3, seed=seed)


def test_it_learns_what_the_picture_says(made: tuple[pl.DataFrame, Blocks]) -> None:
    posts, blocks = made
    label = posts.filter(split="train")["label"].to_numpy()
    _, out_of_fold = fitted(posts, blocks, steps=150, batch_size=64, lr=0.01, lr_attention=0.01)
    assert np.corrcoef(out_of_fold, label)[0, 1] > 0.3
    shuffled = np.random.default_rng(0).permutation(label)
    _, nothing = fitted(posts, blocks, shuffled, steps=150, batch_size=64, lr=0.01, lr_attention=0.01)
    assert abs(np.corrcoef(nothing, shuffled)[0, 1]) < 0.2


def test_the_labels_of_a_user_change_nothing_in_his_rows(made: tuple[pl.DataFrame, Blocks]) -> None:
    posts, blocks = made
    train = posts.filter(split="train")
    users, label = train["uid"].to_numpy(), train["label"].to_numpy()
    head, before = fitted(posts, blocks)
    for row in (0, 11):
        mine = users == users[row]
        changed, after = fitted(posts, blocks, np.where(mine, label + 9.0, label))
        np.testing.assert_array_equal(after[mine], before[mine])
        assert (after != before).mean() > 0.4  # other folds have seen him
        assert (changed.predict(Posts.read(blocks, train["pid"].to_list())) != before).all()
        assert not torch.equal(changed.get_buffer("label_mean"), head.get_buffer("label_mean"))


def test_the_same_seed_gives_the_same_bytes_whatever_was_drawn_before(
    made: tuple[pl.DataFrame, Blocks], tmp_path: Path
) -> None:
    posts, blocks = made
    results = []
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        torch.manual_seed(len(name))
        state = torch.get_rng_state()
        head, out_of_fold = fitted(posts, blocks, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        head.save(tmp_path / name)
        results.append((out_of_fold.tobytes(), (tmp_path / name).read_bytes()))
    assert results[0] == results[1]
    assert results[0][0] != results[2][0]
    assert results[0][1] != results[2][1]


def test_it_is_trained_with_the_class_loss_and_from_the_network(made: tuple[pl.DataFrame, Blocks]) -> None:
    posts, blocks = made
    assert blocks.attention is not None
    start = {name: values.clone() for name, values in blocks.attention.state_dict().items()}
    still = fitted(posts, blocks, lr_attention=0.0)[0]
    with_classes, without = (fitted(posts, blocks, class_weight=weight)[0] for weight in (1.0, 0.0))
    for name, values in start.items():
        torch.testing.assert_close(blocks.attention.state_dict()[name], values, rtol=0, atol=0)  # never trained itself
        torch.testing.assert_close(still.attention.state_dict()[name], values, rtol=0, atol=0)
    projection = "attention.image_projection.weight"
    trained = [head.attention.state_dict()[projection] for head in (with_classes, without)]
    assert not torch.equal(trained[0], start[projection])
    assert not torch.equal(trained[0], trained[1])


def test_what_a_post_lacks(made: tuple[pl.DataFrame, Blocks]) -> None:
    """Without picture, text, or a class that the network knows there is a value all the same."""
    posts, blocks = made
    head, out_of_fold = fitted(posts, blocks)
    assert np.isfinite(out_of_fold).all()
    test = posts.filter(split="test")["pid"].to_list()
    read = Posts.read(blocks, test)
    assert np.isnan(read.text).any()
    assert not read.image.any(axis=1).all()
    assert np.isfinite(head.predict(read)).all()
    assert head.predict(read.of(np.arange(0))).shape == (0,)
    nothing = replace(blocks, attention=None)
    with pytest.raises(ConfigError, match="embed_posts"):
        fitted(posts, nothing)
    train = posts.filter(split="train").with_columns(uid=pl.lit("one"))
    alone = fit_network_head(blocks, train, train["label"].to_numpy(), HEAD, folds=3, seed=0)[1]
    assert np.unique(alone).size == 1


def small_fold(posts: pl.DataFrame) -> Fold:
    columns = ("pid", "uid", "category", "subcategory", "concept", "media_type")
    features = posts.select(*columns, timezone_id=pl.lit("zone"), text=pl.lit("some words")).with_columns(
        hour=posts["posted_at"].dt.hour()
    )
    train, test = (posts["split"] == part for part in ("train", "test"))
    dates = posts["posted_at"].to_physical().to_numpy()
    return Fold(
        "report", 0, 0, features.filter(train), features.filter(test), posts.filter(train)["label"].to_numpy(),
        dates[train.to_numpy()], dates[test.to_numpy()],
    )  # fmt: skip


def test_a_column_that_is_out_of_fold_and_saved_with_the_model(
    made: tuple[pl.DataFrame, Blocks], tmp_path: Path
) -> None:
    posts, blocks = made
    fold = small_fold(posts)
    matrix = MatrixEncoder.fit(fold.fit, fold.label, blocks, BLENDED.columns)[1]
    place = matrix.names.index(NAME)
    assert matrix.blocks[place] == "prototype"
    expected = fit_network_head(blocks, fold.fit, fold.label, HEAD, folds=STACK.columns.head_folds, seed=0)
    np.testing.assert_array_equal(matrix.values[:, place], expected[1])
    model = fit_model(fold, blocks, BLENDED.columns, BLENDED, "stack")
    scored = model.encoder.apply(fold.score, blocks)
    of_scored = expected[0].predict(Posts.read(blocks, scored.pids))
    np.testing.assert_array_equal(scored.values[:, place], of_scored)
    model.save(tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".npz", ".txt", ".safetensors"}
    loaded = StackModel.load(tmp_path)
    predicted = [one.predict(fold.score, blocks, fold.scored_at).values for one in (model, loaded)]
    np.testing.assert_array_equal(predicted[0], predicted[1])
    unread = replace(blocks, attention=None)  # a new post needs none
    np.testing.assert_array_equal(loaded.predict(fold.score, unread, fold.scored_at).values, predicted[0])


def test_off_it_changes_nothing(made: tuple[pl.DataFrame, Blocks], tmp_path: Path) -> None:
    """Neither the attention in the blocks nor the parameters of the head."""
    posts, blocks = made
    fold, trees = small_fold(posts), {}
    other = replace(STACK, columns=replace(STACK.columns, network=replace(HEAD, steps=1)))
    for name, own, params in (("without", replace(blocks, attention=None), STACK), ("with", blocks, other)):
        fit_model(fold, own, params.columns, params, "stack").save(tmp_path / name)
        trees[name] = tree_bytes(tmp_path / name)
    assert trees["with"] == trees["without"]


def test_scored_labels_change_nothing_and_the_baseline_has_no_head(tmp_path: Path) -> None:
    posts, blocks = posts_with_signal(4, train=200, test=60, users=60)
    blocks = with_attention(posts, blocks)
    first = run_all(posts, blocks, tmp_path / "one", params=BLENDED, fitted=("report",))
    scored = first.splits.filter((pl.col("scheme") == "report") & (pl.col("role") == "score"))["pid"].implode()
    moved = posts.with_columns(label=pl.when(pl.col("pid").is_in(scored)).then(99.0).otherwise(pl.col("label")))
    second = run_all(moved, blocks, tmp_path / "two", splits=first.splits, params=BLENDED, fitted=("report",))
    assert first.finished("report") == second.finished("report")
    assert (first.models / "stack" / "prototype_network.safetensors").is_file()
    assert not list((first.models / "metadata").glob("*.safetensors"))
    baseline = StackModel.load(first.models / "metadata")
    assert baseline.blend.weights.sum() == pytest.approx(1)


def test_the_stored_attention_is_read_with_the_blocks(made: tuple[pl.DataFrame, Blocks], tmp_path: Path) -> None:
    _, blocks = made
    assert blocks.attention is not None
    folders = write_blocks(blocks, tmp_path)
    assert read_blocks(*folders).attention is None
    blocks.attention.save(folders[2] / ATTENTION_FILE)
    read = read_blocks(*folders).attention
    assert read is not None
    assert read.about() == blocks.attention.about()


def test_the_learner_is_a_weighted_line_through_the_column() -> None:
    rng = np.random.default_rng(0)
    column = rng.normal(5, 1, 80)
    values = np.stack([rng.normal(size=80), column], axis=1).astype(np.float32)
    matrix = Matrix(values, [f"{row:03d}" for row in range(80)], ("other", NAME), ("metadata", "prototype"), ())
    weight = rng.uniform(0.5, 2, 80)
    sample = Sample(matrix, 2 + 0.5 * column + rng.normal(0, 0.1, 80), weight)
    model = network_learner.fit(sample, 0, BLENDED, 0)
    slope, constant = np.polyfit(values[:, 1].astype(np.float64), sample.target, 1, w=np.sqrt(weight))
    np.testing.assert_allclose([model.slope, model.constant], [slope, constant])
    np.testing.assert_allclose(
        network_learner.contributions(model, matrix).sum(axis=1), network_learner.predict(model, matrix)
    )
    before, after = np.arange(60), np.arange(60, 80)
    learned = network_learner.learn(sample, [(before, after)], BLENDED)
    moved = replace(sample, target=np.where(np.arange(80) < 60, sample.target, 99.0))
    np.testing.assert_array_equal(
        network_learner.learn(moved, [(before, after)], BLENDED).out_of_fold, learned.out_of_fold
    )
    assert np.abs(learned.out_of_fold - sample.target[after]).mean() < 0.15


def test_the_learner_needs_the_column() -> None:
    with pytest.raises(ValueError, match=r"columns\.heads"):
        replace(STACK, learners=("network",))
