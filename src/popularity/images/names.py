"""Which member of a shard, or which file of a folder, is the picture that a post names."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # in small or capital letters; a file with one may stand for another


@dataclass(frozen=True)
class Match:
    """A picture that was found.

    Args:
        path: image_path of the post.
        exact: it has the suffix that the post names.
        prefix: folder before the name in a shard; "" if there is none.
    """

    path: str
    exact: bool
    prefix: str

    @property
    def rank(self) -> tuple[bool, bool]:
        """The match of higher rank is the picture: one without a prefix, then one with the suffix that is named."""
        return not self.prefix, self.exact


class Wanted:
    """The image paths of posts, found under the names that they may have: Unicode forms, suffixes, a folder deeper."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths: Mapping[str, str] = {_stem(path): path for path in paths if path}

    def match(self, name: str) -> Match | None:
        """The post's path that a normalised name stands for; None if it stands for none."""
        if (path := self._paths.get(_stem(name))) is not None:
            return Match(path, _form(name) == _form(path), "")
        prefix, _, rest = name.partition("/")
        if rest and (path := self._paths.get(_stem(rest))) is not None:
            return Match(path, _form(rest) == _form(path), f"{prefix}/")
        return None


def normalised(name: str) -> str | None:
    """A name without './' and double '/'; None when it is absolute or climbs with '..'."""
    names = name.split("/")
    return None if name.startswith("/") or ".." in names else "/".join(each for each in names if each not in ("", "."))


def left_by_a_system(name: str) -> bool:
    """True of what macOS and file managers write into archives and folders."""
    path = PurePosixPath(name)
    return (
        "__MACOSX" in path.parts or path.name.startswith("._") or path.name in (".DS_Store", "Thumbs.db", "desktop.ini")
    )


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _stem(name: str) -> str:
    """The name in one Unicode form, without the suffix of a picture."""
    form = _form(name)
    suffix = form[form.rfind(".") :].lower() if "." in form else ""
    return form[: -len(suffix)] if suffix in SUFFIXES else form
