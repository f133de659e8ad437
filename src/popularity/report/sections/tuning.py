"""The choice of the stack's parameters: among registered configurations, then by a search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from popularity.core import paths
from popularity.report import drawing
from popularity.report.document import Bar, Bars, Chart, Charts, Element, Section, Table, Text
from popularity.report.drawing import BLUE, MUTED, ORANGE, Line, XAxis
from popularity.report.run_folder import RunFolder
from popularity.report.wording import counted, listed, number, percent

READS = (paths.SELECTION_SUMMARY, paths.SELECTION_SCORES, paths.TUNING_STUDY, paths.TUNING_TRIALS)
TRIALS_SHOWN = 5  # columns, after that of the first trial: as many as fit a page of 1280 pixels
LOSS = "The selection loss is MAE relative to that of a constant, minus SRC; lower is better."


def build(run: RunFolder) -> Section | None:
    """The section; None if nothing was chosen."""
    selection, study = run.json(paths.SELECTION_SUMMARY), run.json(paths.TUNING_STUDY)
    elements: list[Element] = []
    if selection["chosen"] is not None:
        elements += _selection(selection, run.csv(paths.SELECTION_SCORES))
    if study["best"] is not None:
        elements += _search(study, run.csv(paths.TUNING_TRIALS), run.params["tune"]["schemes"])
    return Section("tuning", "Selection and tuning", [Text(LOSS), *elements]) if elements else None


def _selection(selection: Mapping[str, Any], scores: pl.DataFrame) -> list[Element]:
    """The chosen configuration, the rule of the choice, and the scores of all."""
    chosen, best = selection["chosen"], selection["best"]
    lead = "It is the best one." if chosen == best else f"The best one is {best}."
    text = (
        f"Chosen configuration: {chosen}. {lead} The rule takes the first configuration whose loss is within "
        f"one standard error of the best, on scheme {selection['scheme']}. The standard error is that of the "
        f"difference, over {selection['draws']:,} draws of users that are the same for all configurations."
    )
    rows = [
        [
            f"{one['name']} (chosen)" if one["name"] == chosen else one["name"],
            "; ".join(f"{key}: {_shown(value)}" for key, value in one["keys"].items()),
            *(number(one[name], 4) for name in ("src", "mae", "value")),
            f"{number(one['difference'], 4, sign=True)} ± {number(one['standard_error'], 4)}",
        ]
        for one in selection["configurations"]
    ]
    header = ["configuration", "instead of params.yaml", "SRC", "MAE", "loss", "difference to the best"]
    elements: list[Element] = [Text(text), Table("Configurations, the default first", header, rows, names=2)]
    return [*elements, _by_split(scores)] if scores["fold"].n_unique() > 1 else elements


def _by_split(scores: pl.DataFrame) -> Table:
    """A row a configuration, SRC and MAE of each split."""
    splits = scores.select("fold", "posts").unique(maintain_order=True).rows()
    header = [f"{metric}, split {fold}" for fold, _ in splits for metric in ("SRC", "MAE")]
    rows = [
        [str(name), *(number(value, 4) for row in own.select("src", "mae").iter_rows() for value in row)]
        for (name,), own in scores.group_by("configuration", maintain_order=True)
    ]
    sizes = ", ".join(f"{posts:,}" for _, posts in splits)
    return Table(f"Scores of each split, in order of time (posts: {sizes})", ["configuration", *header], rows)


def _search(study: Mapping[str, Any], trials: pl.DataFrame, schemes: list[str]) -> list[Element]:
    counts = ", ".join(f"{count} {state.lower()}" for state, count in sorted(study["trials"].items()) if count)
    text = (
        f"Search: {counted(len(trials), 'trial')} ({counts}), by their loss on {listed(schemes)}. The winner was "
        "chosen by its loss, so that loss is a little too low; the scores of other schemes are not affected. A trial "
        f"fits with the effort tune.effort: the best trial has {number(study['best']['value'], 4)}, and its "
        f"parameters have {number(study['at_stage_effort']['value'], 4)} as the stage fits them."
    )
    elements: list[Element] = [Text(text), Charts([_history(trials)])]
    if study["importance"]:
        ordered = sorted(study["importance"].items(), key=lambda item: (-item[1], item[0]))
        largest = ordered[0][1] or 1.0
        rows = [Bar(name, [share / largest], percent(share)) for name, share in ordered]
        elements.append(Bars("Importance of the parameters: share of the variance between trials (fANOVA)", rows))
    return [*elements, _best_trials(trials, study)]


def _history(trials: pl.DataFrame) -> Chart:
    """Every trial's loss, and the best so far."""
    curves = []
    for state, colour, marker in (("COMPLETE", BLUE, "o"), ("PRUNED", MUTED, "x")):
        own = trials.filter(state=state)
        if len(own):
            numbers, values = own["number"].to_list(), own["value"].to_list()
            curves.append(Line(state.lower(), numbers, values, colour=colour, marker=marker, style="none"))
    done = trials.filter(state="COMPLETE")
    best = done["value"].cum_min().to_list()
    curves.append(Line("best so far", done["number"].to_list(), best, colour=ORANGE))
    label = "Loss of each trial and the best so far; lower is better"
    drawn = drawing.lines(curves, "selection loss", label, x=XAxis("trial"))
    return Chart(drawn, label, f"{label}. A pruned trial was stopped before its last fold.")


def _best_trials(trials: pl.DataFrame, study: Mapping[str, Any]) -> Table:
    """A column a trial, the first trial before the best; a row a parameter."""
    done = trials.filter(state="COMPLETE").sort("number")
    first, best = done["number"][0], study["best"]["number"]
    others = done[1:].sort("value", "number").head(TRIALS_SHOWN)
    shown = pl.concat([done[:1], others])
    marks = {first: ", first", best: ", best", **({first: ", first and best"} if first == best else {})}
    header = [f"{study['section']}.", *(f"trial {trial}{marks.get(trial, '')}" for trial in shown["number"])]
    loss = ["loss", *(number(value, 4) for value in shown["value"])]
    rows = [[key, *map(_shown, shown[key])] for key in study["space"]]
    return Table("The first trial and the best trials", header, [loss, *rows], names=len(header))


def _shown(value: Any) -> str:
    """A value of params.yaml; trials.csv holds lists as JSON."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str) and value.startswith("["):
        value = json.loads(value)
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
