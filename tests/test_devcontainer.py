"""The development container does what README tells a newcomer, on the Python of the project."""

from __future__ import annotations

import json
import re
import tomllib

from tests.repository import REPOSITORY

CONTAINER = json.loads((REPOSITORY / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))


def test_it_runs_the_two_commands_of_readme() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    commands = re.search(r"## Quick start\n.*?```bash\n(.*?)```", readme, flags=re.DOTALL)
    assert commands
    assert CONTAINER["postCreateCommand"] == " && ".join(commands[1].splitlines())


def test_its_python_is_the_projects() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = re.fullmatch(r"python:(\d+\.\d+)-\w+", CONTAINER["image"])
    assert version
    assert project["requires-python"].startswith(f">={version[1]},")
