"""The search space of a section of params.yaml: dotted keys, each with a range or with choices."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Generic, TypeVar

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial
from pydantic import Field

from popularity.core.config import Section, leaves, nested, parse_section, patched
from popularity.core.errors import ConfigError

S = TypeVar("S")
Values = Mapping[str, Any]  # by dotted key


@dataclass(frozen=True)
class Range(Section):
    """Numbers from `low` to `high`, both included.

    Args:
        low: the least number.
        high: the largest number.
        log: whether the logarithm is drawn uniformly.
        integer: whether only whole numbers are drawn.
    """

    low: float
    high: float
    log: bool
    integer: bool


@dataclass(frozen=True)
class Choices(Section):
    """One of a few values.

    Args:
        choices: the values; a value may be a list.
    """

    choices: Annotated[tuple[Any, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Space(Generic[S]):
    """The search space of a section of params.yaml: ranges and choices of keys.

    Args:
        section: its name.
        base: its default values.
        axes: Range or Choices by dotted key, sorted by key, so that their order in the file does not matter.
    """

    section: str
    base: S
    axes: Mapping[str, Range | Choices]

    @classmethod
    def parse(
        cls, where: str, spec: Mapping[str, Any], section: str, base: S, checked: Collection[str] | None = None
    ) -> Space[S]:
        """The space that is described in params.yaml.

        Args:
            where: dotted key of the description, for errors.
            spec: the description: a range or choices, by dotted key.
            section: name of the searched section.
            base: its values.
            checked: axes on which `base` must lie; None: all.

        Raises:
            ConfigError: the section lacks a key, a range is not valid, the section does not take a value, or a default
                is outside the space.
        """
        known = {".".join(key): value for key, value in leaves(_plain(base)).items()}
        axes: dict[str, Range | Choices] = {}
        for key in sorted(spec):
            name = f"{where}.{key}"
            if key not in known:
                raise ConfigError(f"{name}: section '{section}' has no such key; it has {', '.join(sorted(known))}")
            listed = isinstance(spec[key], Mapping) and "choices" in spec[key]
            axes[key] = parse_section(name, spec[key], Choices) if listed else parse_section(name, spec[key], Range)
            _check(name, axes[key])
            if checked is None or key in checked:
                _check_value(name, axes[key], known[key], f"{section}.{key}")
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
        """The section with `values` in place of the defaults.

        Args:
            values: by dotted key.
            source: of the values, for errors.

        Raises:
            ConfigError: the section does not take a value.
        """
        return parse_section(self.section, patched(_plain(self.base), nested(values)), type(self.base), source)

    def check(self, name: str, key: str, value: Any) -> None:
        """Refuses a value that is outside the axis `key`.

        Args:
            name: of the value, for the message.
            key: of the axis.
            value: to be checked.

        Raises:
            ConfigError: the axis does not have the value.
        """
        _check_value(name, self.axes[key], value, "the value")

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distributions of the axes; `encode` and `decode` convert between its values and ours."""
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
        """The values for Optuna, which stores no lists: lists become JSON text."""
        return {key: _label(value) for key, value in values.items()}

    def decode(self, params: Values) -> dict[str, Any]:
        """The values before `encode`."""
        result: dict[str, Any] = {}
        for key, value in params.items():
            axis = self.axes[key]
            found = {_label(choice): choice for choice in axis.choices} if isinstance(axis, Choices) else {}
            result[key] = found.get(value, value)
        return result


def _plain(section: Any) -> dict[str, Any]:
    """A dataclass as the mappings and lists of params.yaml."""
    content: dict[str, Any] = json.loads(json.dumps(asdict(section)))
    return content


def _check(name: str, axis: Range | Choices) -> None:
    if isinstance(axis, Choices):
        if len({_label(choice) for choice in axis.choices}) < len(axis.choices):
            raise ConfigError(f"{name}.choices: a value occurs twice")
        return
    if axis.low > axis.high:
        raise ConfigError(f"{name}: low {axis.low:g} is above high {axis.high:g}")
    if axis.log and axis.low <= 0:
        raise ConfigError(f"{name}: a logarithmic range starts above 0, found low {axis.low:g}")
    if axis.integer and not (axis.low.is_integer() and axis.high.is_integer()):
        raise ConfigError(f"{name}: an integer range has whole ends, found {axis.low:g} to {axis.high:g}")


def _check_value(name: str, axis: Range | Choices, value: Any, what: str) -> None:
    """Refuses a value outside the axis: it is one of the first trials."""
    if isinstance(axis, Choices):
        if _label(value) not in [_label(choice) for choice in axis.choices]:
            raise ConfigError(
                f"{name}: {what} is {_label(value)}, which is not among the choices; it belongs to one of the first "
                "trials, so add it"
            )
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name}: {what} is {_label(value)}, which is not a number: list choices instead of a range")
    if not axis.low <= value <= axis.high:
        raise ConfigError(
            f"{name}: {what} is {value:g}, outside {axis.low:g} to {axis.high:g}; it belongs to one of the first "
            "trials, so widen the range"
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
    """A list as JSON text; other values are unchanged."""
    return json.dumps(value) if isinstance(value, list | tuple) else value
