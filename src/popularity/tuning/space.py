"""A search space as params.yaml states it: dotted keys of a section, each with a range or with choices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Annotated, Any, Generic, TypeVar

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial
from pydantic import Field

from popularity.core.config import Section, leaves, parse_section, patched
from popularity.core.errors import ConfigError

S = TypeVar("S")
Values = Mapping[str, Any]  # by dotted key


@dataclass(frozen=True)
class Range(Section):
    """Numbers from `low` to `high`, both included; `log` draws their logarithm evenly."""

    low: float
    high: float
    log: bool
    integer: bool


@dataclass(frozen=True)
class Choices(Section):
    """One of a few values; a value may be a list."""

    choices: Annotated[tuple[Any, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Space(Generic[S]):
    """What is searched in a section of params.yaml.

    Args:
        section: its name.
        base: its values where nothing else is tried.
        axes: Range or Choices by dotted key, in the order of the keys, so that their order in the file does not matter.
    """

    section: str
    base: S
    axes: Mapping[str, Range | Choices]

    @classmethod
    def parse(cls, where: str, spec: Mapping[str, Any], section: str, base: S) -> Space[S]:
        """The space that `spec`, the value of the key `where`, describes for the section `section` with values `base`.

        Raises:
            ConfigError: a key that the section lacks, a range that is none, a value that the section does not take, or
                a default that lies outside.
        """
        known = {".".join(key): value for key, value in leaves(_plain(base)).items()}
        axes: dict[str, Range | Choices] = {}
        for key in sorted(spec):
            name = f"{where}.{key}"
            if key not in known:
                raise ConfigError(f"{name}: section '{section}' has no such key; it has {', '.join(sorted(known))}")
            listed = isinstance(spec[key], Mapping) and "choices" in spec[key]
            axes[key] = parse_section(name, spec[key], Choices) if listed else parse_section(name, spec[key], Range)
            _check(name, axes[key], known[key], f"{section}.{key}")
        space = cls(section, base, axes)
        for key, axis in axes.items():
            for value in axis.choices if isinstance(axis, Choices) else _ends(axis):
                space.apply({key: value}, f"{where}.{key}")
        return space

    @property
    def default(self) -> dict[str, Any]:
        """The values of `base` on every axis."""
        known = {".".join(key): value for key, value in leaves(_plain(self.base)).items()}
        return {key: known[key] for key in self.axes}

    def apply(self, values: Values, source: str = "tuned values") -> S:
        """The section with `values` in place of the base's.

        Raises:
            ConfigError: a value that the section does not take.
        """
        return parse_section(self.section, patched(_plain(self.base), nested(values)), type(self.base), source)

    def distributions(self) -> dict[str, BaseDistribution]:
        """The axes as Optuna knows them; `encode` and `decode` go between its values and ours."""
        return {key: _distribution(axis) for key, axis in self.axes.items()}

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Values that Optuna draws for `trial`, in the order of the axes."""
        drawn: dict[str, Any] = {}
        for key, axis in self.distributions().items():
            if isinstance(axis, CategoricalDistribution):
                drawn[key] = trial.suggest_categorical(key, axis.choices)
            elif isinstance(axis, IntDistribution):
                drawn[key] = trial.suggest_int(key, axis.low, axis.high, log=axis.log)
            elif isinstance(axis, FloatDistribution):
                drawn[key] = trial.suggest_float(key, axis.low, axis.high, log=axis.log)
        return self.decode(drawn)

    def encode(self, values: Values) -> dict[str, Any]:
        """Lists become text: Optuna stores plain values only."""
        return {key: _label(value) for key, value in values.items()}

    def decode(self, params: Values) -> dict[str, Any]:
        """What `encode` was given; ranges stay numbers."""
        result: dict[str, Any] = {}
        for key, value in params.items():
            axis = self.axes[key]
            found = {_label(choice): choice for choice in axis.choices} if isinstance(axis, Choices) else {}
            result[key] = found.get(value, value)
        return result


def nested(values: Values) -> dict[str, Any]:
    """Mappings in mappings from dotted keys.

    >>> nested({"lightgbm.num_leaves": 7, "target": "raw"})
    {'trees': {'num_leaves': 7}, 'target': 'raw'}
    """
    parts = [
        reduce(lambda inner, name: {name: inner}, reversed(key.split(".")), value) for key, value in values.items()
    ]
    return reduce(patched, parts, {})


def _plain(section: Any) -> dict[str, Any]:
    """A dataclass as params.yaml holds it: mappings and lists."""
    content: dict[str, Any] = json.loads(json.dumps(asdict(section)))
    return content


def _check(name: str, axis: Range | Choices, default: Any, key: str) -> None:
    if isinstance(axis, Choices):
        if len({_label(choice) for choice in axis.choices}) < len(axis.choices):
            raise ConfigError(f"{name}.choices: one of them occurs twice")
        if _label(default) not in [_label(choice) for choice in axis.choices]:
            raise ConfigError(
                f"{name}: {key} is {_label(default)}, which is none of its choices; the default is the first trial, so "
                "add it to them"
            )
        return
    if axis.low > axis.high:
        raise ConfigError(f"{name}: low {axis.low:g} is above high {axis.high:g}")
    if axis.log and axis.low <= 0:
        raise ConfigError(f"{name}: a logarithmic range starts above 0, found low {axis.low:g}")
    if axis.integer and not (axis.low.is_integer() and axis.high.is_integer()):
        raise ConfigError(f"{name}: an integer range has whole ends, found {axis.low:g} to {axis.high:g}")
    if isinstance(default, bool) or not isinstance(default, int | float):
        raise ConfigError(f"{name}: {key} is {_label(default)}, which is no number: list choices instead of a range")
    if not axis.low <= default <= axis.high:
        raise ConfigError(
            f"{name}: {key} is {default:g}, outside {axis.low:g} to {axis.high:g}; the default is the first trial, so "
            "widen the range"
        )


def _ends(axis: Range) -> tuple[float, float]:
    return (int(axis.low), int(axis.high)) if axis.integer else (axis.low, axis.high)


def _distribution(axis: Range | Choices) -> BaseDistribution:
    if isinstance(axis, Choices):
        return CategoricalDistribution([_label(choice) for choice in axis.choices])
    if axis.integer:
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def _label(value: Any) -> Any:
    """A plain value as it is, a list as JSON text."""
    return json.dumps(value) if isinstance(value, list | tuple) else value
