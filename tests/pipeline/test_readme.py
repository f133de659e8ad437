"""README's commands work as written: every ```bash block, in order, in one clean clone on profile tiny."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from tests.clones import REPOSITORY, Clone

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_every_bash_block_runs(clone: Clone, tmp_path: Path) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    copy = Clone(tmp_path / "clone")
    shutil.copytree(clone.root, copy.root, symlinks=True)
    for block in blocks:
        done = copy.run("bash", "-euo", "pipefail", "-c", f"export VENV={sys.prefix}\n{block}", check=False)
        assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_every_path_in_readme_exists() -> None:
    """Files of the repository that README names in backticks are there."""
    named = re.findall(r"`((?:src|stages|tests|configs|benchmarks)/[\w./-]*)`", README)
    assert len(named) > 10
    for name in named:
        assert (REPOSITORY / name).exists(), name


def test_every_parameter_in_readme_exists() -> None:
    """`section.key` names and -S overrides refer to keys of params.yaml."""
    params = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    sections = re.findall(r"^(\w+):", params, flags=re.MULTILINE)
    dotted = re.findall(rf"(?:`|-S '?)((?:{'|'.join(sections)})\.[a-z_.]+)\b", README)
    assert dotted
    for name in dotted:
        assert re.search(rf"^ +{name.split('.')[-1]}:", params, flags=re.MULTILINE), name
