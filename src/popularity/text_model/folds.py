"""Fits the text model in every fold, predicts the valid rows, and keeps the model of `refit` for later posts.

The folds are divided among the processes of a launch. Each lies in a file of its own when it is finished, so that a
killed run goes on after them, with any number of processes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from accelerate import PartialState
from tqdm import tqdm

from popularity.core.allocation import local_processes
from popularity.core.contracts import MEMBER_PREDICTIONS, REFIT, FoldKey, empty_table, read_table, write_table
from popularity.core.parallel import ordered_map
from popularity.core.tensors import torch_threads
from popularity.encoders.sharding import missing_files
from popularity.encoders.text import EmbedTextParams
from popularity.text_model.frozen import FrozenStates, Texts, write_states
from popularity.text_model.model import Labels, TextModelParams, fit, latest_rows, sentences
from popularity.validation import rows_of
from popularity.validation.folds import load_fold

logger = logging.getLogger(__name__)

Task = tuple[FoldKey, pl.DataFrame]


@dataclass(frozen=True)
class FoldInputs:
    """What the text model of every fold is fitted with.

    Args:
        posts: contract POSTS.
        features: folder that featurize wrote.
        encoder: an entry of embed_text.
        params: section text_model.
        device: of this process.
        state: folder of finished folds, which are not fitted again; on a disk that all processes share.
    """

    posts: pl.DataFrame
    features: Path
    encoder: EmbedTextParams
    params: TextModelParams
    device: torch.device
    state: Path

    @property
    def model_file(self) -> Path:
        """The model of `refit`."""
        return self.state / "model.safetensors"


def fit_folds(
    inputs: FoldInputs, splits: pl.DataFrame, schemes: Sequence[str], processes: PartialState
) -> pl.DataFrame:
    """Predictions of every fold's valid rows (contract MEMBER_PREDICTIONS); empty without epochs.

    Process k of n fits every n-th fold that is not finished, from the k-th on; all of them return the same predictions.

    Args:
        inputs: the same for every fold.
        splits: contract FOLDS.
        schemes: that are fitted in addition to `refit`.
        processes: the state of this process.
    """
    if not inputs.params.epochs:
        return empty_table(MEMBER_PREDICTIONS)
    folds = list(rows_of(splits, [*schemes, REFIT]))
    missing = missing_files(inputs.state, [key.file_name for key, _ in folds], processes)
    mine = [folds[index] for index in missing[processes.process_index :: processes.num_processes]]
    if processes.num_processes > 1:
        logger.info("process %d of %d has %d folds", processes.process_index, processes.num_processes, len(mine))
    states = _states(inputs, folds, processes) if missing else None
    fits = ordered_map(
        partial(_fit_fold, inputs, states), mine, parallel=parallel_fits(inputs), threads=inputs.params.num_threads
    )
    for _ in tqdm(fits, "text model", len(mine), unit="fold", disable=not processes.is_main_process):
        pass
    processes.wait_for_everyone()
    finished = [read_table(inputs.state / key.file_name, MEMBER_PREDICTIONS) for key, _ in folds]
    return pl.concat(finished).sort(MEMBER_PREDICTIONS.key)


def parallel_fits(inputs: FoldInputs) -> int:
    """Fits at the same time in this process: on a CPU its part of `parallel_folds`, on an accelerator one."""
    return max(1, inputs.params.parallel_folds // local_processes()) if inputs.device.type == "cpu" else 1


def _states(inputs: FoldInputs, folds: Sequence[Task], processes: PartialState) -> FrozenStates | None:
    """The outputs of the frozen layers for all train rows, and for the valid rows that have a label.

    Posts of the test split are read once, by the whole model, as `predict` reads them.
    """
    dates = dict(inputs.posts.select("pid", pl.col("posted_at").to_physical()).iter_rows())
    needed: set[str] = set()
    wanted: set[str] = set()
    for key, rows in folds:
        train = rows.filter(role="train")["pid"]
        latest = latest_rows(np.array([dates[pid] for pid in train], np.int64), inputs.params)
        needed.update(train.gather(latest))
        wanted.update([] if key.scheme == REFIT else rows.filter(role="valid")["pid"])
    key, rows = next(task for task in folds if task[0].scheme == REFIT)
    features = load_fold(key, rows, inputs.posts, inputs.features).train
    features = features.filter(pl.col("pid").is_in([*needed, *wanted]))
    posts = dict(zip(features["pid"], sentences(features), strict=True))
    texts = Texts.of(posts, needed, inputs.encoder)
    max_bytes = inputs.params.cache_gib * 2**30
    folder = inputs.state / "frozen"
    return write_states(texts, inputs.encoder, inputs.params.unfreeze_layers, max_bytes, folder, processes)


def _fit_fold(inputs: FoldInputs, states: FrozenStates | None, task: Task) -> None:
    """Writes the predictions (contract MEMBER_PREDICTIONS) of one fold, and the model if it is that of `refit`."""
    key, rows = task
    fold = load_fold(key, rows, inputs.posts, inputs.features)
    with torch_threads(inputs.params.num_threads):
        model = fit(fold.train, Labels.of(fold), inputs.encoder, inputs.params, inputs.device, states)
        predicted = model.predict(fold.valid, fold.valid_at, states=states)
    keys = fold.valid.select("pid", scheme=pl.lit(key.scheme), fold=pl.lit(key.fold, pl.Int32))
    if key.scheme == REFIT:
        model.save(inputs.model_file)
    predictions = keys.with_columns(prediction=pl.Series(predicted, dtype=pl.Float64))
    write_table(predictions, inputs.state / key.file_name, MEMBER_PREDICTIONS)
