"""The training loop on random vectors: length, accumulation, resumption, passes, measures, and awkward posts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from transformers import PreTrainedModel

from popularity.core.arrays import Int64Array
from popularity.core.errors import DataError
from popularity.encoders.sources import Precision
from popularity.network.accelerator import make_accelerator
from popularity.network.dataset import Batch, PostReader
from popularity.network.heads import rank_of_target
from popularity.training.batches import TrainingPosts
from popularity.training.loop import DivergenceError, Epoch, measure, train_network
from tests.network.small_network import ALL_LEVELS
from tests.training.small_training import (
    random_vectors,
    rows_of,
    single_accelerator,
    small_network,
    small_run,
    small_tower,
    train_params,
)

TERMS = ("global_prompt", "local_prompt", "attention")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def finite(history: list[Epoch]) -> bool:
    return all(math.isfinite(value) for epoch in history for value in epoch.values())


def test_it_learns_the_classes(bert: Path, tmp_path: Path) -> None:
    history, _ = small_run(train_params(epochs=15), bert, tmp_path)
    assert len(history) == 15
    assert finite(history)
    for term in TERMS:
        assert history[-1][f"train/{term}"] < history[0][f"train/{term}"]
    assert history[-1]["train/loss"] == pytest.approx(sum(history[-1][f"train/{term}"] for term in TERMS))
    assert history[-1]["validation/top1/mean"] > 0.5  # of five classes
    assert history[-1]["validation/top5/mean"] == 1


def test_the_same_seed_gives_the_same_bits(bert: Path, tmp_path: Path) -> None:
    params = {"attention.dropout": 0.2}
    first, again, other = (
        small_run(train_params(seed=seed, **params), bert, tmp_path / str(index))
        for index, seed in enumerate((0, 0, 1))
    )
    assert first[0] == again[0]
    assert same(first[1], again[1])
    assert not same(first[1], other[1])


def test_accumulated_steps_equal_whole_ones(bert: Path, tmp_path: Path) -> None:
    """Four passes of 5 posts a step; the last step of 11 is passes of 4, 4 and 3."""
    whole, weights = small_run(train_params(epochs=7), bert, tmp_path / "whole")
    passes, accumulated = small_run(train_params(epochs=7, micro_batch=5), bert, tmp_path / "passes")
    for one, other in zip(whole, passes, strict=True):
        assert other == pytest.approx(one, rel=1e-5)
    for name in TERMS[:2]:
        torch.testing.assert_close(weights[f"{name}.context"], accumulated[f"{name}.context"], rtol=1e-4, atol=1e-5)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("last", [0, 1, 3])
def test_a_run_that_was_stopped_ends_in_the_same_bits(last: int, bert: Path, tmp_path: Path) -> None:
    """With dropout, a cosine schedule, learnt temperatures and some layers of the towers."""
    params = train_params(
        epochs=5, unfreeze_layers=1, **{"attention.dropout": 0.2, "temperatures.learn": True}, lr_temperature=0.1
    )

    def stop(index: int, _epoch: Epoch) -> None:
        if index > last:
            raise StoppedError

    whole, weights = small_run(params, bert, tmp_path / "whole")
    with pytest.raises(StoppedError):
        small_run(params, bert, tmp_path / "state", on_epoch=stop)
    calls: list[tuple[int, Epoch]] = []
    resumed, final = small_run(
        params, bert, tmp_path / "state", on_epoch=lambda index, epoch: calls.append((index, epoch))
    )
    assert resumed == whole
    assert same(final, weights)
    assert calls == list(enumerate(whole))  # a new set of curves gets the epochs before the stop too
    again, _ = small_run(params, bert, tmp_path / "state")
    assert again == whole  # nothing was left to do


def test_joint_training_equals_training_the_parts_apart(bert: Path, tmp_path: Path) -> None:
    history, joint = small_run(train_params(clip_norm=0.3), bert, tmp_path / "joint")
    for term in TERMS:
        off = {f"weights.{other}": 0.0 for other in TERMS if other != term}
        alone_history, alone = small_run(train_params(clip_norm=0.3, **off), bert, tmp_path / term)
        assert [epoch[f"train/{term}"] for epoch in alone_history] == pytest.approx(
            [epoch[f"train/{term}"] for epoch in history], rel=1e-6
        )
        for name, values in alone.items():
            if name.startswith(term):
                torch.testing.assert_close(values, joint[name], rtol=1e-5, atol=1e-6, msg=name)
        untouched = small_network(train_params(), random_vectors(), small_tower(bert)).state_dict()
        for other in TERMS:
            if other != term:
                assert all(torch.equal(alone[name], untouched[name]) for name in alone if name.startswith(other))


def test_the_text_tower_runs_in_every_step_only_where_a_prompt_is_trained(bert: Path, tmp_path: Path) -> None:
    found: dict[bool, list[str]] = {}
    for trained in (True, False):
        runs: list[str] = []
        off = {} if trained else {"weights.global_prompt": 0.0, "weights.local_prompt": 0.0}
        with torch.nn.modules.module.register_module_forward_hook(
            lambda module, _inputs, _output, runs=runs: (
                runs.append("tower") if isinstance(module, PreTrainedModel) else None
            )
        ):
            history, _ = small_run(train_params(epochs=4, **off), bert, tmp_path / str(trained), held_out=False)
        assert len(history) == 4
        found[trained] = runs
    assert len(found[False]) == 1 + 2  # for its width, and once each for G and L
    assert len(found[True]) >= 1 + 2 * 4


def test_temperatures_move_where_they_are_learnt(bert: Path, tmp_path: Path) -> None:
    names = [f"log_temperatures.{name}" for name in ("global_prompt", "local_prompt", "tokens", "visual", "text")]
    start = small_network(train_params(), random_vectors(), small_tower(bert)).state_dict()
    for learn in (False, True):
        params = train_params(lr_temperature=0.1, **{"temperatures.learn": learn})
        _, weights = small_run(params, bert, tmp_path / str(learn))
        assert [bool((weights[name] - start[name]).abs() > 1e-3) for name in names] == [learn] * 5
        assert torch.equal(weights["log_temperatures.contrastive"], start["log_temperatures.contrastive"])


class Recorder:
    """Reads posts and remembers which, in training and in measuring."""

    def __init__(self) -> None:
        self.vectors = random_vectors()
        self.rows: list[Int64Array] = []

    def __call__(self, rows: Int64Array) -> Batch:
        self.rows.append(rows)
        return self.vectors.batch(rows)

    @property
    def posts(self) -> PostReader:
        return PostReader(self, self.vectors.metadata)

    def run(self, folder: Path, state: Path, rows: Int64Array, held_out: Int64Array, **changes: Any) -> list[Epoch]:
        params = train_params(**changes)
        network = small_network(params, self.vectors, small_tower(folder))
        return train_network(
            network, TrainingPosts(self.posts, rows, held_out), params, single_accelerator(), state=state
        )


def test_the_longer_of_epochs_and_steps_within_a_limit(bert: Path, tmp_path: Path) -> None:
    rows, _ = rows_of(random_vectors())
    for epochs, min_steps, max_steps, sizes in (
        (2, 4, 0, [20, 20, 11] * 2),
        (1, 7, 0, [20, 20, 11, 20, 20, 11, 20]),
        (1, 0, 9, [20, 20, 11]),
        (2, 4, 4, [20, 20, 11, 20]),
    ):
        recorder = Recorder()
        lengths = {"epochs": epochs, "min_steps": min_steps, "max_steps": max_steps}
        history = recorder.run(bert, tmp_path / f"{max_steps}{min_steps}", rows, rows[:0], batch_size=20, **lengths)
        assert [len(read) for read in recorder.rows] == sizes
        assert len(history) == -(-len(sizes) // 3)
        first = np.concatenate(recorder.rows[:3])
        assert sorted(first) == sorted(rows)
        assert list(first) != sorted(rows)


def test_held_out_posts_are_never_trained_on(bert: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    rows, held_out = rows_of(recorder.vectors)
    history = recorder.run(bert, tmp_path / "recorded", rows, held_out, epochs=2)
    trained = [read for read in recorder.rows if np.isin(read, rows).all()]
    measured = [read for read in recorder.rows if np.isin(read, held_out).all()]
    assert len(trained) + len(measured) == len(recorder.rows)
    assert sorted(np.concatenate(measured)) == sorted([*held_out] * 2)
    assert {name for name in history[0] if name.startswith("validation/top1/")} == {
        f"validation/top1/{head}" for head in (*TERMS, "mean")
    }
    params = train_params()
    _, weights = small_run(params, bert, tmp_path / "with")
    without, same_weights = small_run(params, bert, tmp_path / "without", held_out=False)
    assert same(weights, same_weights)
    assert not any(name.startswith("validation") for name in without[0])


def test_no_rows_to_train_on(bert: Path, tmp_path: Path) -> None:
    none = np.zeros(0, np.int64)
    with pytest.raises(DataError, match="no post to train on has a known class"):
        Recorder().run(bert, tmp_path, none, none)


@pytest.mark.parametrize("posts", [[0], [1], [2], [3], [0, 1, 2, 3]])
def test_posts_without_image_text_or_class(posts: list[int], bert: Path, tmp_path: Path) -> None:
    """Finite, and a term that no post counts for is 0: see `random_vectors` for what the posts lack."""
    rows = np.array(posts)
    changes: dict[str, Any] = {"weights.contrastive": 1.0, "prototypes.levels": list(ALL_LEVELS)}
    params = train_params(**changes)
    vectors = random_vectors(ALL_LEVELS)
    network = small_network(params, vectors, small_tower(bert))
    posts_of_run = TrainingPosts(vectors.reader, rows, rows)
    history = train_network(network, posts_of_run, params, single_accelerator(), state=tmp_path)
    assert finite(history)
    assert all(values.isfinite().all() for values in network.state_dict().values())
    counted = {
        "global_prompt": {0, 1, 2},
        "local_prompt": {0},
        "attention": {1},
        "attention_category": {1},
        "attention_concept": {1},
    }
    for term, those in counted.items():
        assert (history[0][f"train/{term}"] > 0) == bool(those & set(posts)), term
        assert (history[0][f"validation/{term}"] > 0) == bool(those & set(posts)), term


def log_softmax(values: Tensor) -> np.ndarray:
    wide = values.double().numpy()
    shifted = wide - wide.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def test_measures_are_plain_numpy(bert: Path) -> None:
    vectors, params = random_vectors(), train_params(batch_size=9, micro_batch=4)
    network = small_network(params, vectors, small_tower(bert)).eval()
    rows = np.arange(len(vectors.pids))
    measured = measure(network, vectors.reader, rows, params, single_accelerator())
    with torch.no_grad():
        outputs = network(vectors.batch(rows))
    temperatures = params.network.temperatures
    heads = {
        "global_prompt": log_softmax(outputs.global_logits / temperatures.global_prompt),
        "local_prompt": log_softmax(outputs.local_logits / temperatures.local_prompt),
        "attention": log_softmax(outputs.levels["subcategory"].logits),
    }
    heads["mean"] = np.mean(list(heads.values()), axis=0)
    target = vectors.target[:, 0]
    known = target >= 0
    for name, values in heads.items():
        order = np.argsort(-values[known], axis=1, kind="stable")
        rank = (order == target[known][:, None]).argmax(axis=1)
        constant = np.ptp(values[known], axis=1) < 1e-6  # p' of an empty text: a tie is no hit
        assert measured[f"top1/{name}"] == pytest.approx(((rank < 1) & ~constant).mean())
        assert measured[f"top5/{name}"] == 1
    counts = {
        "global_prompt": known,
        "local_prompt": known & (vectors.lengths > 0),
        "attention": known & (vectors.image_row >= 0),
    }
    for name, counted in counts.items():
        assert measured[name] == pytest.approx(-heads[name][counted, target[counted]].mean(), rel=1e-5)
    assert {name for name in measured if "top" not in name} == set(TERMS)


def test_ranks_count_the_classes_that_score_at_least_as_high() -> None:
    rng = np.random.default_rng(0)
    scores, target = rng.normal(size=(50, 12)), rng.integers(12, size=50)
    rank = (np.argsort(-scores, axis=1) == target[:, None]).argmax(axis=1)
    assert rank_of_target(torch.from_numpy(scores), torch.from_numpy(target)).tolist() == rank.tolist()
    assert rank_of_target(torch.zeros(1, 12), torch.tensor([0])).tolist() == [11]  # a tie is no hit
    assert rank_of_target(torch.full((1, 12), torch.nan), torch.tensor([0])).tolist() == [11]


def test_a_loss_that_is_no_number_is_an_error(bert: Path, tmp_path: Path) -> None:
    params = train_params(epochs=3)
    with pytest.raises(DivergenceError, match=r"(?s)epoch 0: the loss is nan.*section train"):
        small_run(replace(params, lr_prompt=1e30, lr_attention=1e30, clip_norm=1e9), bert, tmp_path)


def test_bf16_is_near_fp32(bert: Path, tmp_path: Path) -> None:
    params = train_params(epochs=6)
    full, _ = small_run(params, bert, tmp_path / "fp32")
    half, _ = small_run(params, bert, tmp_path / "bf16", single_accelerator("bf16"))
    assert half != full
    assert [epoch["train/loss"] for epoch in half] == pytest.approx([epoch["train/loss"] for epoch in full], rel=0.1)


@pytest.mark.parametrize(
    ("wanted", "capability", "given"),
    [("auto", "AVX512", "bf16"), ("auto", "AVX2", "no"), ("fp32", "AVX512", "no"), ("bf16", "AVX2", "bf16")],
)
def test_precision_of_the_device(
    wanted: Precision, capability: str, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    single_accelerator()  # the processes keep the device, and the precision is chosen anew
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    AcceleratorState._reset_state()
    assert make_accelerator(wanted).mixed_precision == given
    AcceleratorState._reset_state()
