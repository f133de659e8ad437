"""A data set through the stage prototypes without an encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from popularity.core.vectors import Block, Tokens
from popularity.network.inputs import EncoderOutputs
from popularity.prototypes.build import PrototypesParams, build_prototypes, write_prototypes
from tests.network.small_network import IMAGE_WIDTH, TEXT_WIDTH


def random_outputs(posts: pl.DataFrame, without_picture: set[str], without_text: set[str]) -> EncoderOutputs:
    """Random vectors of all posts, in canonical order.

    Those without an image are absent, those without text have no tokens.
    """
    rng = np.random.default_rng(0)
    pids = posts["pid"].sort().to_list()
    pictures = [pid for pid in pids if pid not in without_picture]
    lengths = [0 if pid in without_text else int(rng.integers(1, 6)) for pid in pids]
    tokens = rng.normal(size=(sum(lengths), TEXT_WIDTH)).astype(np.float16)
    return EncoderOutputs(
        image=random_block(pictures, IMAGE_WIDTH, 1),
        text=random_block(pids, TEXT_WIDTH, 2),
        tokens=Tokens(tokens, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), pids, {}),
    )


def random_block(pids: list[str], width: int, seed: int) -> Block:
    values = np.random.default_rng(seed).normal(size=(len(pids), width)).astype(np.float16)
    metadata = {"encoder": "random", "weights": "none", "preprocessing": {}, "pooling": "none"}
    return Block(values, pids, {**metadata, "columns": [f"column_{index}" for index in range(width)]})


def make_prototypes(posts: pl.DataFrame, blocks: EncoderOutputs, folder: Path) -> Path:
    """Of at most 5 representatives a class, so that some posts represent nothing."""
    params = PrototypesParams(seed=0, max_per_class=5, class_name_format="auto")
    write_prototypes(build_prototypes(posts, blocks.image, blocks.text, params, transductive=True), folder)
    return folder
