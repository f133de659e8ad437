"""A prediction, and predictions as text for people, as JSON, and as a file with one row a post."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from textwrap import wrap
from typing import Any

from popularity.core.atomic import atomic_path
from popularity.core.csv_cells import plain_cell
from popularity.core.errors import DataError
from popularity.predict.requests import Request

LINE_WIDTH = 100  # characters
MAX_COUNTED = 24  # characters of the name of what is counted
MAX_LISTED_CLASSES = 3  # in a line
MAX_LISTED_PROBLEMS = 10  # in a summary
LISTS = {
    "nearest by image": ("nearest", "visual", "cosine", ".2f"),
    "nearest by text": ("nearest", "text", "cosine", ".2f"),
    "attends to images": ("attention_weights", "visual", "weight", ".0%"),
    "attends to texts": ("attention_weights", "text", "weight", ".0%"),
}
MASSES = {
    "image": "on itself",
    "visual": "on images of classes",
    "text": "on texts of classes",
    "other_levels": "on other levels",
}

Interval = tuple[float | None, float | None]  # None: no bound can be stated


@dataclass(frozen=True)
class Prediction:
    """The prediction of a new post, and its explanation.

    Args:
        pid: of the post.
        popularity: log2(views + 1).
        views: 2^popularity - 1.
        error_scale: expected absolute error of `popularity`.
        intervals: coverage -> bounds of popularity.
        views_intervals: coverage -> the same bounds in views.
        nearest: `visual`, `text` -> the nearest class prototypes: class, name, cosine.
        attention_mass: shares of the image's attention: `image` (on itself), `visual`, `text` (on class prototypes),
            `other_levels`; empty without an image.
        attention_weights: `visual`, `text` -> the prototypes that it attends to most: class, name, weight.
        expected_value: the prediction before the SHAP values are added.
        shap_by_block: block -> the sum over its columns; with `expected_value` they add up to `popularity`.
        shap_by_feature: the largest columns: feature, block, value, shap_value.
        notes: missing or unusable fields, and their replacements.
    """

    pid: str
    popularity: float
    views: float
    error_scale: float
    intervals: Mapping[str, Interval]
    views_intervals: Mapping[str, Interval]
    nearest: Mapping[str, Sequence[Mapping[str, Any]]]
    attention_mass: Mapping[str, float]
    attention_weights: Mapping[str, Sequence[Mapping[str, Any]]]
    expected_value: float
    shap_by_block: Mapping[str, float]
    shap_by_feature: Sequence[Mapping[str, Any]]
    notes: Sequence[str]


def views(popularity: float) -> float:
    """Number of views, at least 0."""
    return max(0.0, float(2.0**popularity - 1))


def text_of(request: Request, prediction: Prediction | None, counted: str = "views") -> str:
    """The text of a post: its prediction, or why there is none.

    Args:
        request: for the post.
        prediction: None where the request has a problem.
        counted: what 2^popularity - 1 is a number of.
    """
    counted = _short(counted, MAX_COUNTED)
    title, name = request.get("title"), request.pid or request.get("pid") or request.row
    lines = [_short(f"post {name}" + (f'  "{title}"' if title else ""), LINE_WIDTH)]
    if prediction is None:
        return "\n".join([*lines, *_indented(f"set aside: {request.problem}")])
    lines.append(f"  popularity {prediction.popularity:8.2f}   {counted} {_count(prediction.views):>11}")
    for coverage, (low, high) in prediction.intervals.items():
        if low is None or high is None:
            lines.append(f"  {float(coverage):10.0%}   too few posts to state bounds")
        else:
            of_views = " to ".join(f"{_count(bound):>11}" for bound in prediction.views_intervals[coverage])
            lines.append(f"  {float(coverage):10.0%} {low:8.2f} to {high:6.2f}   {counted} {of_views}")
    for label, (field, kind, value, form) in LISTS.items():
        entries = getattr(prediction, field)[kind][:MAX_LISTED_CLASSES]
        if entries:
            listed = ", ".join(f"{entry['name']} {entry[value]:{form}}" for entry in entries)
            lines.append(_short(f"  {label:<18} {listed}", LINE_WIDTH))
    if prediction.attention_mass:
        masses = [f"{mass:.0%} {MASSES[name]}" for name, mass in prediction.attention_mass.items() if mass >= 0.005]
        lines.append(_short(f"  {'attention':<18} {', '.join(masses)}", LINE_WIDTH))
    lines += ["", *_shap_lines(prediction)]
    for note in prediction.notes:
        lines += _indented(f"note: {note}")
    return "\n".join(lines)


def _shap_lines(prediction: Prediction) -> list[str]:
    lines = [f"  SHAP values, from the expected value {prediction.expected_value:.2f}"]
    lines += [f"    {value:+7.2f}  {block}" for block, value in prediction.shap_by_block.items()]
    lines += ["", "  single features"]
    for entry in prediction.shap_by_feature:
        row = f"    {entry['shap_value']:+7.2f}  {entry['block']:<10} {entry['feature']:<28} {_value(entry['value'])}"
        lines.append(_short(row, LINE_WIDTH))
    return lines


def _indented(text: str) -> list[str]:
    return wrap(text, LINE_WIDTH, initial_indent="  ", subsequent_indent="    ")


def _count(views: float | None) -> str:
    return "-" if views is None else f"{views:,.0f}" if views < 1e9 else f"{views:.1e}"


def _value(value: Any) -> str:
    if value is None:
        return "(missing)"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(line: str, width: int) -> str:
    line = " ".join(line.splitlines())
    return line if len(line) <= width else line[: width - 3] + "..."


def record(request: Request, prediction: Prediction | None) -> dict[str, Any]:
    """The prediction, or the problem, of a request, for JSON.

    Args:
        request: for the post.
        prediction: None where the request has a problem.
    """
    if prediction is None:
        return {"row": request.row, "pid": request.pid or request.get("pid"), "problem": request.problem}
    return {"row": request.row, **asdict(prediction)}


def write_file(path: Path, requests: Sequence[Request], predictions: Mapping[str, Prediction]) -> None:
    """Writes one row or line a request, in their order, also for those without a prediction.

    Args:
        path: of the .csv or .jsonl file.
        requests: all of them.
        predictions: by pid.

    Raises:
        DataError: `path` ends in neither .csv nor .jsonl.
    """
    refuse_other_suffix(path)
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        if path.suffix == ".jsonl":
            for request in requests:
                stream.write(json.dumps(record(request, predictions.get(request.pid)), ensure_ascii=False) + "\n")
            return
        rows = [_row(request, predictions.get(request.pid)) for request in requests]
        names = list(dict.fromkeys(name for row in rows for name in row if name not in ("notes", "problem")))
        writer = csv.DictWriter(stream, [*names, "notes", "problem"], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: plain_cell(value) for name, value in row.items()} for row in rows)


def refuse_other_suffix(path: Path) -> None:
    """Raises DataError unless `path` ends in .csv or .jsonl."""
    if path.suffix not in (".csv", ".jsonl"):
        raise DataError("neither .csv nor .jsonl", file=path, expected="the name of the file to write")


def _row(request: Request, prediction: Prediction | None) -> dict[str, Any]:
    if prediction is None:
        return record(request, None)
    row: dict[str, Any] = {"row": request.row, "pid": prediction.pid, "popularity": round(prediction.popularity, 4)}
    row |= {"views": round(prediction.views, 1), "error_scale": round(prediction.error_scale, 4)}
    for prefix, intervals in (("", prediction.intervals), ("views_", prediction.views_intervals)):
        for coverage, bounds in intervals.items():
            for side, bound in zip(("low", "high"), bounds, strict=True):
                row[f"{prefix}{side}_{float(coverage) * 100:g}"] = "" if bound is None else round(bound, 4)
    for kind, entries in prediction.nearest.items():
        row[f"nearest_{kind}"] = entries[0]["class"] if entries else ""
    row["expected_value"] = round(prediction.expected_value, 4)
    row |= {f"shap_{block}": round(value, 4) for block, value in sorted(prediction.shap_by_block.items())}
    return {**row, "notes": "; ".join(prediction.notes)}


def summary(requests: Sequence[Request], predictions: Mapping[str, Prediction], out: Path | None = None) -> str:
    """The number of predicted posts, their range, and the problems of the others.

    Args:
        requests: all of them.
        predictions: by pid.
        out: file that was written.
    """
    aside = [request for request in requests if request.problem]
    written = f"; all in {out}" if out else ""
    lines = [f"{len(predictions)} of {len(requests)} posts predicted, {len(aside)} set aside{written}"]
    if predictions:
        values = [prediction.popularity for prediction in predictions.values()]
        lines.append(f"  popularity: mean {mean(values):.2f}, from {min(values):.2f} to {max(values):.2f}")
    lines += [f"  {kind}: {count}" for kind, count in sorted(Counter(_kinds(predictions)).items())]
    for request in aside[:MAX_LISTED_PROBLEMS]:
        lines += _indented(f"row {request.row} set aside: {request.problem}")
    if len(aside) > MAX_LISTED_PROBLEMS:
        lines.append(f"  ... and {len(aside) - MAX_LISTED_PROBLEMS} more")
    return "\n".join(lines)


def _kinds(predictions: Mapping[str, Prediction]) -> Iterator[str]:
    for prediction in predictions.values():
        yield from {note.partition(":")[0] for note in prediction.notes}
