"""What the stage embed_text computes: it reads a table of posts and writes blocks and tokens in canonical order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch

from popularity.core.arrays import BoolArray, Float16Array, Int64Array
from popularity.core.atomic import atomic_directory, fingerprint
from popularity.core.contracts import POSTS, read_table
from popularity.core.resume import STATE_ROOT, resume_state
from popularity.core.vectors import Block, Tokens, write_block, write_tokens
from popularity.encoders.precision import resolve_precision
from popularity.encoders.sharding import (
    Arrays,
    ShardPlan,
    as_float16,
    autocast,
    encode_shards,
    gather,
    read_shards,
    start_copy,
    start_processes,
)
from popularity.encoders.sources import describe, find_weights
from popularity.encoders.text import (
    EmbedTextParams,
    TextBatch,
    TextEncoder,
    TextTokenizer,
    load_text_encoder,
    load_tokenizer,
)


def post_text() -> pl.Expr:
    """The text r of a post: its title; if that is empty its tags; if both are, the empty string.

    paper, Sec 3.2. White space alone counts as empty.
    """
    chosen = pl.lit("")
    for column in ("tags", "title"):
        chosen = pl.when(pl.col(column).str.strip_chars() != "").then(pl.col(column)).otherwise(chosen)
    return chosen


def embed_texts(
    posts: Path,
    out: Path,
    params: EmbedTextParams,
    state_root: Path = STATE_ROOT,
    loaded: tuple[TextEncoder, TextTokenizer] | None = None,
) -> None:
    """Writes the blocks `title`, `tags` and `post` (pooled vectors) and the tokens `tokens` into `out`.

    `post` and `tokens` belong to the text r (`post_text`); an empty text has the pooled vector of the empty
    string and no tokens. Each distinct string passes through the encoder once.

    Args:
        posts: table of contract POSTS.
        out: replaced as a whole when all is done.
        params: an entry of embed_text.
        state_root: folder below which finished shards are kept for a run that resumes.
        loaded: encoder and tokenizer of `params`, where they are loaded already.

    Raises:
        MissingWeightsError, ConfigError: see `load_text_encoder`.
        ContractError: the encoder gives values that float16 cannot hold.
    """
    table = read_table(posts, POSTS).select("pid", "title", "tags", post=post_text())
    state, location = start_processes(), find_weights(params)
    params = replace(params, precision=resolve_precision(params.precision, state.device))
    encoder, tokenize = loaded or (load_text_encoder(params), load_tokenizer(params))
    encoder = encoder.to(state.device)
    texts = distinct_texts(table)
    plan = ShardPlan(texts.height, params.shard_rows, params.batch_size)
    prepare = _TextBatches(texts["text"].to_list(), texts["is_post"].to_numpy(), tokenize)

    def encode(batch: TextBatch) -> Callable[[], Arrays]:
        ids, mask = (each.to(state.device, non_blocking=True) for each in (batch.input_ids, batch.attention_mask))
        wanted = batch.token_mask.flatten().nonzero()[:, 0].to(state.device, non_blocking=True)
        with torch.inference_mode(), autocast(state.device, params.precision):
            pooled, tokens = encoder(ids, mask)
            values = {"vectors": pooled, "tokens": tokens.flatten(0, 1)[wanted]}
            copies = {name: start_copy(value.to(torch.float16)) for name, value in values.items()}
        lengths = batch.token_mask.sum(dim=1).cpu().numpy()
        return lambda: {name: as_float16(copy(), params.model) for name, copy in copies.items()} | {"lengths": lengths}

    with resume_state("embed_text", fingerprint(asdict(params), location, posts), state_root) as directory:
        encode_shards(directory, plan, prepare, encode, state, "embed_text")
        if state.is_main_process:
            row_of = dict(zip(texts["text"], range(texts.height), strict=True))
            rows = {
                name: np.array([row_of[text] for text in table[name]], np.int64) for name in ("title", "tags", "post")
            }
            fields = {
                "preprocessing": {"max_tokens": params.max_tokens, "split_special_tokens": True},
                "pooling": encoder.pooling,
            }
            with atomic_directory(out) as partial:
                pids = table["pid"].to_list()
                for name, index in rows.items():
                    vectors = gather(
                        read_shards(directory, plan, "vectors"),
                        index,
                        directory / f"{name}.npy",
                        encoder.out_features,
                    )
                    metadata = describe(params, location, fields, name, encoder.out_features)
                    write_block(Block(vectors, pids, metadata), partial, name)
                metadata = describe(params, location, {**fields, "pooling": "none"}, "token", encoder.out_features)
                values, offsets = _gather_tokens(directory, plan, rows["post"], encoder.out_features)
                write_tokens(Tokens(values, offsets, pids, metadata), partial, "tokens")
        state.wait_for_everyone()


def distinct_texts(table: pl.DataFrame) -> pl.DataFrame:
    """Every string of `table` once: text, and is_post (it is the text r of a post, so its tokens are stored).

    Ordered by length, so that little of a batch is padding, and by text.
    """
    columns = [table.select(text=name, is_post=pl.lit(name == "post")) for name in ("title", "tags", "post")]
    distinct = pl.concat(columns).group_by("text").agg(pl.col("is_post").any())
    return distinct.sort(pl.col("text").str.len_chars(), "text")


class _TextBatches:
    """Rows of the distinct texts -> TextBatch, whose token mask is true only where tokens are wanted."""

    def __init__(self, texts: Sequence[str], wanted: BoolArray, tokenize: TextTokenizer) -> None:
        self.texts, self.wanted, self.tokenize = texts, wanted, tokenize

    def __call__(self, rows: range) -> TextBatch:
        batch = self.tokenize(self.texts[rows.start : rows.stop])
        wanted = torch.tensor(self.wanted[rows.start : rows.stop])
        return batch._replace(token_mask=batch.token_mask & wanted[:, None])


def _gather_tokens(
    directory: Path, plan: ShardPlan, index: Int64Array, columns: int
) -> tuple[Float16Array, Int64Array]:
    """Token vectors (total, columns) of the texts `index`, in that order, and their offsets (n + 1,)."""
    lengths = np.concatenate([np.zeros(0, np.int64), *read_shards(directory, plan, "lengths")])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[index])])
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])  # in the order of encoding
    # The row of every token among the encoded ones: a run of consecutive rows per text.
    runs = np.repeat(starts[index] - offsets[:-1], lengths[index]) + np.arange(offsets[-1])
    return gather(read_shards(directory, plan, "tokens"), runs, directory / "tokens.npy", columns), offsets
