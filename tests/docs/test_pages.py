"""README.md and docs/: sizes, links, and every file, command and parameter that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from popularity.core.config import read_yaml
from tests.docs.pages import (
    PACKAGE,
    PAGES,
    cells_of,
    parameter_paths,
    section_of,
    tables,
    text_of,
    without_code_blocks,
    without_generated,
)
from tests.repository import REPOSITORY

README_BYTES = 12_000
FOLDER_PAGES = [REPOSITORY / folder / "README.md" for folder in ("data", "models", "reports")]
CHANGELOG = REPOSITORY / "CHANGELOG.md"
ALL_PAGES = [*PAGES, *FOLDER_PAGES, CHANGELOG]
HISTORY = ("Renamed keys", "Tried and dropped")  # sections that name what is no longer there
DIALECT = ("of which", "beside", "what it says of", "told", "asked", "judged", "looks", "foretells", "of late")


def by_name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def current(page: Path) -> str:
    """The page without its history: lines that name the commit that printed them, and the sections of HISTORY."""
    text = text_of(page)
    for heading in HISTORY:
        if f"# {heading}\n" in text:
            text = text.replace(section_of(text, heading), "")
    return re.sub(r"^.*commit [0-9a-f]{7}.*$", "", text, flags=re.MULTILINE)


def missing_links(text: str, page: Path) -> list[str]:
    """Relative links of a page to files that are not there, or to headings that the file does not have."""
    absent = []
    for target in re.findall(r"\]\((?!https?://|mailto:)([^)\s]+)\)", without_code_blocks(text)):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(text if file == page else text_of(file))):
            absent.append(target)
    return absent


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code_blocks(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing_files(text: str) -> list[str]:
    """Files in back ticks, named from the repository's root or from src/popularity, that are not there."""
    named = re.findall(r"`((?:src|stages|tests|configs|benchmarks|docs)/[\w./-]*)[`:]", text)
    named += re.findall(r"`(\w+(?:/\w+)*\.py)[`:]", text)
    absent = [name for name in named if not (REPOSITORY / name).exists() and not (PACKAGE / name).exists()]
    return list(dict.fromkeys(absent))


def missing_commands(text: str) -> list[str]:
    """Modules after `python -m` and targets after `make` that are not there."""
    modules = sorted(set(re.findall(r"python -m ((?:popularity|benchmarks|stages)[\w.]*\w)", text)))
    absent = [name for name in modules if not module_exists(name)]
    targets = set(re.findall(r"^([a-z-]+):", text_of(REPOSITORY / "Makefile"), flags=re.MULTILINE))
    named = set(re.findall(r"(?:`|^|&& )make ([a-z][a-z-]*)", text, flags=re.MULTILINE))
    return [*absent, *(f"make {name}" for name in sorted(named - targets))]


def module_exists(name: str) -> bool:
    """Whether `python -m name` starts something."""
    file = (REPOSITORY / "src" if name.startswith("popularity") else REPOSITORY).joinpath(*name.split("."))
    return file.with_suffix(".py").is_file() or (file / "__main__.py").is_file()


def missing_keys(text: str) -> list[str]:
    """Dotted names that begin with a section of params.yaml and are no whole path in it.

    They begin a code span (`split.n_origins: 3`) or follow -S.
    """
    sections = "|".join(name for name in parameter_paths() if "." not in name)
    named = re.findall(rf"(?:`|-S '?)((?:{sections})\.[a-z_0-9.]*[a-z_0-9])(?!\.\w|/)", without_generated(text))
    return [name for name in named if name not in parameter_paths()]


def test_readme_is_a_front_door() -> None:
    assert (REPOSITORY / "README.md").stat().st_size <= README_BYTES


@pytest.mark.parametrize("page", ALL_PAGES, ids=by_name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert missing_links(text_of(page), page) == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_file_of_the_repository_is_there(page: Path) -> None:
    assert missing_files(current(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_command_is_there(page: Path) -> None:
    assert missing_commands(current(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_parameter_is_a_key_of_params_yaml(page: Path) -> None:
    assert missing_keys(current(page)) == []


def test_the_checks_can_fail() -> None:
    page = REPOSITORY / "docs" / "data.md"
    assert missing_links("# One\n[a](no.md), [b](#one), [c](#two), [d](https://e)", page) == ["no.md", "#two"]
    assert missing_files("`src/popularity/`, `src/no/such.py`, `features/build.py: featurize`, `no.py`") == [
        "src/no/such.py",
        "no.py",
    ]
    assert missing_commands("`python -m popularity.check`, `python -m popularity.no`\nmake test && make no") == [
        "popularity.no",
        "make no",
    ]
    assert missing_keys("`evaluate.seed`, `evaluate.seeds: 1`\ndvc exp run -S 'demo.no=[1]' -S demo.seed=2") == [
        "evaluate.seeds",
        "demo.no",
    ]


def test_renamed_keys_are_the_same_in_both_places() -> None:
    moved, changes = (
        next(rows for rows in tables(text_of(page)) if "old key" in rows[0])
        for page in (REPOSITORY / "docs" / "experiments.md", CHANGELOG)
    )
    assert moved == changes


def test_every_output_is_among_the_artifacts() -> None:
    """Of each output of dvc.yaml the file, or some file in the folder, has a row in docs/data.md."""
    text = section_of(text_of(REPOSITORY / "docs" / "data.md"), "Artifacts")
    listed = [name for rows in tables(text) for row in rows for name in re.findall(r"`([^`]+)`", row["file"])]
    outputs = []
    for named in read_yaml(REPOSITORY / "dvc.yaml")["stages"].values():
        stage = named.get("do", named)
        for out in (*stage.get("outs", []), *stage.get("metrics", [])):
            outputs.append((out if isinstance(out, str) else next(iter(out))).replace("${key}", "<name>"))
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
