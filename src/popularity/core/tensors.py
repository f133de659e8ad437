"""Tensors and their metadata in one safetensors file, with the same bytes for the same content; threads of torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from popularity.core.atomic import atomic_path


def write_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None, path: Path) -> None:
    """Writes tensors by name, and `metadata` (values for JSON; None for no entry), into the file `path`."""
    own = {name: values.detach().cpu().contiguous() for name, values in tensors.items()}
    with atomic_path(path) as partial:
        # One entry alone: safetensors writes several in no fixed order.
        save_file(own, partial, None if metadata is None else {"about": json.dumps(metadata, sort_keys=True)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, and the metadata, that `write_tensors` wrote."""
    with safe_open(path, "pt") as stored:
        names = list(stored.keys())
        # Copies, aligned as torch aligns tensors: the last bits of a product depend on it.
        return {name: stored.get_tensor(name).clone() for name in names}, json.loads(stored.metadata()["about"])


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Limits torch to `threads` threads in the block: more would sum in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
