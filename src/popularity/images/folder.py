"""Images as files in a folder, or in tar shards, of a data set: where they start, and which file is which image."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from popularity.images.names import SUFFIXES, left_by_a_system


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images.

    Args:
        root: of the data set.
        start: folder that the paths of images start from.
        real: the root with every link followed; a file elsewhere is reached by a link that leads out.
        follow_links: True to use such files.
    """

    root: Path
    start: Path
    real: str
    follow_links: bool

    @classmethod
    def of(cls, root: Path, split: str, *, follow_links: bool) -> ImageFolder:
        """The images of a split: `<root>/{split}/`, or a folder of that name one folder deeper."""
        start = root
        if not (root / split).is_dir():
            start = next(iter(sorted(path.parent for path in root.glob(f"*/{split}") if path.is_dir())), root)
        return cls(root, start, os.path.realpath(root), follow_links)

    @classmethod
    def own(cls, root: Path, *, follow_links: bool) -> ImageFolder:
        """The images of a user's own table, whose paths start from the root."""
        return cls(root, root, os.path.realpath(root), follow_links)

    def find(self, path: str) -> Path | None:
        """The file of an image path: of that name, or with another of SUFFIXES; None if there is none."""
        file = self.start / path
        if not path or file.is_file():
            return file if path else None
        suffixes = [spelled for suffix in SUFFIXES for spelled in (suffix, suffix.upper())]
        return next((other for suffix in suffixes if (other := file.with_suffix(suffix)).is_file()), None)

    def leads_out(self, file: Path) -> bool:
        """True if a link leads to the file and the file does not lie in the data set."""
        return not os.path.realpath(file).startswith(self.real.rstrip("/") + "/")

    def usable(self, path: str) -> Path | None:
        """As `find`, without files that may not be used."""
        file = self.find(path)
        return file if file is not None and (self.follow_links or not self.leads_out(file)) else None


def of_table(paths: Iterable[str], split: str) -> bool:
    """True if image paths are those of a user's own table: none begins with the name of the split."""
    return not any(path.startswith(f"{split}/") for path in paths)


def find_shards(root: Path, split: str) -> list[Path]:
    """The tar shards of a split, in the root or one folder deeper."""
    pattern = f"{split}_images*.tar"
    deeper = (path for path in root.glob(f"*/{pattern}") if not left_by_a_system(str(path.relative_to(root))))
    return sorted(root.glob(pattern)) or sorted(deeper)
