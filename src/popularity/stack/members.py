"""members.yaml: the members of the stack, values of section `stack` by name, from stage tune to stage stack."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from popularity.core.atomic import atomic_path
from popularity.core.config import nested, parse_params, patched, read_yaml
from popularity.core.contracts import MAIN_MODEL
from popularity.stack.params import StackParams


def write_members(members: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Writes members.yaml: {<name>: {<dotted key of section stack>: value}}.

    Args:
        members: values by dotted key, by name; the first member counts most.
        file: that is written.
    """
    with atomic_path(file) as partial:
        plain = {name: dict(values) for name, values in members.items()}
        YAML().dump(json.loads(json.dumps(plain)), partial)  # members share lists, which would become anchors


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
    source, given = f"{params} with {file}", read_yaml(file)
    sections = {name: patched(content, {"stack": nested(values)}) for name, values in given.items()}
    return {name: parse_params("stack", StackParams, own, params, source) for name, own in sections.items()}
