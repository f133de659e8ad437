"""The vectors that the stack reads: those of the encoders that encoders.stack names, in one folder.

DVC cannot list a variable number of inputs, so the stages that read vectors depend on this folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from popularity.core.atomic import read_json, write_json
from popularity.core.errors import ConfigError
from popularity.encoders.names import StackEncoders, as_names

BLOCKS = {"image": ("pooled",), "text": ("title", "tags", "post")}  # of the folder of an encoder
STATISTICS = "statistics.parquet"  # of the images; folders of older versions have none
MODELS = "models.json"


def gather_vectors(folders: Mapping[str, Path], used: StackEncoders, out: Path) -> None:
    """Writes <kind>/<encoder>/ with the blocks of each encoder, as links where the disk can, and models.json.

    models.json holds the model of each encoder, by kind and name.

    Args:
        folders: by kind, image and text, the folder that holds a folder of each encoder.
        used: the encoders of the stack.
        out: an empty folder.

    Raises:
        ConfigError: an encoder has no vectors.
    """
    models: dict[str, dict[str, str]] = {}
    for kind, names in (("image", as_names(used.image)), ("text", as_names(used.text))):
        models[kind] = {}
        for name in names:
            source = folders[kind] / name
            if not (source / f"{BLOCKS[kind][0]}.json").is_file():
                raise ConfigError(
                    f"encoders.stack.{kind} names {name}, but {source} holds no vectors\n"
                    f"  next: add {name} to section embed_{kind}, or run `dvc repro embed_{kind}@{name}`"
                )
            models[kind][name] = read_json(source / f"{BLOCKS[kind][0]}.json")["encoder"]
            (out / kind / name).mkdir(parents=True)
            for file in _files(kind):
                if (source / file).is_file():
                    _link(source / file, out / kind / name / file)
    write_json(out / MODELS, models)


def _files(kind: str) -> Iterable[str]:
    for block in BLOCKS[kind]:
        yield from (f"{block}.npy", f"{block}.pids.parquet", f"{block}.json")
    if kind == "image":
        yield STATISTICS


def _link(source: Path, target: Path) -> None:
    """A hard link; a copy on a disk, or across disks, that has none."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
