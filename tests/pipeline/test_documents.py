"""The bash blocks of README.md and docs/*.md run as written, and every output that the pages name exists.

`tests/docs/test_pages.py` checks links, files, commands and parameters.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

from tests.clones import Clone
from tests.docs.pages import PAGES, text_of
from tests.repository import REPOSITORY, STAGES, outs_of

README = REPOSITORY / "README.md"
OUTPUT_FOLDERS = ("data", "models", "reports", "submissions")


def by_name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def missing_outputs(text: str) -> list[str]:
    """Outputs of a run, in back ticks, that no stage declares and no code names."""
    named = re.findall(rf"`((?:{'|'.join(OUTPUT_FOLDERS)})/[\w./-]*)`", text)
    files = [path for folder in ("src", "benchmarks") for path in REPOSITORY.glob(f"{folder}/**/*.py")]
    sources = "\n".join(file.read_text(encoding="utf-8") for file in files)
    outs = [PurePosixPath(path) for stage in STAGES for path in outs_of(stage)]
    return [
        name
        for name in named
        if not any(PurePosixPath(name) in (out, *out.parents) or out in PurePosixPath(name).parents for out in outs)
        and not (REPOSITORY / name).exists()
        and name not in sources
    ]


def bash_blocks(page: Path) -> list[str]:
    """What is to run; a block that is not has another name."""
    return re.findall(r"^```bash\n(.*?)^```", text_of(page), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def after_blocks(clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Clone]:
    """By page, a clean clone on profile tiny in which its blocks have run, in order; each is made once."""

    @cache
    def made(page: Path) -> Clone:
        copy = replace(clone, root=tmp_path_factory.mktemp("page") / "clone")
        shutil.copytree(clone.root, copy.root, symlinks=True)
        for block in bash_blocks(page):
            done = copy.run("bash", "-euo", "pipefail", "-c", f"export VENV={sys.prefix}\n{block}", check=False)
            assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return copy

    return made


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_bash_block_runs(page: Path, after_blocks: Callable[[Path], Clone]) -> None:
    blocks = bash_blocks(page)
    assert blocks or page != README
    if not blocks:
        pytest.skip("no bash block")
    after_blocks(page)


def test_63_leaves_are_fitted_without_another_flag(after_blocks: Callable[[Path], Clone]) -> None:
    """README's last trial: the search goes on in the other keys; committed, the value gives what the trial gave."""
    copy = after_blocks(README)
    manifest = json.loads((copy.root / "models/stack/manifest.json").read_text(encoding="utf-8"))
    members = manifest["params"]["members"]
    assert {values["lightgbm"]["num_leaves"] for values in members.values()} == {63}
    for name in members:
        (copy.root / "models/stack" / name / "lightgbm_0.txt").read_text(encoding="utf-8").index("[num_leaves: 63]")
    before = (copy.root / "data/ensemble/predictions.parquet").read_bytes()
    copy.run("git", "commit", "-q", "-a", "-m", "63 leaves")
    assert "up to date" in copy.run("dvc", "status").stdout
    again = replace(copy, programs=None)  # processes with other seeds of their hashes than the trial's
    assert again.stages_run(again.run("dvc", "repro", "--force", "--single-item", "tune", "stack", "ensemble").stdout)
    assert (copy.root / "data/ensemble/predictions.parquet").read_bytes() == before


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_output_exists(page: Path) -> None:
    current = re.sub(r"^.*commit [0-9a-f]{7}.*$", "", text_of(page), flags=re.MULTILINE)  # not of an older commit
    assert missing_outputs(current) == []


def test_the_check_of_outputs_can_fail() -> None:
    text = "`data/no/table.parquet`, `models/stack/metadata`, `reports/resources`, `data/README.md`"
    assert missing_outputs(text) == ["data/no/table.parquet"]
