"""Edits the text of params.yaml: other values, entries of a map more or less; comments and order stay."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import ScalarString

from popularity.core.config import Key, leaves
from popularity.core.errors import ConfigError

MAPS = ("embed_image", "embed_text")  # sections whose entries have names of the user's choice


def edited(
    text: str, values: Mapping[Key, Any], origin: str, source: str = "params.yaml", removed: Collection[Key] = ()
) -> str:
    """The text of params.yaml with other values; comments and order stay.

    A section of MAPS gets an entry that it lacks; new entries come first there.

    Args:
        text: of params.yaml.
        values: key path -> new value.
        origin: of the values, for the message.
        source: file name of the text, for the message.
        removed: entries of MAPS that go, if they are there.

    Raises:
        ConfigError: params.yaml lacks a key of `values`.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096  # never break a long line
    content = yaml.load(text)
    for section, *entry in removed:
        if len(entry) == 1 and section in MAPS:
            content[section].pop(entry[0], None)
    _add_entries(content, values)
    if unknown := set(values) - set(leaves(content)):
        raise ConfigError(f"{origin}: {source} has no {joined(unknown)}")
    for key, value in values.items():
        section = content
        for name in key[:-1]:
            section = section[name]
        if section[key[-1]] != value:  # an equal value keeps its spelling
            section[key[-1]] = _in_style_of(section[key[-1]], value)
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()


def _add_entries(content: Any, values: Mapping[Key, Any]) -> None:
    for section in MAPS:
        if section not in content:
            continue
        new: dict[str, CommentedMap] = {}
        for key, value in values.items():
            if key[0] == section and len(key) == 3 and key[1] not in content[section]:
                new.setdefault(key[1], CommentedMap())[key[2]] = value
        for index, (name, entry) in enumerate(new.items()):
            content[section].insert(index, name, entry)


def joined(keys: Collection[Key]) -> str:
    """The keys in dotted form, sorted."""
    return ", ".join(sorted(".".join(key) for key in keys))


def _in_style_of(old: Any, value: Any) -> Any:
    """The value, in brackets unless the old one is a list without, and in quotes if it is a text in quotes."""
    if isinstance(value, str) and isinstance(old, ScalarString):
        return type(old)(value)
    on_one_line = not isinstance(old, CommentedSeq) or not old or old.fa.flow_style()
    if not isinstance(value, list) or not on_one_line:
        return value
    result = CommentedSeq(value)
    result.fa.set_flow_style()
    return result
