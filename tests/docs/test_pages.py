"""README.md and docs/: sizes, links, and every file, command and parameter that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from popularity.config import read_yaml
from tests.docs.pages import (
    PACKAGE,
    PAGES,
    REPOSITORY,
    cells_of,
    parameter_paths,
    section_of,
    tables,
    text_of,
    without_code_blocks,
    without_generated,
)

README_BYTES = 12_000
FOLDER_PAGES = [REPOSITORY / folder / "README.md" for folder in ("data", "models", "reports")]
CHANGELOG = REPOSITORY / "CHANGELOG.md"
ALL_PAGES = [*PAGES, *FOLDER_PAGES, CHANGELOG]
HISTORY = ("Renamed keys", "Tried and dropped")  # sections that name what is no longer there
DIALECT = ("of which", "beside", "what it says of")


def by_name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def current(page: Path) -> str:
    """The page without its history: lines that name the commit that printed them, and the sections of HISTORY."""
    text = text_of(page)
    for heading in HISTORY:
        if f"# {heading}\n" in text:
            text = text.replace(section_of(text, heading), "")
    return re.sub(r"^.*commit [0-9a-f]{7}.*$", "", text, flags=re.MULTILINE)


def test_readme_is_a_front_door() -> None:
    assert (REPOSITORY / "README.md").stat().st_size <= README_BYTES


@pytest.mark.parametrize("page", ALL_PAGES, ids=by_name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = without_code_blocks(text_of(page))
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code_blocks(text_of(page)), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_file_of_the_repository_is_there(page: Path) -> None:
    text = current(page)
    named = re.findall(r"`((?:src|stages|tests|configs|benchmarks|docs)/[\w./-]*)[`:]", text)
    named += re.findall(r"`(\w+(?:/\w+)*\.py)[`:]", text)
    assert [name for name in named if not (REPOSITORY / name).exists() and not (PACKAGE / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_command_is_there(page: Path) -> None:
    text = current(page)
    modules = set(re.findall(r"python -m ((?:popularity|benchmarks|stages)[\w.]*)", text))
    files = {
        module: (REPOSITORY if module[0] != "p" else REPOSITORY / "src") / module.replace(".", "/")
        for module in modules
    }
    assert [
        module
        for module, file in files.items()
        if not file.with_suffix(".py").exists() and not (file / "__main__.py").exists()
    ] == []
    targets = set(re.findall(r"^([a-z-]+):", text_of(REPOSITORY / "Makefile"), flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", text, flags=re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_parameter_is_a_key_of_params_yaml(page: Path) -> None:
    """`section.key` and `-S section.key=value`, as whole paths."""
    sections = "|".join(read_yaml(REPOSITORY / "params.yaml"))
    named = re.findall(
        rf"(?:`|-S '?)((?:{sections})\.[a-z_0-9.]*[a-z_0-9])(?!\.\w|/)", without_generated(current(page))
    )
    assert [name for name in named if name not in parameter_paths()] == []


def test_renamed_keys_are_the_same_in_both_places() -> None:
    moved, changes = (
        next(rows for rows in tables(text_of(page)) if "old key" in rows[0])
        for page in (REPOSITORY / "docs" / "experiments.md", CHANGELOG)
    )
    assert moved == changes


def test_renamed_keys_lead_to_keys_that_are_there() -> None:
    rows = next(rows for rows in tables(text_of(CHANGELOG)) if "old key" in rows[0])
    old = [row["old key"].strip("`") for row in rows]
    new = [row["new key"].strip("`").partition(":")[0] for row in rows if not row["new key"].startswith("gone")]
    assert [name for name in new if name not in parameter_paths()] == []
    assert [name for name in old if name in parameter_paths()] == []


def test_every_output_is_among_the_artifacts() -> None:
    """Of each output of dvc.yaml the file, or some file in the folder, has a row in docs/data.md."""
    text = section_of(text_of(REPOSITORY / "docs" / "data.md"), "Artifacts")
    listed = [name for rows in tables(text) for row in rows for name in re.findall(r"`([^`]+)`", row["file"])]
    outputs = []
    for stage in read_yaml(REPOSITORY / "dvc.yaml")["stages"].values():
        for out in (*stage.get("outs", []), *stage.get("metrics", [])):
            outputs.append(out if isinstance(out, str) else next(iter(out)))
    kept = [out for out in outputs if not out.startswith("reports/resources/")]
    assert [out for out in kept if not any(name.startswith(out.rstrip("/")) for name in listed)] == []


def test_every_contract_is_among_the_artifacts() -> None:
    text = text_of(REPOSITORY / "docs" / "data.md")
    rows = next(tables(section_of(text, "Artifacts")))
    named = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row["contract"])}
    assert named == set(re.findall(r"^### `([A-Z_]+)`$", section_of(text, "Contracts"), flags=re.MULTILINE))


@pytest.mark.parametrize("page", ALL_PAGES, ids=by_name)
def test_no_dialect(page: Path) -> None:
    prose = without_generated(text_of(page)).lower()
    assert [words for words in DIALECT if re.search(rf"\b{words}\b", prose)] == []


def test_tables_have_as_many_cells_as_columns() -> None:
    for page in ALL_PAGES:
        for block in re.findall(r"(?:^\|.*\|\n)+", without_code_blocks(text_of(page)), flags=re.MULTILINE):
            assert len({len(cells_of(line)) for line in block.splitlines()}) == 1, f"{page.name}: {block[:200]}"
