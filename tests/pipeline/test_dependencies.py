"""The deps and outs of dvc.yaml against the code: a stage declares everything that it reads or imports."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.repository import REPOSITORY, STAGES, TEMPLATES, outs_of

SOURCES = REPOSITORY / "src"
ENCODERS = SOURCES / "popularity" / "encoders"
KINDS = ("image", "text")
LAUNCHED = "python -m popularity.launch "


def module_file(module: str) -> Path | None:
    """The file of a module of the package, None for other modules and names."""
    path = SOURCES / Path(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


@cache
def imported(file: Path) -> frozenset[Path]:
    """Files of the package that `file` imports, and the `__init__` of every package on the way."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = {".".join(name.split(".")[:length]) for name in names for length in range(1, name.count(".") + 2)}
    return frozenset(found for name in parts if name.startswith("popularity") and (found := module_file(name)))


@cache
def closure(file: Path) -> frozenset[Path]:
    """All files of the package that `file` needs, however indirectly."""
    seen: set[Path] = set()
    waiting = [file]
    while waiting:
        for found in imported(waiting.pop()) - seen:
            seen.add(found)
            waiting.append(found)
    return frozenset(seen)


def code_of(stage: str) -> set[Path]:
    """The files of the package that the command of `stage` runs, with every encoder that params.yaml may name."""
    launched = STAGES[stage]["cmd"].startswith(LAUNCHED)
    files = [REPOSITORY / "stages" / f"{stage}.py", *([SOURCES / "popularity" / "launch.py"] if launched else [])]
    files += encoders_of(stage)
    return {*files[1:], *(found for file in files for found in closure(file))}


def encoders_of(stage: str) -> list[Path]:
    """The files of the encoders that `stage` may load: those of its sections, if it reads the registry."""
    if ENCODERS / "registry.py" not in closure(REPOSITORY / "stages" / f"{stage}.py"):
        return []
    read = [entry for entry in STAGES[stage]["params"] if isinstance(entry, str)]
    kinds = [kind for kind in KINDS if any(entry.startswith(f"embed_{kind}.") for entry in read)]
    return [file for kind in kinds for file in sorted(ENCODERS.glob(f"*_{kind}.py"))]


def dependencies(stage: str) -> list[Path]:
    """The deps of `stage`, where the name of a loader in params.yaml stands for each encoder that it may name."""
    loaders = {"embed_image": {"${item.loader}": "image"}, "embed_text": {"${item.loader}": "text"}}.get(
        stage, {f"${{encoders.network.{kind}_loader}}": kind for kind in KINDS}
    )
    found: list[Path] = []
    for path in map(str, TEMPLATES[stage]["deps"]):
        kind = loaders.get(Path(path).stem)
        found += ENCODERS.glob(f"*_{kind}.py") if kind else [REPOSITORY / path]
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_deps_cover_the_imports(stage: str) -> None:
    deps = dependencies(stage)
    empty = SOURCES / "popularity" / "__init__.py"  # holds a docstring and nothing to depend on
    for file in code_of(stage) - {empty}:
        assert any(dep == file or dep in file.parents for dep in deps), f"{stage} imports {file}, which no dep covers"


@pytest.mark.parametrize("stage", STAGES)
def test_no_dep_on_code_that_is_not_imported(stage: str) -> None:
    needed = code_of(stage)
    for dep in dependencies(stage):
        if SOURCES in dep.parents:
            assert any(dep == file or dep in file.parents for file in needed), f"{stage} never imports {dep}"


@pytest.mark.parametrize("name", ["new_image.py", "new_text.py", "helper.py"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_new_encoder_leaves_every_stage_up_to_date(stage: str, name: str) -> None:
    """No dep is a folder that would hold the new file; a stage depends on the loader that it uses alone."""
    for path in map(str, STAGES[stage]["deps"]):
        dep = REPOSITORY / path
        assert dep not in (ENCODERS / name).parents, f"{stage} depends on the folder {dep}"
        assert "${" in path or dep.is_file() or ENCODERS not in dep.parents, f"{stage}: there is no {dep}"


@pytest.mark.parametrize("stage", STAGES)
def test_stage_shape(stage: str) -> None:
    """The stage file is thin, imports no other stage, and its command is the module of its name."""
    file = REPOSITORY / "stages" / f"{stage}.py"
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    assert "import stages" not in text
    assert "from stages" not in text
    assert STAGES[stage]["cmd"].startswith((f"python -m stages.{stage} ", f"{LAUNCHED}stages.{stage} "))


@pytest.mark.parametrize("stage", STAGES)
def test_every_path_on_the_command_line_is_a_dep_or_an_out(stage: str) -> None:
    """A path is a dep, an out, or a file in one of them; of a folder with a manifest the deps are its other files."""
    words = STAGES[stage]["cmd"].split()
    paths = [word for word in words if "/" in word or word == "submissions" or word.startswith("${")]
    outs = outs_of(stage)
    live = {str(Path(path).parent) for path in outs if Path(path).name == "plots"}  # DVCLive's folder, as a whole
    for path in paths:
        tuned = [file for entry in STAGES[stage].get("params", []) if isinstance(entry, dict) for file in entry]
        # The root of a data set without a table is a dep as "<root>/".
        declared = [*(str(dep).rstrip("/") for dep in STAGES[stage]["deps"]), *tuned, *outs, *live]
        files = {str(Path(entry).parent) for entry in declared if entry.startswith("models/")}
        assert path in files or any(path == entry or path.startswith(f"{entry}/") for entry in declared), (
            f"{stage}: {path}"
        )


def test_a_stray_file_beside_the_data_runs_no_embedding_again() -> None:
    """Stages that read pictures depend on images.parquet, which has the checksum of each, not on the folder."""
    on_the_folder = {
        stage for stage, entry in STAGES.items() if any(dep.startswith("${dataset.root}") for dep in entry["deps"])
    }
    assert on_the_folder == {"ingest", "index_images"}
    readers = {stage for stage, entry in STAGES.items() if "--root " in entry["cmd"]} - on_the_folder
    assert {"embed_image", "train", "embed_posts"} <= readers
    for stage in readers - {"demo_data"}:
        assert "data/interim/images.parquet" in STAGES[stage]["deps"], stage


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_leaves_the_last_output_until_a_stage_replaces_it(stage: str) -> None:
    for entry in (*STAGES[stage]["outs"], *STAGES[stage].get("metrics", [])):
        ((path, options),) = entry.items()
        assert options["persist"], path


@pytest.mark.parametrize("stage", sorted({*STAGES} - {"report"}))
def test_no_stage_depends_on_a_manifest(stage: str) -> None:
    """A manifest changes with the revision, and later stages would run again for nothing; the report shows it."""
    outs = {out for other in STAGES for out in outs_of(other, "outs")}
    with_manifest = {out for out in outs if out.startswith("models/") or out == "submissions"}
    assert len(with_manifest) >= 4
    for dep in map(str, STAGES[stage]["deps"]):
        assert Path(dep).name != "manifest.json"
        assert dep not in with_manifest, f"{stage} depends on {dep}: name the files that it reads there"
