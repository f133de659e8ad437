"""The bash blocks of README.md and docs/*.md run as written, and every output that the pages name exists.

`tests/docs/test_pages.py` checks links, files, commands and parameters.
"""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from tests.clones import Clone
from tests.docs.pages import PAGES, text_of
from tests.repository import REPOSITORY, STAGES, outs_of

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


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_bash_block_runs(page: Path, clone: Clone, tmp_path: Path) -> None:
    """In order, in one clean clone on profile tiny; a block that is not to run has another name."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text_of(page), flags=re.MULTILINE | re.DOTALL)
    assert blocks or page.name != "README.md"
    if not blocks:
        pytest.skip("no bash block")
    copy = replace(clone, root=tmp_path / "clone")
    shutil.copytree(clone.root, copy.root, symlinks=True)
    for block in blocks:
        done = copy.run("bash", "-euo", "pipefail", "-c", f"export VENV={sys.prefix}\n{block}", check=False)
        assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_output_exists(page: Path) -> None:
    current = re.sub(r"^.*commit [0-9a-f]{7}.*$", "", text_of(page), flags=re.MULTILINE)  # not of an older commit
    assert missing_outputs(current) == []


def test_the_check_of_outputs_can_fail() -> None:
    text = "`data/no/table.parquet`, `models/stack/metadata`, `reports/resources`, `data/README.md`"
    assert missing_outputs(text) == ["data/no/table.parquet"]
