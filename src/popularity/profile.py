"""Switches params.yaml between tiny, demo, full and paper: python -m popularity.profile NAME [--show].

Edits only the keys that configs/profiles/NAME.yaml lists, keeps every comment, and prints what changed. The data
set (dataset.root) is no part of a profile: `make dataset` sets it. With `--patch FILE` instead of a name the keys are
those of any other file, such as the result of a search.
"""

from __future__ import annotations

import argparse
import difflib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from popularity.core.atomic import write_text
from popularity.core.config import PARAMS_FILE, Key, leaves, read_yaml
from popularity.core.errors import ConfigError
from popularity.core.stage import run

PROFILES = Path("configs/profiles")


def read_profiles(folder: Path) -> dict[str, dict[Key, Any]]:
    """Every profile's values by key path.

    Raises:
        ConfigError: there is no profile, or one lists other keys than the rest: switching back would lose a value.
    """
    profiles = {file.stem: leaves(read_yaml(file)) for file in sorted(folder.glob("*.yaml"))}
    if not profiles:
        raise ConfigError(f"{folder}: no profiles; run the command from the repository's root")
    every = set().union(*profiles.values())
    for name, values in profiles.items():
        if missing := every - set(values):
            raise ConfigError(
                f"{folder / name}.yaml: every profile must list the same keys, this one lacks {_joined(missing)}"
            )
    return profiles


def edited(text: str, values: dict[Key, Any], origin: str, source: str = "params.yaml") -> str:
    """The text of params.yaml with other values; comments and order stay.

    Args:
        text: of params.yaml.
        values: key path -> new value.
        origin: of the values, for the message.
        source: file name of the text, for the message.

    Raises:
        ConfigError: params.yaml lacks a key of `values`.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096  # never break a long line
    content = yaml.load(text)
    if unknown := set(values) - set(leaves(content)):
        raise ConfigError(f"{origin}: {source} has no {_joined(unknown)}")
    for key, value in values.items():
        section = content
        for name in key[:-1]:
            section = section[name]
        if section[key[-1]] != value:  # an equal value keeps its spelling
            section[key[-1]] = _on_one_line(value) if _is_on_one_line(section[key[-1]]) else value
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m popularity.profile", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("name", nargs="?", help="tiny, demo, full or paper")
    source.add_argument("--patch", type=Path, help="file of values, nested as in params.yaml")
    parser.add_argument("--show", action="store_true", help="only print what would change")
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--profiles", type=Path, default=PROFILES)
    args = parser.parse_args(argv)
    if args.patch is not None:
        origin, values = str(args.patch), leaves(read_yaml(args.patch))
    else:
        profiles = read_profiles(args.profiles)
        if args.name not in profiles:
            raise ConfigError(f"no profile '{args.name}'; there are {', '.join(profiles)}")
        origin, values = f"profile '{args.name}'", {("profile",): args.name, **profiles[args.name]}
    read_yaml(args.params)
    before = args.params.read_text(encoding="utf-8")
    after = edited(before, values, origin, str(args.params))
    difference = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), str(args.params), origin.replace("'", "")
    )
    print("".join(difference).rstrip("\n") or f"{args.params}: has the values of {origin} already")
    if not args.show and after != before:
        write_text(args.params, after)


def _is_on_one_line(value: Any) -> bool:
    return isinstance(value, CommentedSeq) and (not value or bool(value.fa.flow_style()))


def _on_one_line(values: Any) -> Any:
    """A list in brackets; anything else as it is."""
    if not isinstance(values, list):
        return values
    result = CommentedSeq(values)
    result.fa.set_flow_style()
    return result


def _joined(keys: set[Key]) -> str:
    return ", ".join(sorted(".".join(key) for key in keys))


if __name__ == "__main__":
    run(main)
