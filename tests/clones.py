"""Clean clones of this working tree, and commands in them; the fixture `clone` is one whose graph has run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.repository import REPOSITORY, write_profile

# The same files are the same commit, whenever they are cloned: a manifest names it.
DATED = dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), "2026-01-01T00:00:00Z")

# On a fresh machine git knows no name; DVC reads these, and not GIT_CONFIG_*.
SOMEBODY = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "test"), ("EMAIL", "test@localhost"))
}


@dataclass(frozen=True)
class Clone:
    """A clone of the repository and how to run commands in it, with this environment and its own sources.

    Args:
        root: of its files.
        programs: a folder that comes first on PATH: the `python` of tests/forks.py; None for Python itself.
    """

    root: Path
    programs: Path | None = None

    def run(
        self, *command: str, check: bool = True, more: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """What the command printed, in the `environment` with `more`."""
        done = subprocess.run(
            command, cwd=self.root, env=self.environment(more), capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)} exited {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}")
        return done

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """This one, without the user's own DVC and S3 settings, with the clone's sources, and with `more`."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "AWS_"))}
        programs = [str(self.programs)] if self.programs else []
        return environment | {
            "PATH": os.pathsep.join([*programs, str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(self.root / "src"),
            "HF_HUB_OFFLINE": "1",
            **SOMEBODY,
            **(more or {}),
        }

    def stages_run(self, output: str) -> list[str]:
        """The stages that a `dvc repro` started, from what it printed; of a stage group@entry the group."""
        return [name.partition("@")[0] for name in self.entries_run(output)]

    def entries_run(self, output: str) -> list[str]:
        """The stages that a `dvc repro` started, from what it printed."""
        return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def make_clone(root: Path, programs: Path | None = None) -> Clone:
    """The tracked and untracked-but-not-ignored files of this tree, committed in a repository of their own.

    Its parameters are those of profile demo on the generated data, whatever the working file is set to. `programs` are
    those of the Clone.
    """
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (REPOSITORY / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, root / name)
    write_profile(root)
    clone = Clone(root, programs)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "clone"]):
        clone.run("git", *command, more=DATED)
    return clone


def switch_to_tiny(clone: Clone) -> None:
    clone.run("python", "-m", "popularity.profile", "tiny")
    clone.run("git", "commit", "-q", "-a", "-m", "tiny", check=False, more=DATED)


def copy_of(clone: Clone, root: Path) -> Clone:
    """A copy that a test may change, cache included, its last run committed."""
    shutil.copytree(clone.root, root, symlinks=True)
    copy = replace(clone, root=root)
    copy.run("git", "commit", "-q", "-a", "-m", "run", "--allow-empty")
    return copy


def files_below(root: Path, folders: Sequence[str]) -> set[Path]:
    return {path.relative_to(root) for folder in folders for path in (root / folder).rglob("*") if path.is_file()}
