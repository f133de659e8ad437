"""Pooled vectors of the untouched encoder, computed once for the train rows of all folds.

They lie in the state folder, a file for each shard of posts, so that the processes of a launch divide them and a killed
run keeps those that are finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from popularity.core.arrays import Float32Array
from popularity.core.atomic import atomic_path, reading
from popularity.encoders.precision import resolve_precision
from popularity.encoders.sharding import autocast
from popularity.encoders.sources import Precision
from popularity.encoders.text import EmbedTextParams, TextBatch, TextEncoder, load_text_encoder, load_tokenizer

SHARD_POSTS = 2048
BATCH_POSTS = 128
CPU = torch.device("cpu")


@dataclass(frozen=True)
class FrozenVectors:
    """The vectors in the shards of a folder.

    Args:
        folder: of the shards.
        pids: of n posts, sorted.
    """

    folder: Path
    pids: pl.Series

    @property
    def files(self) -> list[str]:
        """The names of the shards."""
        return [f"vectors_{start // SHARD_POSTS:06d}.npy" for start in range(0, len(self.pids), SHARD_POSTS)]

    def write(self, shard: int, texts: Sequence[str], encoder: EmbedTextParams, device: torch.device) -> None:
        """Computes and writes a shard.

        Args:
            shard: its index.
            texts: of its posts.
            encoder: an entry of embed_text.
            device: that computes.
        """
        with atomic_path(self.folder / self.files[shard]) as partial, partial.open("wb") as stream:
            np.save(stream, frozen_vectors(texts, encoder, device))

    def take(self, pids: pl.Series) -> Float32Array:
        """(m, d) vectors of m of the posts.

        Args:
            pids: among the n.
        """
        rows = self.pids.search_sorted(pids).to_numpy()
        order = np.argsort(rows, kind="stable")
        shards, inside = np.divmod(rows[order], SHARD_POSTS)
        found = []
        for shard in np.unique(shards):
            path = self.folder / self.files[shard]
            with reading(path):
                found.append(np.load(path, mmap_mode="r")[inside[shards == shard]])
        vectors: Float32Array = np.concatenate(found)[np.argsort(order)]
        return vectors


def frozen_vectors(texts: Sequence[str], encoder: EmbedTextParams, device: torch.device = CPU) -> Float32Array:
    """(n, d) `pooled_vectors` of the untouched encoder.

    Args:
        texts: n of them.
        encoder: an entry of embed_text.
        device: that computes.
    """
    tower, tokenizer = load_text_encoder(encoder).to(device), load_tokenizer(encoder)
    tokens = tokenizer(texts)
    order = np.argsort(tokens.attention_mask.sum(dim=1).numpy(), kind="stable")
    vectors = np.empty((len(order), tower.out_features), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), BATCH_POSTS):
            rows = order[start : start + BATCH_POSTS]
            batch = cut_padding(TextBatch(*(part[rows] for part in tokens)), tokenizer.fixed_length)
            vectors[rows] = pooled_vectors(tower, batch, encoder.precision).cpu().numpy()
    return vectors


def cut_padding(batch: TextBatch, fixed_length: bool) -> TextBatch:
    """The batch without the padding beyond its longest text, where the tower does not read it.

    Args:
        batch: tokens of n texts.
        fixed_length: the tower reads padding, so nothing is cut.
    """
    width = batch.input_ids.shape[1] if fixed_length else int(batch.attention_mask.sum(dim=1).max())
    return TextBatch(*(part[:, :width] for part in batch))


def pooled_vectors(tower: TextEncoder, batch: TextBatch, precision: Precision) -> Tensor:
    """(n, d) float32 pooled vectors, normalised to the length sqrt(d): values of about 1.

    Args:
        tower: on any device.
        batch: tokens of n texts.
        precision: of the tower's layers.
    """
    device = next(tower.parameters()).device
    ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
    # Texts are short: on a CPU the fused attention is much slower for them in bf16, and its gradient most of all.
    plain = device.type == "cpu" and resolve_precision(precision, device) == "bf16"
    with autocast(device, precision), sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
        pooled = tower(ids, mask)[0]
    return functional.normalize(pooled.float(), dim=1) * tower.out_features**0.5
