"""Dense vectors on disk: one a post (Block), or one a token (Tokens)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from popularity.core.arrays import Float16Array, Int64Array
from popularity.core.atomic import atomic_path, read_json, reading, write_json
from popularity.core.errors import ContractError


@dataclass(frozen=True)
class Block:
    """Dense vectors of posts: row i of `values` belongs to `pids[i]`; posts without one are absent.

    Args:
        values: (n, d) float16, possibly a memory map.
        pids: n pids in canonical order.
        metadata: encoder, sha256 or revision, preprocessing, pooling, columns (d names).
    """

    values: Float16Array
    pids: Sequence[str]
    metadata: Mapping[str, Any]

    def rows(self, pids: Sequence[str]) -> Int64Array:
        """For each pid its row in `values`, or -1."""
        order = {pid: row for row, pid in enumerate(self.pids)}
        return np.fromiter((order.get(pid, -1) for pid in pids), dtype=np.int64, count=len(pids))


BLOCK_FIELDS = ("encoder", "weights", "preprocessing", "pooling", "columns")


ADAPTED_FROM = "adapted_from"  # in the preprocessing of vectors: weights of the encoder that they were adapted from


def check_block(block: Block) -> None:
    """Checks shape, type, order, finiteness and metadata.

    Raises:
        ContractError: one of them is wrong.
    """
    values, name = block.values, block.metadata.get("encoder", "block")
    missing = [field for field in BLOCK_FIELDS if field not in block.metadata]
    if missing:
        raise ContractError(f"{name}: the metadata lacks {missing}")
    if values.ndim != 2 or values.dtype != np.float16:
        raise ContractError(f"{name}: expected (n, d) float16, found {values.shape} {values.dtype}")
    if values.shape != (len(block.pids), len(block.metadata["columns"])):
        raise ContractError(
            f"{name}: {len(block.pids)} pids and {len(block.metadata['columns'])} column names for {values.shape}"
        )
    if any(left >= right for left, right in zip(block.pids, block.pids[1:], strict=False)):
        raise ContractError(f"{name}: pids must be unique and in canonical order")
    step = 65_536
    if not all(np.isfinite(values[start : start + step]).all() for start in range(0, len(values), step)):
        raise ContractError(f"{name}: NaN or infinity in the vectors (float16 ends at 65,504)")


def write_block(block: Block, directory: Path, name: str) -> None:
    """Writes `<name>.npy`, `<name>.pids.parquet` (pid, row) and `<name>.json` into `directory`."""
    check_block(block)
    with atomic_path(directory / f"{name}.npy") as partial, partial.open("wb") as stream:
        np.save(stream, block.values)
    pids = pl.DataFrame({"pid": list(block.pids)}, schema={"pid": pl.String})
    with atomic_path(directory / f"{name}.pids.parquet") as partial:
        pids.with_row_index("row").select("pid", pl.col("row").cast(pl.Int64)).write_parquet(
            partial, compression="zstd", statistics=False
        )
    write_json(directory / f"{name}.json", dict(block.metadata))


def _read_array(path: Path, mmap_mode: Literal["r"] | None = None) -> npt.NDArray[Any]:
    with reading(path):
        values = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
        if not isinstance(values, np.ndarray):
            raise ValueError("several arrays where one was written")
    return values


def read_block(directory: Path, name: str) -> Block:
    """A block that `write_block` wrote; the values stay on disk (memory map)."""
    pids = pl.read_parquet(directory / f"{name}.pids.parquet").sort("row")["pid"].to_list()
    metadata = read_json(directory / f"{name}.json")
    block = Block(_read_array(directory / f"{name}.npy", mmap_mode="r"), pids, metadata)
    check_block(block)
    return block


@dataclass(frozen=True)
class Tokens:
    """Ragged token vectors: those of `pids[i]` are `values[offsets[i]:offsets[i + 1]]`.

    Args:
        values: (total, d) float16, possibly a memory map.
        offsets: (n + 1,) int64, ascending from 0 to total; two equal offsets mean no token.
        pids: n pids in canonical order.
        metadata: as of Block.
    """

    values: Float16Array
    offsets: Int64Array
    pids: Sequence[str]
    metadata: Mapping[str, Any]


def check_tokens(tokens: Tokens) -> None:
    """Checks shapes, types and offsets.

    Raises:
        ContractError: one of them is wrong.
    """
    offsets = tokens.offsets
    if offsets.dtype != np.int64 or offsets.shape != (len(tokens.pids) + 1,):
        raise ContractError(f"tokens: expected {len(tokens.pids) + 1} int64 offsets, found {offsets.shape}")
    if offsets[0] != 0 or offsets[-1] != len(tokens.values) or (np.diff(offsets) < 0).any():
        raise ContractError(f"tokens: offsets must ascend from 0 to {len(tokens.values)}")
    if tokens.values.ndim != 2 or tokens.values.dtype != np.float16:
        raise ContractError(f"tokens: expected (total, d) float16, found {tokens.values.shape} {tokens.values.dtype}")


def write_tokens(tokens: Tokens, directory: Path, name: str) -> None:
    """Writes `<name>.npy`, `<name>.offsets.npy`, `<name>.pids.parquet` and `<name>.json`."""
    check_tokens(tokens)
    for suffix, array in (("npy", tokens.values), ("offsets.npy", tokens.offsets)):
        with atomic_path(directory / f"{name}.{suffix}") as partial, partial.open("wb") as stream:
            np.save(stream, array)
    with atomic_path(directory / f"{name}.pids.parquet") as partial:
        pl.DataFrame({"pid": list(tokens.pids), "row": range(len(tokens.pids))}).write_parquet(
            partial, compression="zstd", statistics=False
        )
    write_json(directory / f"{name}.json", dict(tokens.metadata))


def read_tokens(directory: Path, name: str) -> Tokens:
    """Tokens that `write_tokens` wrote; the vectors stay on disk (memory map)."""
    pids = pl.read_parquet(directory / f"{name}.pids.parquet").sort("row")["pid"].to_list()
    metadata = read_json(directory / f"{name}.json")
    values = _read_array(directory / f"{name}.npy", mmap_mode="r")
    tokens = Tokens(values, _read_array(directory / f"{name}.offsets.npy"), pids, metadata)
    check_tokens(tokens)
    return tokens
