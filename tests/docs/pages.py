"""Reads the pages of the documentation: their tables, links and references to code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from popularity.core.config import read_yaml
from tests.repository import REPOSITORY

PACKAGE = REPOSITORY / "src" / "popularity"
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]

Row = Mapping[str, str]


@dataclass(frozen=True)
class Reference:
    """A name in a file, as the tables of the pages write it: `file: name, name`."""

    file: Path
    names: tuple[str, ...]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def section_of(text: str, heading: str) -> str:
    """What stands below the heading, up to the next one of the same or a higher rank."""
    found = re.search(rf"^(#+) {re.escape(heading)}\n", text, flags=re.MULTILINE)
    assert found, heading
    rest = text[found.end() :]
    following = re.search(rf"^#{{1,{len(found[1])}}} ", rest, flags=re.MULTILINE)
    return rest[: following.start()] if following else rest


def without_generated(text: str) -> str:
    return re.sub(r"<!-- generated: .*?<!-- end -->", "", text, flags=re.DOTALL)


def without_code_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def tables(text: str) -> Iterator[list[Row]]:
    """Every table of Markdown in `text`: its rows, each a mapping from the header."""
    for block in re.findall(r"(?:^\|.*\|\n)+", text + "\n", flags=re.MULTILINE):
        head, _, *rows = [cells_of(line) for line in block.splitlines()]
        yield [dict(zip(head, row, strict=True)) for row in rows]


def cells_of(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]


def references(cell: str, root: Path) -> list[Reference]:
    """The references in a cell, their files below `root`."""
    found = []
    for code in re.findall(r"`([^`]+)`", cell):
        file, _, names = code.partition(": ")
        found.append(Reference(root / file, tuple(filter(None, names.split(", ")))))
    return found


@cache
def definitions(file: Path) -> dict[str, str]:
    """Name of every function, class and method (Class.method) of a file -> the first line of its docstring."""
    found: dict[str, str] = {}

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found[prefix + node.name] = (ast.get_docstring(node) or "").partition("\n")[0]
                if isinstance(node, ast.ClassDef):
                    add(node.body, f"{prefix}{node.name}.")

    add(ast.parse(text_of(file)).body, "")
    return found


def missing(reference: Reference) -> str:
    """What a reference names and is not there; "" if all is."""
    file = reference.file.relative_to(REPOSITORY)
    if not reference.file.exists():
        return f"no file {file}"
    absent = [name for name in reference.names if name not in definitions(reference.file)]
    return f"{file} defines no {', '.join(absent)}" if absent else ""


@cache
def parameter_paths() -> frozenset[str]:
    """Every key of params.yaml as a whole path, sections and inner mappings included."""

    def paths(content: Mapping[str, Any], prefix: str) -> Iterator[str]:
        for key, value in content.items():
            yield f"{prefix}{key}"
            if isinstance(value, Mapping):
                yield from paths(value, f"{prefix}{key}.")

    return frozenset(paths(read_yaml(REPOSITORY / "params.yaml"), ""))
