"""Predictions as text for people, as JSON, and as a file with one row a post."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from textwrap import wrap
from typing import Any

from popularity.errors import DataError
from popularity.files import atomic_path
from popularity.predict.asked import Asked
from popularity.predict.prediction import Prediction

WIDTH = 100
LISTED = 3  # classes in a line
SHOWN = 10  # problems in a summary
ABOUT = {
    "nearest by picture": ("nearest", "visual", "cosine", ".2f"),
    "nearest by text": ("nearest", "text", "cosine", ".2f"),
    "picture looks at": ("looks_at", "visual", "share", ".0%"),
    "and at texts of": ("looks_at", "text", "share", ".0%"),
}


def text_of(asked: Asked, prediction: Prediction | None) -> str:
    """A block of lines about a post."""
    title = asked.get("title")
    lines = [_short(f"post {asked.pid or asked.get('pid') or asked.row}" + (f'  "{title}"' if title else ""), WIDTH)]
    if prediction is None:
        return "\n".join([*lines, *_indented(f"set aside: {asked.problem}")])
    lines.append(f"  popularity {prediction.popularity:8.2f}   views {_count(prediction.views):>11}")
    for level, (low, high) in prediction.intervals.items():
        if low is None or high is None:
            lines.append(f"  {float(level):10.0%}   too few posts to state bounds")
        else:
            of_views = " to ".join(f"{_count(bound):>11}" for bound in prediction.views_intervals[level])
            lines.append(f"  {float(level):10.0%} {low:8.2f} to {high:6.2f}   views {of_views}")
    for label, (name, kind, value, form) in ABOUT.items():
        entries = getattr(prediction, name)[kind][:LISTED]
        if entries:
            listed = ", ".join(f"{entry['name']} {entry[value]:{form}}" for entry in entries)
            lines.append(_short(f"  {label:<18} {listed}", WIDTH))
    if prediction.attention:
        shares = [f"{share:.0%} {_MASSES[name]}" for name, share in prediction.attention.items() if share >= 0.005]
        lines.append(_short(f"  {'its attention':<18} {', '.join(shares)}", WIDTH))
    lines += ["", f"  what moved it, in {prediction.contributions_in}, from {prediction.base:.2f} of all posts"]
    lines += [f"    {value:+7.2f}  {block}" for block, value in prediction.blocks.items()]
    lines += ["", "  single features"]
    for entry in prediction.features:
        row = f"    {entry['contribution']:+7.2f}  {entry['block']:<10} {entry['feature']:<28} {_value(entry['value'])}"
        lines.append(_short(row, WIDTH))
    for note in prediction.notes:
        lines += _indented(f"note: {note}")
    return "\n".join(lines)


_MASSES = {
    "image": "on itself",
    "visual": "on pictures of classes",
    "text": "on texts of classes",
    "other_levels": "on other levels",
}


def _indented(text: str) -> list[str]:
    return wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _count(views: float | None) -> str:
    return "-" if views is None else f"{views:,.0f}" if views < 1e9 else f"{views:.1e}"


def _value(value: Any) -> str:
    if value is None:
        return "(missing)"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(line: str, width: int) -> str:
    line = " ".join(line.splitlines())
    return line if len(line) <= width else line[: width - 3] + "..."


def record(asked: Asked, prediction: Prediction | None) -> dict[str, Any]:
    """All there is to say of a post, for JSON."""
    if prediction is None:
        return {"row": asked.row, "pid": asked.pid or asked.get("pid"), "problem": asked.problem}
    return {"row": asked.row, **asdict(prediction)}


def write_file(path: Path, asked: Sequence[Asked], predictions: Mapping[str, Prediction]) -> None:
    """One row or line a post, in the order in which they were given, also for those without a prediction.

    Raises:
        DataError: `path` ends in neither .csv nor .jsonl.
    """
    refuse_other_suffix(path)
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        if path.suffix == ".jsonl":
            for each in asked:
                stream.write(json.dumps(record(each, predictions.get(each.pid)), ensure_ascii=False) + "\n")
            return
        rows = [_row(each, predictions.get(each.pid)) for each in asked]
        names = list(dict.fromkeys(name for row in rows for name in row if name not in ("notes", "problem")))
        writer = csv.DictWriter(stream, [*names, "notes", "problem"], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def refuse_other_suffix(path: Path) -> None:
    if path.suffix not in (".csv", ".jsonl"):
        raise DataError("neither .csv nor .jsonl", file=path, expected="the name of the file to write")


def _row(asked: Asked, prediction: Prediction | None) -> dict[str, Any]:
    if prediction is None:
        return record(asked, None)
    row: dict[str, Any] = {"row": asked.row, "pid": prediction.pid, "popularity": round(prediction.popularity, 4)}
    row |= {"views": round(prediction.views, 1), "scale": round(prediction.scale, 4)}
    for prefix, intervals in (("", prediction.intervals), ("views_", prediction.views_intervals)):
        for level, bounds in intervals.items():
            for side, bound in zip(("low", "high"), bounds, strict=True):
                row[f"{prefix}{side}_{float(level) * 100:g}"] = "" if bound is None else round(bound, 4)
    for kind, entries in prediction.nearest.items():
        row[f"nearest_{kind}"] = entries[0]["class"] if entries else ""
    row["base"] = round(prediction.base, 4)
    row |= {f"from_{block}": round(prediction.blocks[block], 4) for block in sorted(prediction.blocks)}
    return {**row, "notes": "; ".join(prediction.notes)}


def summary(asked: Sequence[Asked], predictions: Mapping[str, Prediction], out: Path | None = None) -> str:
    """How many posts were predicted, how, and why others were not; `out` was written."""
    aside = [each for each in asked if each.problem]
    written = f"; all in {out}" if out else ""
    lines = [f"{len(predictions)} of {len(asked)} posts predicted, {len(aside)} set aside{written}"]
    if predictions:
        values = [prediction.popularity for prediction in predictions.values()]
        lines.append(f"  popularity: mean {mean(values):.2f}, from {min(values):.2f} to {max(values):.2f}")
    lines += [f"  {kind}: {count}" for kind, count in sorted(Counter(_kinds(predictions)).items())]
    for each in aside[:SHOWN]:
        lines += _indented(f"row {each.row} set aside: {each.problem}")
    if len(aside) > SHOWN:
        lines.append(f"  ... and {len(aside) - SHOWN} more")
    return "\n".join(lines)


def _kinds(predictions: Mapping[str, Prediction]) -> Iterator[str]:
    for prediction in predictions.values():
        yield from {note.partition(":")[0] for note in prediction.notes}
