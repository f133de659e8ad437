"""params.yaml to frozen dataclasses, strictly; an error lists every key that is wrong.

A section is a dataclass of the standard library next to the code that uses it. This module checks values against them
with pydantic and writes the error messages.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar, overload

from pydantic import ConfigDict, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from popularity.core.errors import ConfigError

PARAMS_FILE = Path("params.yaml")
SEARCH = "search"  # in place of a value of SEARCHED: the search decides, from the value in tune.start on
SEARCHED = "stack"
T = TypeVar("T")
Key = tuple[str, ...]  # path of keys from the top of a parameter file


class Section:
    """Base of every section's dataclass: unknown keys are errors, and no type is coerced."""

    __pydantic_config__: typing.ClassVar[ConfigDict] = {"extra": "forbid", "strict": True}


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a YAML 1.2 file (in which 1e-4 is a number).

    Raises:
        ConfigError: no such file, no YAML, or no mapping.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; run the command from the repository's root")
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(content).__name__}")
    return content


def parse_section(name: str, values: Any, section: type[T], source: str = "params.yaml") -> T:
    """An instance of `section` from a mapping.

    Raises:
        ConfigError: lists every unknown, missing or ill-typed key and what is allowed there.
    """
    try:
        # As JSON: strict mode then takes mappings for dataclasses and lists for tuples, and nothing else.
        return TypeAdapter(section).validate_json(json.dumps(values))
    except ValidationError as error:
        lines = [f"{source}: section '{name}' is not valid"]
        for problem in error.errors(include_url=False):
            where = ".".join([name, *map(str, problem["loc"])])
            if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
                parent = _schema_at(section, problem["loc"][:-1])
                allowed = ", ".join(field.name for field in dataclasses.fields(parent))
                lines.append(f"  {where}: unknown key; allowed here: {allowed}")
            elif problem["type"] in ("missing_argument", "missing"):
                lines.append(f"  {where}: missing")
            else:
                lines.append(f"  {where}: {problem['msg']}, found {problem['input']!r}")
        raise ConfigError("\n".join(lines)) from error


@overload
def load_params(name: str, section: type[T], path: Path = PARAMS_FILE, tuned: Path | None = None) -> T: ...
@overload
def load_params(name: str, section: Any, path: Path = PARAMS_FILE, tuned: Path | None = None) -> Any: ...
def load_params(name: str, section: Any, path: Path = PARAMS_FILE, tuned: Path | None = None) -> Any:
    """The section `name` of params.yaml as an instance of `section`.

    A dotted name (`train.transductive`) is one value of another section, and `section` is its type (StrictBool).
    The keys of the file `tuned`, nested as in params.yaml, replace the values of params.yaml. A key of section stack
    that is `search` has its value of tune.start.

    Raises:
        ConfigError: the file, the section or one of its keys is missing, unknown or ill-typed.
    """
    content: Any = read_yaml(path)
    if tuned is not None:
        content = patched(content, read_yaml(tuned))
    return parse_params(name, section, content, path, str(path) if tuned is None else f"{path} with {tuned}")


def parse_params(name: str, section: type[T], content: Any, path: Path, source: str | None = None) -> T:
    """What `load_params` returns, from a parameter file that was read before.

    Args:
        name: of the section, or a dotted name.
        section: its dataclass.
        content: of the parameter file.
        path: of the parameter file, for messages.
        source: named in the messages about values; None for `path`.

    Raises:
        ConfigError: the section or one of its keys is missing, unknown or ill-typed.
    """
    whole = content
    for key in name.split("."):
        if not isinstance(content, dict) or key not in content:
            found = ", ".join(content) if isinstance(content, dict) else repr(content)
            raise ConfigError(f"{path}: section '{name}' is missing; found: {found}")
        content = content[key]
    if name == SEARCHED:
        content = _with_starts(content, whole, path)
    return parse_section(name, content, section, source or str(path))


def searched_keys(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The dotted keys of section stack that are `search`.

    Args:
        content: of params.yaml.
    """
    section = content.get(SEARCHED)
    found = leaves(section) if isinstance(section, dict) else {}
    return tuple(".".join(key) for key, value in found.items() if value == SEARCH)


def _with_starts(section: Any, content: Mapping[str, Any], path: Path) -> Any:
    """Section stack with the values of tune.start for the keys that are `search`."""
    tune = content.get("tune")
    starts = tune.get("start") if isinstance(tune, Mapping) else None
    found = {}
    for key in searched_keys(content):
        if not isinstance(starts, Mapping) or key not in starts:
            raise ConfigError(f"{path}: {SEARCHED}.{key} is {SEARCH}, but tune.start has no {key}, where it starts")
        found[key] = starts[key]
    return patched(section, nested(found)) if found else section


def patched(values: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the entries of `patch` in place of its own, mapping by mapping.

    >>> patched({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    result = dict(values)
    for name, value in patch.items():
        old = result.get(name)
        result[name] = patched(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings from dotted keys.

    >>> nested({"lightgbm.num_leaves": 7, "detrend": "none"})
    {'lightgbm': {'num_leaves': 7}, 'detrend': 'none'}
    """
    mappings = [
        reduce(lambda inner, name: {name: inner}, reversed(key.split(".")), value) for key, value in values.items()
    ]
    return reduce(patched, mappings, {})


def leaves(mapping: dict[str, Any], above: Key = ()) -> dict[Key, Any]:
    """Key path -> value of each entry of nested mappings that is no mapping itself."""
    result: dict[Key, Any] = {}
    for name, value in mapping.items():
        result.update(leaves(value, (*above, name)) if isinstance(value, dict) else {(*above, name): value})
    return result


def _schema_at(section: type, location: tuple[Any, ...]) -> type:
    """The dataclass that holds the key at `location`, walking nested sections."""
    current = section
    for key in location:
        hints = typing.get_type_hints(current)
        current = hints.get(str(key), current)
        if not dataclasses.is_dataclass(current):
            return section
    return current
