"""The hooks of .pre-commit-config.yaml: outputs and data stay out of git, and every command is there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from popularity.core.config import read_yaml
from tests.repository import REPOSITORY


def refuse(*files: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ".ci/refuse_outputs.py", *files]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_outputs_and_data_are_refused(tmp_path: Path) -> None:
    large = tmp_path / "large.json"
    large.write_bytes(b" " * 1_000_001)
    refused = {
        "reports/report.html": "is an out of a stage",
        "reports/plots/predicted_true.csv": "is an out of a stage",
        "data/demo/train_allmetadata_json/train_category.json": "is an out of a stage",
        "data/raw/mine/posts.json": "lies below data/",
        "models/old/network.safetensors": "lies below models/",
        str(large): "has more than 1,000,000 bytes",
    }
    done = refuse("README.md", *refused, "params.yaml")
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(refused)
    for line, (name, why) in zip(lines, refused.items(), strict=True):
        assert line.startswith(f"{name} {why}")


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="no git repository")
def test_all_that_is_in_git_passes() -> None:
    """Metrics among it, which DVC leaves to git."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    files = [name for name in listed.stdout.splitlines() if (REPOSITORY / name).is_file()]
    assert "reports/metrics.json" in files
    done = refuse(*files)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_every_hook_starts_a_command_of_the_environment() -> None:
    (group,) = read_yaml(REPOSITORY / ".pre-commit-config.yaml")["repos"]
    for hook in group["hooks"]:
        program, *rest = hook["entry"].split()
        assert program == "python" or shutil.which(program, path=str(Path(sys.executable).parent)), hook["id"]
        if rest[:1] == ["-m"]:
            assert (REPOSITORY / "src" / Path(*rest[1].split("."))).with_suffix(".py").is_file(), hook["id"]
        elif program == "python":
            assert (REPOSITORY / rest[0]).is_file(), hook["id"]
