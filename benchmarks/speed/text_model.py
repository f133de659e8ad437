"""The text model: the tasks of `python -m benchmarks.speed text_model`.

As many fits as there are forward splits, with the epochs of params.yaml, and their predictions: on stored outputs of
the frozen layers, whose computation counts, or on the texts. The labels are random: the time does not depend on them.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from accelerate import PartialState

from benchmarks.measuring import REPOSITORY, Clock, Task, run_task
from benchmarks.speed.models import posts_of
from popularity.core.config import PARAMS_FILE, load_params, read_yaml
from popularity.core.tensors import torch_threads
from popularity.encoders.precision import resolve_precision
from popularity.encoders.sharding import start_processes
from popularity.encoders.text import EmbedTextParams, network_text_params
from popularity.text_model.frozen import FrozenStates, Texts, write_states
from popularity.text_model.model import Labels, TextModelParams, fit, sentences

PARAMS = REPOSITORY / PARAMS_FILE
VALID = 0.2  # of the posts are predicted after each fit


def task_stored(folder: Path, count: str) -> dict[str, float]:
    """On stored outputs of the frozen layers."""
    return _fits(folder, int(count), load_params("text_model", TextModelParams, PARAMS), stored=True)


def task_whole(folder: Path, count: str, unfreeze_layers: str = "") -> dict[str, float]:
    """On the texts: every step runs the frozen layers, too; with another number of trained layers, if it is given."""
    params = load_params("text_model", TextModelParams, PARAMS)
    layers = int(unfreeze_layers) if unfreeze_layers else params.unfreeze_layers
    return _fits(folder, int(count), replace(params, unfreeze_layers=layers), stored=False)


def _fits(folder: Path, count: int, params: TextModelParams, stored: bool) -> dict[str, float]:
    processes = start_processes()
    encoder = network_text_params(PARAMS)
    encoder = replace(encoder, precision=resolve_precision(encoder.precision, processes.device))
    with tempfile.TemporaryDirectory(dir=folder) as name, torch_threads(params.num_threads):
        features = _features(posts_of(Path(name), count))
        rng = np.random.default_rng(0)
        days = np.arange(features.height) * 86_400_000_000
        train = np.flatnonzero(rng.random(features.height) >= VALID)
        labels = Labels(rng.normal(size=features.height), days, features.height).take(train)
        valid = np.setdiff1d(np.arange(features.height), train)
        clock = Clock()
        states = _states(features, encoder, params, Path(name), processes) if stored else None
        for _ in range(read_yaml(PARAMS)["split"]["n_origins"]):
            model = fit(features[train], labels, encoder, params, processes.device, states)
            model.predict(features[valid], days[valid], states=states)
        return clock.read()


def _features(posts: pl.DataFrame) -> pl.DataFrame:
    """What the text model reads, with one number."""
    text = pl.concat_str("title", "tags", separator=" ")
    return posts.select("pid", "subcategory", "concept", text=text, text_length=text.str.len_chars())


def _states(
    features: pl.DataFrame, encoder: EmbedTextParams, params: TextModelParams, folder: Path, processes: PartialState
) -> FrozenStates | None:
    posts = dict(zip(features["pid"], sentences(features), strict=True))
    texts = Texts.of(posts, set(posts), encoder)
    max_bytes = params.cache_gib * 2**30
    return write_states(texts, encoder, params.unfreeze_layers, max_bytes, folder / "frozen", processes)


TASKS: dict[str, Task] = {"stored": task_stored, "whole": task_whole}

if __name__ == "__main__":
    run_task(TASKS, sys.argv[1:])
