"""Fits the text model in every fold, predicts the valid rows, and keeps the model of `refit` for later posts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl
import torch
from tqdm import tqdm

from popularity.core.contracts import REFIT, TEXT_PREDICTIONS, FoldKey, empty_table, read_table, write_table
from popularity.core.parallel import ordered_map, torch_threads
from popularity.encoders.text import EmbedTextParams
from popularity.text_model.model import TextModelParams, fit
from popularity.validation import rows_of
from popularity.validation.folds import load_fold


@dataclass(frozen=True)
class FoldInputs:
    """What the text model of every fold is fitted with.

    Args:
        posts: contract POSTS.
        features: folder that featurize wrote.
        encoder: section embed_text.
        params: section text_model.
        state: folder of finished folds, which are not fitted again.
        model_file: of the model of `refit`.
    """

    posts: pl.DataFrame
    features: Path
    encoder: EmbedTextParams
    params: TextModelParams
    state: Path
    model_file: Path


def fit_folds(inputs: FoldInputs, splits: pl.DataFrame, schemes: Sequence[str]) -> pl.DataFrame:
    """Predictions of every fold's valid rows (contract TEXT_PREDICTIONS); empty without epochs.

    Args:
        inputs: the same for every fold.
        splits: contract FOLDS.
        schemes: that are fitted in addition to `refit`.
    """
    params = inputs.params
    if not params.epochs:
        return empty_table(TEXT_PREDICTIONS)
    folds = list(rows_of(splits, [*schemes, REFIT]))
    parallel = 1 if torch.cuda.is_available() else params.parallel_folds
    fits = ordered_map(partial(_predictions, inputs), folds, parallel=parallel, threads=params.num_threads)
    predictions: pl.DataFrame = pl.concat(tqdm(fits, "text model", len(folds), unit="fold"))
    return predictions.sort(TEXT_PREDICTIONS.key)


def _predictions(inputs: FoldInputs, task: tuple[FoldKey, pl.DataFrame]) -> pl.DataFrame:
    """Predictions (contract TEXT_PREDICTIONS) of one fold."""
    key, rows = task
    finished = inputs.state / key.file_name
    if not finished.exists():
        fold = load_fold(key, rows, inputs.posts, inputs.features)
        with torch_threads(inputs.params.num_threads):
            model = fit(fold.train, fold.label, fold.posted_at, inputs.encoder, inputs.params)
            predicted = model.predict(fold.valid, fold.valid_at)
        keys = fold.valid.select("pid", scheme=pl.lit(key.scheme), fold=pl.lit(key.fold, pl.Int32))
        if key.scheme == REFIT:
            model.save(inputs.model_file)
        predictions = keys.with_columns(prediction=pl.Series(predicted, dtype=pl.Float64))
        write_table(predictions, finished, TEXT_PREDICTIONS)
    return read_table(finished, TEXT_PREDICTIONS)
