"""The generated parts of README.md and docs/ are what `python -m popularity.docs` writes today."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from popularity.core.errors import DataError
from popularity.dataset.preparation import set_root
from popularity.docs import COMMAND, contracts_part, generate, main, parameter_tables, parameters_part, refreshed
from popularity.profile import PROFILES
from popularity.profile import main as choose_profile
from tests.docs.pages import PAGES, text_of
from tests.repository import REPOSITORY


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    assert refreshed(text_of(page), REPOSITORY) == text_of(page), f"{page.name} is out of date: run {COMMAND}"


def test_what_is_generated_is_shown_somewhere() -> None:
    shown = "\n".join(map(text_of, PAGES))
    for part in ("stages", "stage files", "parameters", "contracts", "headline"):
        assert f"<!-- generated: {part} -->" in shown, part


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(DataError, match="one of stages"):
        generate("nothing", REPOSITORY)


def test_a_parameter_has_its_comments() -> None:
    text = (
        "tree:          # of every fold\n"
        "  # Above\n"
        "  # the key.\n"
        "  depth: 3     # at most <n>\n"
        "                       # and more\n"
        "  deeper:      # below\n"
        "    names: [a, b]\n"
        "    rate: {low: 0.1, high: 1.0}  # a | b\n"
    )
    assert parameter_tables(text).splitlines() == [
        "### `tree`",
        "",
        "of every fold",
        "",
        "| key | value | meaning |",
        "| --- | --- | --- |",
        "| `depth` | `3` | Above the key. at most \\<n> and more |",
        "| `deeper` |  | below |",
        "| `deeper.names` | `[a, b]` |  |",
        "| `deeper.rate` | `{low: 0.1, high: 1.0}` | a \\| b |",
    ]


def test_parameters_do_not_depend_on_the_chosen_profile_and_data_set(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / PROFILES, tmp_path / PROFILES)
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    expected = parameters_part(tmp_path)
    choose_profile(["full", "--params", str(tmp_path / "params.yaml"), "--profiles", str(REPOSITORY / PROFILES)])
    set_root(tmp_path / "params.yaml", Path("/my/own/posts"))
    assert parameters_part(tmp_path) == expected


def test_a_contract_has_its_columns_and_their_comments() -> None:
    text = contracts_part()
    assert "| `label` | Float64 | yes | log2(views + 1); null in the test split and there alone |" in text
    assert "| `pid` | String |  |  |" in text


def test_check_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "a.csv").write_text("x,y,y low,y high\n1000,.5,.4,.6\n7,-,,\n")
    stale = "<!-- generated: results/a.csv -->\n<!-- end -->\n"
    (tmp_path / "README.md").write_text(stale)
    with pytest.raises(DataError, match="out of date"):
        main(["--check", "--folder", str(tmp_path)])
    assert (tmp_path / "README.md").read_text() == stale
    main(["--folder", str(tmp_path)])
    assert (tmp_path / "README.md").read_text().splitlines()[1:-1] == [
        "| x | y |",
        "| --- | --- |",
        "| 1,000 | .5 [.4, .6] |",
        "| 7 | - |",
    ]
    main(["--check", "--folder", str(tmp_path)])
