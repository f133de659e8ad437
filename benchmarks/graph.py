"""The stages of dvc.yaml as DVC expands them, and changes of params.yaml."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from popularity.core import paths

Stage = dict[str, Any]


def expanded(graph: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Stage]:
    """Stages by name: one named group@entry for each entry of a map, and values in place of `${a.b}`.

    Args:
        graph: content of dvc.yaml.
        params: content of params.yaml.

    Raises:
        ConfigError: dvc.yaml names a key that params.yaml lacks.
    """
    found: dict[str, Stage] = {}
    for name, stage in graph["stages"].items():
        if "foreach" in stage:
            entries = _value_of(stage["foreach"], params)
            for key, item in entries.items():
                found[f"{name}@{key}"] = _filled(stage["do"], {**params, "key": key, "item": item})
        else:
            found[name] = _filled(stage, params)
    return found


def change_params(file: Path, change: Callable[[Any], None]) -> None:
    """Writes params.yaml after `change` of its content."""
    yaml = YAML()
    content = yaml.load(file.read_text(encoding="utf-8"))
    change(content)
    with file.open("w", encoding="utf-8") as stream:
        yaml.dump(content, stream)


def _value_of(placeholder: str, params: Mapping[str, Any]) -> Any:
    value: Any = params
    for name in placeholder.removeprefix("${").removesuffix("}").split("."):
        value = value[name]
    return value


def _filled(value: Any, params: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return {_filled(key, params): _filled(item, params) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, params) for item in value]
    return paths.resolved(value, params) if isinstance(value, str) else value
