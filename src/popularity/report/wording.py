"""Numbers and names as text for readers."""

from __future__ import annotations

from collections.abc import Sequence

from popularity.core.contracts import class_names

NONE = "–"
MINUS = "\N{MINUS SIGN}"


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A rounded number with a true minus sign; a dash for None."""
    if value is None:
        return NONE
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", MINUS)


def estimate(value: float | None, low: float | None, high: float | None, digits: int = 3, sign: bool = False) -> str:
    """Value and interval: 0.689 [0.623, 0.741]; no interval where there is none."""
    if value is None or low is None or high is None:
        return number(value, digits, sign)
    return f"{number(value, digits, sign)} [{number(low, digits, sign)}, {number(high, digits, sign)}]"


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as a percentage: 0.953 is 95.3 %."""
    return NONE if fraction is None else f"{number(100 * fraction, digits)} %"


def class_label(key: str) -> str:
    """The names on a class's path: Food / Fruit."""
    return " / ".join(name or "(empty)" for name in class_names(key))


def shortened(text: str, length: int) -> str:
    """The text, or its beginning and an ellipsis, in at most `length` letters."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def counted(count: int, noun: str) -> str:
    """1 post, 2,000 posts."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
