"""The registered configurations of section `stack`: points of the search space, and the first trials of the search.

Data sets differ in size, classes, users and trend, so the best configuration of one need not be the best of another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from popularity.core.contracts import BASELINES, MAIN_MODEL, TEXT_MODEL
from popularity.core.errors import ConfigError
from popularity.tuning.space import Space

MAX_CANDIDATES = 8  # the more candidates, the more the best of them owes to chance
START = "start"  # name of the values in tune.start where no candidate has them
RESERVED = (*BASELINES, MAIN_MODEL, TEXT_MODEL)  # names of models and of members that are no configuration
TRIAL = "trial_"  # before the number of a trial that is no registered configuration


def registered(
    candidates: Sequence[str],
    configurations: Mapping[str, Mapping[str, Any]],
    space: Space[Any],
    known: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """The candidates' values on the axes of the space, by name, in their order; of equal ones the first.

    A configuration replaces values of tune.start. It does not replace a value that section stack gives: that key is no
    axis of the space. Without candidates: the values of tune.start.

    Args:
        candidates: names of configurations.
        configurations: values by dotted key of section stack, by name; those that are no candidates are checked too.
        space: its axes are the keys that are `search` in section stack.
        known: the keys that tune.space names.

    Raises:
        ConfigError: a candidate is no configuration or is listed twice, or a configuration is no point of the space.
    """
    points = {name: _point(name, keys, space, known) for name, keys in configurations.items()}
    found: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(candidates):
        if name not in points:
            raise ConfigError(
                f"tune.candidates.{index}: found {name!r}; expected a name in tune.configurations: "
                f"{', '.join(points) or 'there is none'}"
            )
        if name in candidates[:index]:
            raise ConfigError(f"tune.candidates.{index}: {name!r} is listed before; expected each name once")
        if points[name] not in found.values():
            found[name] = points[name]
    return found or {START: space.default}


def _point(name: str, keys: Mapping[str, Any], space: Space[Any], known: Sequence[str]) -> dict[str, Any]:
    where = f"tune.configurations.{name}"
    if not re.fullmatch(r"[A-Za-z0-9_]+", name) or name in RESERVED or name.startswith(TRIAL):
        raise ConfigError(
            f"{where}: expected a name of letters, digits and underscores that is none of {', '.join(RESERVED)} and "
            f"does not begin with {TRIAL}"
        )
    for key in keys:
        if key not in known:
            raise ConfigError(f"{where}.{key}: tune.space has no such key; a configuration is a point of the space")
    values = {key: value for key, value in keys.items() if key in space.axes}
    for key, value in values.items():
        space.check(f"{where}.{key}", key, value)
    space.apply(values, where)
    return {**space.default, **values}
