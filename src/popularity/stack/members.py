"""members.yaml: the members of the stack, values of section `stack` by name, from stage tune to stage stack."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from popularity.core.atomic import atomic_path
from popularity.core.config import parse_params, patched, read_yaml
from popularity.core.contracts import MAIN_MODEL
from popularity.stack.params import StackParams


def write_members(members: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Writes members.yaml: {<name>: {<dotted key of section stack>: value}}.

    Args:
        members: values by dotted key, by name; the first member counts most.
        file: that is written.
    """
    with atomic_path(file) as partial:
        YAML().dump({name: dict(values) for name, values in members.items()}, partial)


def load_members(params: Path, file: Path | None) -> dict[str, StackParams]:
    """Section stack of every member.

    Args:
        params: params.yaml.
        file: that `write_members` wrote; None: section stack with the values of tune.start is the only member.

    Raises:
        ConfigError: a file is missing, or section stack does not take a value.
    """
    content = read_yaml(params)
    if file is None:
        return {MAIN_MODEL: parse_params("stack", StackParams, content, params)}
    members: dict[str, StackParams] = {}
    for name, values in read_yaml(file).items():
        own: Any = content
        for key, value in values.items():
            patch = value
            for part in reversed(("stack", *key.split("."))):
                patch = {part: patch}
            own = patched(own, patch)
        members[name] = parse_params("stack", StackParams, own, params, f"{params} with {file}")
    return members
