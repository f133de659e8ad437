"""The commands of README and docs/ work: every ```bash block, in order, in one clean clone on profile tiny."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from tests.pipeline.conftest import REPOSITORY, Clone

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def test_every_bash_block_runs(clone: Clone, tmp_path: Path) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    copy = Clone(tmp_path / "clone")
    shutil.copytree(clone.root, copy.root, symlinks=True)
    for block in blocks:
        done = copy.run("bash", "-euo", "pipefail", "-c", f"export VENV={sys.prefix}\n{block}", check=False)
        assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
