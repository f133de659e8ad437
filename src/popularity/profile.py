"""Switches params.yaml between tiny, demo and full: python -m popularity.profile NAME [--show].

Edits only the keys that configs/profiles/NAME.yaml lists, keeps every comment, and prints what changed. The data
set (dataset.root) is no part of a profile: `make dataset` sets it.
"""

from __future__ import annotations

import argparse
import difflib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from popularity.config import PARAMS_FILE, read_yaml
from popularity.errors import ConfigError
from popularity.files import write_text
from popularity.stage import run

PROFILES = Path("configs/profiles")
Key = tuple[str, ...]


def leaves(mapping: dict[str, Any], above: Key = ()) -> dict[Key, Any]:
    """Key path -> value of everything in nested mappings that is no mapping itself."""
    result: dict[Key, Any] = {}
    for name, value in mapping.items():
        result.update(leaves(value, (*above, name)) if isinstance(value, dict) else {(*above, name): value})
    return result


def read_profiles(folder: Path) -> dict[str, dict[Key, Any]]:
    """Every profile's values by key path.

    Raises:
        ConfigError: there is none, or one lists other keys than the rest, so that switching back would lose a value.
    """
    profiles = {file.stem: leaves(read_yaml(file)) for file in sorted(folder.glob("*.yaml"))}
    if not profiles:
        raise ConfigError(f"{folder}: no profiles; run the command from the repository's root")
    every = set().union(*profiles.values())
    for name, values in profiles.items():
        if missing := every - set(values):
            raise ConfigError(
                f"{folder / name}.yaml: every profile must list the same keys, this one lacks {_listed(missing)}"
            )
    return profiles


def switched(text: str, name: str, values: dict[Key, Any], source: str = "params.yaml") -> str:
    """The text of params.yaml with `profile: name` and the profile's values; comments and order stay.

    Raises:
        ConfigError: the profile has a key that params.yaml lacks.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096  # never break a long line
    content = yaml.load(text)
    if unknown := set(values) - set(leaves(content)):
        raise ConfigError(f"profile '{name}': {source} has no {_listed(unknown)}")
    for key, value in {("profile",): name, **values}.items():
        section = content
        for part in key[:-1]:
            section = section[part]
        if section[key[-1]] != value:  # an equal value keeps its own spelling
            section[key[-1]] = value
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m popularity.profile", description=__doc__)
    parser.add_argument("name", help="tiny, demo or full")
    parser.add_argument("--show", action="store_true", help="only print what would change")
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--profiles", type=Path, default=PROFILES)
    args = parser.parse_args(argv)
    profiles = read_profiles(args.profiles)
    if args.name not in profiles:
        raise ConfigError(f"no profile '{args.name}'; there are {', '.join(profiles)}")
    read_yaml(args.params)
    before = args.params.read_text(encoding="utf-8")
    after = switched(before, args.name, profiles[args.name], str(args.params))
    difference = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), str(args.params), f"profile {args.name}"
    )
    print("".join(difference).rstrip("\n") or f"{args.params}: already as profile '{args.name}' says")
    if not args.show and after != before:
        write_text(args.params, after)


def _listed(keys: set[Key]) -> str:
    return ", ".join(sorted(".".join(key) for key in keys))


if __name__ == "__main__":
    run(main)
