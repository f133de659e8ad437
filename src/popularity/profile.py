"""Sets params.yaml to a size and overlays: python -m popularity.profile NAME ... [--show].

    python -m popularity.profile full          # a size: tiny, demo, standard, smpd_cpu, full or paper
    python -m popularity.profile full clip     # and CLIP as encoders
    python -m popularity.profile clip          # the overlay on the size that params.yaml has

A size (configs/profiles) has a value for every key in which sizes or overlays differ, so a size alone takes every
overlay back. An overlay (configs/overlays) has its own keys alone. Both may add entries to embed_image and embed_text.
The files are applied in the order of their names.

Edits only these keys, keeps every comment, and prints what changed. The data set (dataset.root) is no part of a
profile: `make dataset` sets it. With `--patch FILE` instead of names the keys are those of any other file, such as the
result of a search.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popularity.core.atomic import write_text
from popularity.core.config import PARAMS_FILE, Key, leaves, read_yaml
from popularity.core.errors import ConfigError
from popularity.core.params_text import MAPS, edited, joined
from popularity.core.stage import run
from popularity.encoders.sources import is_commit

PROFILES = Path("configs/profiles")
OVERLAYS = Path("configs/overlays")


def read_profiles(folder: Path) -> dict[str, dict[Key, Any]]:
    """Every size's values by key path.

    Raises:
        ConfigError: there is no size, or one lists other keys than the rest, but for entries of its own: switching back
            would lose a value.
    """
    profiles = {file.stem: leaves(read_yaml(file)) for file in sorted(folder.glob("*.yaml"))}
    if not profiles:
        raise ConfigError(f"{folder}: no profiles; run the command from the repository's root")
    every = {key for values in profiles.values() for key in values} - _added(profiles.values())
    for name, values in profiles.items():
        if missing := every - set(values):
            raise ConfigError(
                f"{folder / name}.yaml: every profile must list the same keys, this one lacks {joined(missing)}"
            )
    return profiles


def read_overlays(folder: Path, sizes: dict[str, dict[Key, Any]]) -> dict[str, dict[Key, Any]]:
    """Every overlay's values by key path.

    Args:
        folder: of the overlays.
        sizes: from `read_profiles`.

    Raises:
        ConfigError: an overlay has the name of a size, or a key that no size sets and that belongs to no entry of its
            own: a size could not take it back.
    """
    overlays = {file.stem: leaves(read_yaml(file)) for file in sorted(folder.glob("*.yaml"))}
    for name, values in overlays.items():
        if name in sizes:
            raise ConfigError(f"{folder / name}.yaml: there is a size of this name")
        if lost := set(values) - set(next(iter(sizes.values()))) - _added([*sizes.values(), values]):
            raise ConfigError(f"{folder / name}.yaml: no size sets {joined(lost)}; list it in every size, too")
    return overlays


@dataclass(frozen=True)
class Edit:
    """Values by key path, and entries of maps that go."""

    values: dict[Key, Any]
    removed: frozenset[Key] = frozenset()


@dataclass(frozen=True)
class Profiles:
    """Sizes and overlays by name."""

    sizes: dict[str, dict[Key, Any]]
    overlays: dict[str, dict[Key, Any]]

    @classmethod
    def read(cls, sizes: Path, overlays: Path) -> Profiles:
        """From their folders."""
        found = read_profiles(sizes)
        return cls(found, read_overlays(overlays, found))

    def edit(self, names: Sequence[str], now: dict[str, Any]) -> Edit:
        """What the command changes.

        Args:
            names: a size, overlays, or a size and overlays.
            now: content of params.yaml.

        Raises:
            ConfigError: there is no profile of a name, or a size that is not the first name.
        """
        for index, name in enumerate(names):
            if name not in self.sizes and name not in self.overlays:
                raise ConfigError(
                    f"no profile '{name}'; there are the sizes {', '.join(self.sizes)} and the overlays "
                    f"{', '.join(self.overlays) or '(none)'}"
                )
            if index and name in self.sizes:
                raise ConfigError(f"{' '.join(names)}: only the first name can be a size; {name} is one")
        alone = names[0] in self.overlays
        before = str(now.get("profile", "")).split() if alone else []
        values = {key: value for name in names for key, value in (self.sizes | self.overlays)[name].items()}
        values |= _pinned_revisions(values, leaves(now))
        values[("profile",)] = " ".join([*(name for name in before if name not in names), *names])
        added = {key[:2] for key in _added([*self.sizes.values(), *self.overlays.values()])}
        return Edit(values, frozenset() if alone else frozenset(added - {key[:2] for key in values}))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m popularity.profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a size, then overlays; or overlays alone")
    parser.add_argument("--patch", type=Path, help="file of values, nested as in params.yaml")
    parser.add_argument("--show", action="store_true", help="only print what would change")
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--profiles", type=Path, default=PROFILES)
    parser.add_argument("--overlays", type=Path, default=OVERLAYS)
    args = parser.parse_args(argv)
    if bool(args.names) == (args.patch is not None):
        parser.error("give names or --patch FILE")
    now = read_yaml(args.params)
    if args.patch is not None:
        origin, edit = str(args.patch), Edit(leaves(read_yaml(args.patch)))
    else:
        origin = f"profile '{' '.join(args.names)}'"
        edit = Profiles.read(args.profiles, args.overlays).edit(args.names, now)
    before = args.params.read_text(encoding="utf-8")
    after = edited(before, edit.values, origin, str(args.params), edit.removed)
    difference = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), str(args.params), origin.replace("'", "")
    )
    print("".join(difference).rstrip("\n") or f"{args.params}: has the values of {origin} already")
    if not args.show and after != before:
        write_text(args.params, after)


def _pinned_revisions(values: Mapping[Key, Any], now: Mapping[Key, Any]) -> dict[Key, str]:
    """The commits that `make weights` has put in place of a branch in `values`, of the same weights."""
    pinned = {}
    for key, value in values.items():
        if key[0] in MAPS and key[-1] == "revision" and not is_commit(value) and is_commit(now.get(key, "")):
            same = [(*key[:-1], name) for name in ("model", "weights")]
            if all(values.get(one) == now.get(one) for one in same):
                pinned[key] = now[key]
    return pinned


def _added(profiles: Collection[dict[Key, Any]]) -> set[Key]:
    """The keys of the entries that some of the profiles add: those that not all of them have."""
    entries = [{key[:2] for key in values} for values in profiles]
    shared = set.intersection(*entries)
    return {key for values in profiles for key in values if key[0] in MAPS and key[:2] not in shared}


if __name__ == "__main__":
    run(main)
