"""Submission files from the final predictions, in the row order of the published test files."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import polars as pl
from pydantic import Field

from popularity.core.config import Section
from popularity.core.contracts import MAIN_MODEL, REFIT
from popularity.core.errors import ContractError
from popularity.submission.validate import CSV_HEADER, ID_PREFIX, MIN_DECIMALS, validate

logger = logging.getLogger(__name__)

NO_SUBMISSION = "NO_SUBMISSION.txt"  # written instead of a submission for a data set without a test part


@dataclass(frozen=True)
class SubmitConfig(Section):
    """Section `submit` of params.yaml.

    Args:
        version: of the official JSON form.
        decimals: number of decimals.
        external_data: data used in addition to the data set; empty if none. {encoders} stands for the models of
            the encoders in use.
    """

    version: Annotated[str, Field(min_length=1)]
    decimals: Annotated[int, Field(ge=MIN_DECIMALS, le=17)]
    external_data: str


def submit(posts: pl.DataFrame, predictions: pl.DataFrame, config: SubmitConfig, directory: Path) -> list[Path]:
    """Writes and validates submission.json and submission.csv; returns their paths.

    Without a test split it writes NO_SUBMISSION.txt, and the list is empty.

    Args:
        posts: contract POSTS.
        predictions: contract PREDICTIONS.
        config: section submit.
        directory: still the temporary one of `atomic_directory`: a refused file must not stay.

    Raises:
        ContractError: a test post has no prediction in some seed, or there are predictions of other posts.
        DataError: the validator refuses a file.
    """
    test = posts.filter(pl.col("split") == "test").sort("source_index")
    if test.is_empty():
        reason = "The data set has no test split (test_allmetadata_json), so there is nothing to submit."
        logger.warning("no submission: %s", reason)
        (directory / NO_SUBMISSION).write_text(reason + "\n", encoding="utf-8")
        return []
    scores = _scores(test, predictions)
    return write_files([ID_PREFIX + pid for pid in test["pid"]], scores, config, directory)


def write_files(ids: Sequence[str], scores: Sequence[float], config: SubmitConfig, directory: Path) -> list[Path]:
    """Writes and validates submission.json and submission.csv; returns their paths.

    Args:
        ids: of the posts, in the order of the test files.
        scores: one for each id.
        config: section submit.
        directory: of the files.

    Raises:
        DataError: the validator refuses a file.
    """
    written = [f"{score:.{config.decimals}f}" for score in scores]
    files = {"submission.json": _json_text(ids, written, config), "submission.csv": _csv_text(ids, written)}
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8", newline="")
        logger.info("%s: %s", name, validate(directory / name, ids))
    return [directory / name for name in files]


def _scores(test: pl.DataFrame, predictions: pl.DataFrame) -> list[float]:
    """The mean over seeds for each row of `test`, in its order."""
    positions = test["source_index"]
    if not positions.equals(pl.Series("source_index", range(len(test)), dtype=pl.Int64)):
        raise ContractError(
            f"posts: expected the test rows' source_index to be 0 to {len(test) - 1} without a gap, found "
            f"{positions[0]} to {positions[-1]}: a submission needs every row of the test files"
        )
    final = predictions.filter((pl.col("scheme") == REFIT) & (pl.col("model") == MAIN_MODEL))
    runs = final["seed"].n_unique()
    means = final.sort("seed").group_by("pid", maintain_order=True).agg(pl.mean("prediction"), runs=pl.len())
    joined = test.select("pid").join(means, on="pid", how="left", validate="1:1", maintain_order="left")
    for name, wrong in (
        ("lack a prediction", joined.filter(pl.col("runs").is_null())),
        ("are predicted in some seeds only", joined.filter(pl.col("runs") != runs)),
        ("are predicted but not in the test split", means.join(test, on="pid", how="anti")),
    ):
        if len(wrong):
            raise ContractError(
                f"predictions of '{MAIN_MODEL}' in scheme '{REFIT}': {len(wrong)} posts {name}, for example "
                f"{wrong['pid'][0]}; expected each of the {len(test)} test posts once per seed"
            )
    return joined["prediction"].to_list()


def _json_text(ids: Sequence[str], scores: Sequence[str], config: SubmitConfig) -> str:
    """One result a line. Scores are inserted as text, because a JSON writer would drop trailing zeros."""
    rows = ",\n".join(
        f'    {{"post_id": {json.dumps(post)}, "popularity_score": {score}}}'
        for post, score in zip(ids, scores, strict=True)
    )
    external = {"used": "true" if config.external_data else "false", "details": config.external_data}
    return (
        f'{{\n  "version": {json.dumps(config.version)},\n  "result": [\n{rows}\n  ],\n'
        f'  "external_data": {json.dumps(external, ensure_ascii=False)}\n}}\n'
    )


def _csv_text(ids: Sequence[str], scores: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    writer.writerows(zip(ids, scores, strict=True))
    return text.getvalue()
