"""Tensors and the facts about them in one safetensors file: the same content gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from popularity.core.atomic import atomic_path


def write_tensors(tensors: Mapping[str, Tensor], about: Mapping[str, Any], path: Path) -> None:
    """Writes tensors by name and `about`, which must be JSON, into the file `path`."""
    own = {name: values.detach().cpu().contiguous() for name, values in tensors.items()}
    with atomic_path(path) as partial:
        # One entry of metadata: several have no order.
        save_file(own, partial, metadata={"about": json.dumps(about, sort_keys=True)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, and `about`, that `write_tensors` wrote."""
    with safe_open(path, "pt") as stored:
        names = list(stored.keys())
        # Copies, which lie where torch puts tensors: the last bits of a product depend on that.
        return {name: stored.get_tensor(name).clone() for name in names}, json.loads(stored.metadata()["about"])
