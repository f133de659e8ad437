"""The report as a whole: what stands at its head, and the sections in the order in which they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath

from popularity.evaluation.scores import MAIN_MODEL, MODELS, REPORT
from popularity.report.document import Page, Tile
from popularity.report.inputs import Inputs
from popularity.report.method import (
    ablation_section,
    attention_section,
    gallery_section,
    importance_section,
    map_section,
    training_section,
)
from popularity.report.results import (
    Metrics,
    by_metric,
    coverage_section,
    failures_section,
    predicted_section,
    scores_section,
    verdict,
)
from popularity.report.running import cost_section, drift_section, provenance_section, quality_section
from popularity.report.tuning import selection_section, tuning_section
from popularity.report.wording import counted, estimate, listed, number, percent


def build_page(inputs: Inputs, picture: Callable[[str], str | None]) -> Page:
    """The report of a run.

    Args:
        inputs: what the other stages wrote.
        picture: the picture of a pid as a data URI, or None.
    """
    name = dataset_name(inputs)
    return Page(
        title=f"Popularity of posts: {name}",
        summary=summary(inputs),
        tiles=_tiles(inputs),
        facts=facts(inputs),
        sections=[
            scores_section(inputs),
            predicted_section(inputs),
            coverage_section(inputs),
            failures_section(inputs, picture),
            gallery_section(inputs, picture),
            map_section(inputs),
            importance_section(inputs),
            attention_section(inputs),
            training_section(inputs),
            selection_section(inputs),
            tuning_section(inputs),
            ablation_section(inputs),
            quality_section(inputs),
            drift_section(inputs),
            cost_section(inputs),
            provenance_section(inputs),
        ],
    )


def dataset_name(inputs: Inputs) -> str:
    """The last part of the data set's path: the rest is a matter of the machine."""
    return PurePath(inputs.params["dataset"]["root"]).name


def report_metrics(inputs: Inputs) -> dict[str, Metrics]:
    """By model, its scores on scheme report; empty where it has none."""
    return {model: metrics for (model,), metrics in by_metric(inputs.scores.filter(scheme=REPORT), ["model"])}


def summary(inputs: Inputs) -> str:
    """What the scores of scheme report say, in two sentences."""
    found = report_metrics(inputs)
    if MAIN_MODEL not in found:
        return f"No labelled post was scored in scheme {REPORT}: this run has no honest score."
    src, mae = (found[MAIN_MODEL][metric] for metric in ("src", "mae"))
    first = (
        f"On posts of scheme {REPORT}, on which nothing was chosen, the {MAIN_MODEL} ranks with SRC "
        f"{estimate(src['value'], src['low'], src['high'])} and errs by MAE "
        f"{estimate(mae['value'], mae['low'], mae['high'])} ({counted(src['posts'], 'post')} of "
        f"{counted(src['users'], 'user')})."
    )
    said: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for row in inputs.differences.filter(scheme=REPORT, model=MAIN_MODEL, metric="mae").iter_rows(named=True):
        difference = estimate(row["value"], row["low"], row["high"], sign=True)
        said.get(verdict(row), []).append(f"{row['minus']} ({difference})")
    words = {"better": "better than", "worse": "worse than", "not told apart": "not told apart from"}
    clauses = [f"{words[name]} {listed(rows)}" for name, rows in said.items() if rows]
    return f"{first} In MAE it is {', and '.join(clauses)}." if clauses else first


def _tiles(inputs: Inputs) -> list[Tile]:
    found = report_metrics(inputs)
    tiles = []
    if MAIN_MODEL in found:
        for metric, name in (("src", "SRC on report"), ("mae", "MAE on report")):
            row = found[MAIN_MODEL][metric]
            interval = f"{number(row['low'])} to {number(row['high'])}" if row["low"] is not None else "no interval"
            tiles.append(Tile(name, number(row["value"]), interval))
        baselines = {model: found[model]["mae"]["value"] for model in MODELS if model in found and model != MAIN_MODEL}
        if baselines:
            best = min(baselines, key=lambda model: baselines[model])
            tiles.append(Tile("MAE of the best baseline", number(baselines[best]), best))
    if inputs.coverage is not None:
        for row in inputs.coverage.filter(scheme=REPORT, group="all", level=0.8).iter_rows(named=True):
            tiles.append(
                Tile("Coverage of 80 % intervals", percent(row["coverage"]), f"mean width {number(row['width'], 2)}")
            )
    tests = inputs.ingest["parts"].get("test", {}).get("posts", 0)
    tiles.append(Tile("Test posts predicted", f"{len(inputs.final):,}", f"of {tests:,}" if tests else "no test part"))
    return tiles


def facts(inputs: Inputs) -> list[tuple[str, str]]:
    """Name and value of what one must know of a run."""
    parts = inputs.ingest["parts"]
    label = inputs.ingest["label"]
    posts = ", ".join(f"{part['posts']:,} {name}" for name, part in sorted(parts.items(), reverse=True))
    revision = inputs.manifests.get("models/stack", {}).get("code", {})
    code = (revision.get("revision") or "not recorded")[:12] + (" (modified)" if revision.get("modified") else "")
    return [
        ("Data set", dataset_name(inputs)),
        ("Posts", posts),
        ("Users", f"{inputs.ingest['users']:,}"),
        ("Classes", f"{len(inputs.classes):,} of the second level"),
        (
            "Time",
            f"{min(part['from'] for part in parts.values())[:10]} to {max(part['to'] for part in parts.values())[:10]}",
        ),
        ("Label", f"mean {number(label['mean'], 2)}, sd {number(label['sd'], 2)}, log2(views + 1)"),
        ("Profile", str(inputs.params["profile"])),
        *((f"{kind.capitalize()} tower", str(about["encoder"])) for kind, about in sorted(inputs.encoders.items())),
        ("Share of the text model", f"{percent(inputs.text_share, 0)} in what the stack predicts of the test part"),
        ("Code", code),
    ]
