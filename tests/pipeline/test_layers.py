"""The layers of src/popularity: a package imports packages of lower layers alone, and no imports form a cycle.

The layers are defined here alone. A new package needs an entry in `LAYERS`; for an import of a higher layer, or of
another package in the same layer, move the imported code instead.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.repository import REPOSITORY

# The lowest first. Packages of one layer do not import one another.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("core",),  # every package may use it
    ("demo", "evaluation", "features", "images", "prototypes"),
    ("dataset", "encoders", "validation"),
    ("network", "submission", "target"),
    ("ensemble", "inference", "text_model", "training"),
    ("stack",),
    ("tuning",),
    ("report", "predict"),
    ("app",),
    ("commands",),  # the files that lie in src/popularity itself
)

SOURCES = REPOSITORY / "src" / "popularity"
HEIGHT = {package: height for height, layer in enumerate(LAYERS) for package in layer}


def package_of(file: str) -> str:
    """The package of a file below src/popularity; `commands` for a file that lies in no folder."""
    if file == "__init__.py":
        return "core"
    folder, slash, _ = file.partition("/")
    return folder if slash else "commands"


def imports(sources: Path) -> dict[str, set[str]]:
    """File to the files of the package that it imports, both below `sources`."""
    found: dict[str, set[str]] = {}
    for file in sorted(sources.rglob("*.py")):
        names: list[str] = []
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                # A name may be a module of the package or something that its __init__ holds.
                each = [f"{node.module}.{alias.name}" for alias in node.names]
                names += [name if _file_of(name, sources) else node.module for name in each]
        own = file.relative_to(sources).as_posix()
        found[own] = {path for name in names if (path := _file_of(name, sources))} - {own}
    return found


def _file_of(module: str, sources: Path) -> str | None:
    top, *parts = module.split(".")
    if top != sources.name:
        return None
    path = sources.joinpath(*parts)
    files = (path.with_suffix(".py"), path / "__init__.py") if parts else (path / "__init__.py",)
    return next((file.relative_to(sources).as_posix() for file in files if file.is_file()), None)


def against_the_layers(graph: Mapping[str, set[str]]) -> list[str]:
    """The imports of another package in the same layer or in a higher one."""
    wrong = []
    for file, imported in graph.items():
        for other in sorted(imported):
            one, two = package_of(file), package_of(other)
            if one != two and HEIGHT[one] <= HEIGHT[two]:
                wrong.append(f"{file} ({one}) imports {other} ({two})")
    return wrong


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Cycles of files that import one another, each cycle once."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(file: str, path: list[str]) -> None:
        if file in path:
            found.append([*path[path.index(file) :], file])
        elif file not in done:
            for other in sorted(graph.get(file, ())):
                visit(other, [*path, file])
            done.add(file)

    for file in graph:
        visit(file, [])
    return found


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return imports(SOURCES)


def test_every_package_has_a_layer(graph: dict[str, set[str]]) -> None:
    assert {package_of(file) for file in graph} <= HEIGHT.keys()


def test_no_import_of_a_higher_layer(graph: dict[str, set[str]]) -> None:
    assert against_the_layers(graph) == []


def test_no_cycle_of_imports(graph: dict[str, set[str]]) -> None:
    assert cycles(graph) == []


@pytest.mark.parametrize(
    ("files", "wrong", "n_cycles"),
    [
        ({"stack/a.py": "from popularity.network import b", "network/b.py": "import popularity.core.c"}, 0, 0),
        ({"network/a.py": "from popularity.stack.b import c", "stack/b.py": ""}, 1, 0),
        ({"training/a.py": "import popularity.inference.b", "inference/b.py": ""}, 1, 0),
        ({"demo/a.py": "from popularity import launch", "launch.py": ""}, 1, 0),
        (
            {"stack/a.py": "from popularity.stack.b import c", "stack/b.py": "def c():\n import popularity.stack.a"},
            0,
            1,
        ),
    ],
)
def test_it_can_fail(tmp_path: Path, files: dict[str, str], wrong: int, n_cycles: int) -> None:
    sources = tmp_path / "popularity"
    for name, text in {"__init__.py": "", "core/c.py": "", **files}.items():
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_text(text, encoding="utf-8")
    graph = imports(sources)
    assert len(against_the_layers(graph)) == wrong
    assert len(cycles(graph)) == n_cycles
