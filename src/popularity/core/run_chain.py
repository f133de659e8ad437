"""Whether the outputs of the graph are of one run: what every command asks that reads models or predictions.

A run that ended early, or that was told to run one stage alone, leaves outputs of several runs side by side. dvc.lock
tells: it has, for each stage, the checksums of what the stage read and of what it wrote.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from popularity.core.config import read_yaml
from popularity.core.errors import ContractError

LOCK = "dvc.lock"
RECORDS = "reports/resources/"  # time and memory: a stage that is run by hand writes them anew


def refuse_mixed_run(root: Path, outputs: Sequence[str]) -> None:
    """Raises ContractError if `outputs` were not made by one run of the stages above them, or have changed since.

    Nothing is refused where no graph of DVC ran.

    Args:
        root: folder of the repository.
        outputs: paths of dvc.yaml's outs, relative to `root`.

    Raises:
        ContractError: names the first stage that has to run, in the order of the graph.
    """
    if not (root / LOCK).is_file():
        return
    lock = _Lock(root, read_yaml(root / LOCK).get("stages") or {})
    for stage in lock.above(outputs):
        if reason := lock.why_stale(stage):
            raise ContractError(
                f"{root.absolute()}: outputs of different runs: {reason}\n"
                f"  expected: outputs of one run, as dvc.lock lists them\n"
                f"  next: dvc repro (the first stage to run is {stage})"
            )


@dataclass(frozen=True)
class _Lock:
    """The content of dvc.lock.

    Args:
        root: that its paths start from.
        stages: name -> entry.
    """

    root: Path
    stages: Mapping[str, Mapping[str, Any]]

    @cached_property
    def makers(self) -> dict[str, tuple[str, Mapping[str, Any]]]:
        """Path of an out -> its stage and its entry."""
        return {out["path"]: (name, out) for name, stage in self.stages.items() for out in stage.get("outs") or ()}

    @cached_property
    def locked_at(self) -> float:
        return (self.root / LOCK).stat().st_mtime

    def maker_of(self, path: str) -> tuple[str, Mapping[str, Any]] | None:
        """The stage that makes `path`, or a folder above it, with the entry of that out."""
        return next((self.makers[above] for above in _upwards(path) if above in self.makers), None)

    def above(self, outputs: Sequence[str]) -> list[str]:
        """The stages that make `outputs` and all that these stages read; a stage comes after those that it reads."""
        found: dict[str, None] = {}

        def visit(path: str) -> None:
            maker = self.maker_of(path)
            if maker is None or maker[0] in found or maker[0] in open_stages:
                return
            open_stages.add(maker[0])
            for read in self._read_by(maker[0]):
                visit(read)
            found[maker[0]] = None

        open_stages: set[str] = set()
        for path in outputs:
            visit(path)
        return list(found)

    def _read_by(self, stage: str) -> Iterator[str]:
        yield from (dep["path"] for dep in self.stages[stage].get("deps") or ())
        yield from self.stages[stage].get("params") or ()

    def why_stale(self, stage: str) -> str:
        """Why a stage has to run again; "" if it has not."""
        for dep in self.stages[stage].get("deps") or ():
            maker = self.maker_of(dep["path"])
            if maker is not None and self._differs(dep, maker[1]):
                return f"stage {stage} read another {dep['path']} than stage {maker[0]} has written since"
        for path, values in (self.stages[stage].get("params") or {}).items():
            if self.maker_of(path) and (self.root / path).is_file() and read_yaml(self.root / path) != values:
                return f"stage {stage} read other values in {path}"
        for out in self.stages[stage].get("outs") or ():
            if out["path"].startswith(RECORDS) or not (self.root / out["path"]).exists():
                continue
            if not self._is_as_locked(out):
                return f"{out['path']} is not what stage {stage} wrote when it finished"
        return ""

    def _differs(self, dep: Mapping[str, Any], out: Mapping[str, Any]) -> bool:
        """True if a stage read something else than another stage wrote as `out`, or as a file in it."""
        if dep["path"] == out["path"]:
            return bool(dep.get("md5") != out.get("md5"))
        inside = Path(dep["path"]).relative_to(out["path"]).as_posix()
        written = _listing(self.root, str(out.get("md5"))).get(inside)
        if written is None and (self.root / dep["path"]).exists():
            written = checksum(self.root / dep["path"])
        return written is not None and written != dep.get("md5")

    def _is_as_locked(self, entry: Mapping[str, Any]) -> bool:
        """True if a file or folder has the size of its entry and, if it is younger than dvc.lock, the checksum."""
        path = self.root / entry["path"]
        files = _files(path)
        if sum(file.stat().st_size for file in files) != entry.get("size"):
            return False
        if len(files) != entry.get("nfiles", 1):
            return False
        if max((file.stat().st_mtime for file in files), default=0.0) <= self.locked_at:
            return True
        return checksum(path) == entry.get("md5")


def _listing(root: Path, md5: str) -> dict[str, str]:
    """The files of a folder with their checksums, from DVC's cache; empty where the cache has no such folder."""
    file = root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    if not md5.endswith(".dir") or not file.is_file():
        return {}
    return {entry["relpath"]: entry["md5"] for entry in json.loads(file.read_text(encoding="utf-8"))}


def checksum(path: Path) -> str:
    """The checksum of a file or folder, as DVC writes it."""
    if path.is_file():
        return _md5(path)
    listed = [{"md5": _md5(file), "relpath": file.relative_to(path).as_posix()} for file in _files(path)]
    listed.sort(key=lambda entry: entry["relpath"])
    return f"{hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest()}.dir"


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def _files(path: Path) -> list[Path]:
    """The file itself, or those below the folder that DVC counts: .dvcignore leaves out what systems write."""
    if path.is_file():
        return [path]
    left_out = (".DS_Store", "Thumbs.db", "desktop.ini")
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and file.name not in left_out and not file.name.endswith((".swp", "~", ".pyc"))
    )


def _upwards(path: str) -> list[str]:
    return [path, *(parent.as_posix() for parent in Path(path).parents)]
