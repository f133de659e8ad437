"""Loads towers from folders that transformers wrote: from safetensors, in float32, and with no tensor missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.utils import logging as transformers_logging

from popularity.core.atomic import read_json
from popularity.core.errors import ConfigError, MissingWeightsError


def require_model_type(folder: Path, model_types: Sequence[str]) -> None:
    """Refuses a folder whose config.json names another type of model.

    Args:
        folder: as save_pretrained wrote it.
        model_types: of transformers, that the encoder reads.

    Raises:
        ConfigError: `model_type` is none of `model_types`.
        MissingWeightsError: `folder` is a file of weights alone.
    """
    if not folder.is_dir():
        raise MissingWeightsError(f"{folder}: transformers loads a folder with config.json and safetensors")
    path = folder / "config.json"
    found = read_json(path).get("model_type")
    if found not in model_types:
        raise ConfigError(
            f"{path}: model_type {found!r}, but the loader named in params.yaml reads {', '.join(model_types)}"
        )


def load_tower(class_name: str, folder: Path, without: str = "", optional: tuple[str, ...] = ()) -> nn.Module:
    """A model of transformers' class `class_name`, float32, on the CPU.

    Args:
        class_name: the class that the folder holds. A dual encoder is loaded whole: its towers' own classes
            take the width of the projection from another key of the configuration, which can be wrong.
        folder: as save_pretrained wrote it.
        without: submodule that is not needed and is deleted.
        optional: prefixes of tensors that may be missing because nothing uses them.

    Raises:
        MissingWeightsError: the folder lacks tensors of the model, which would then be random.
    """
    arguments: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
    with _without_bars():
        model, report = getattr(transformers, class_name).from_pretrained(folder, output_loading_info=True, **arguments)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(optional))
    if missing:
        raise MissingWeightsError(f"{folder}: {class_name} misses {len(missing)} tensors there: {missing[:3]} ...")
    if without:
        delattr(model, without)
    loaded: nn.Module = model
    return loaded


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hides the library's own progress bars: loading is quick, and they would interrupt ours."""
    shown = transformers_logging.is_progress_bar_enabled()
    if shown:
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
