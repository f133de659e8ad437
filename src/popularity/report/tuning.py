"""The section on the search for parameters: its trials, what mattered, and what it chose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl
from markupsafe import Markup

from popularity.report import drawing
from popularity.report.document import Bar, Bars, Chart, Charts, Element, Section, Table, Text
from popularity.report.drawing import BLUE, MUTED, ORANGE, Line
from popularity.report.inputs import Inputs
from popularity.report.wording import counted, number, percent

TRIALS_SHOWN = 6  # columns: as many as a page of 1280 pixels has room for


def tuning_section(inputs: Inputs) -> Section:
    trials, study = inputs.trials, inputs.study
    if trials is None or study is None or study["best"] is None:
        untuned = Markup("Not tuned: the stack has the values of <code>params.yaml</code>, and no trial chose them.")
        return Section("tuning", "Tuning", [Text(untuned)])
    counts = ", ".join(f"{count} {state.lower()}" for state, count in sorted(study["trials"].items()) if count)
    schemes = " and ".join(inputs.params["tune"]["schemes"])
    text = (
        f"{counted(len(trials), 'trial')} ({counts}), judged by {schemes}, never by report: MAE relative to that of a "
        "constant, minus SRC, so lower is better. The winner's own value flatters it, because it was chosen by it; the "
        "scores on report do not."
    )
    elements: list[Element] = [Text(text), Charts([_history(trials)])]
    if study["importance"]:
        ordered = sorted(study["importance"].items(), key=lambda item: (-item[1], item[0]))
        most = ordered[0][1] or 1.0
        rows = [Bar(name, [share / most], percent(share)) for name, share in ordered]
        elements.append(Bars("Importance of the parameters: share of the variance between trials (fANOVA)", rows))
    elements += [_chosen(study), _best_trials(trials, study)]
    return Section("tuning", "Tuning", elements)


def _history(trials: pl.DataFrame) -> Chart:
    """Every trial's value, and the best so far."""
    curves = []
    for state, colour, marker in (("COMPLETE", BLUE, "o"), ("PRUNED", MUTED, "x")):
        own = trials.filter(state=state)
        if len(own):
            numbers, values = own["number"].to_list(), own["value"].to_list()
            curves.append(Line(state.lower(), numbers, values, colour=colour, marker=marker, style="none"))
    done = trials.filter(state="COMPLETE")
    best = done["value"].cum_min().to_list()
    curves.append(Line("best so far", done["number"].to_list(), best, colour=ORANGE))
    label = "Value of each trial and the best so far; lower is better"
    drawn = drawing.lines(curves, "value", label, x="trial")
    return Chart(drawn, label, f"{label}. A pruned trial was given up before its last fold.")


def _chosen(study: Mapping[str, Any]) -> Table:
    best, default = study["best"], study["default"]
    before = default["params"] if default else {}
    rows = [[key, _shown(before[key]) if before else "", _shown(best["params"][key])] for key in study["space"]]
    values = ["value", number(default["value"], 4) if default else "", number(best["value"], 4)]
    header = [f"{study['section']}.", "params.yaml", f"best (trial {best['number']})"]
    return Table("What the search chose", header, [*rows, values], names=3)


def _best_trials(trials: pl.DataFrame, study: Mapping[str, Any]) -> Table:
    """One column a trial: the names of the parameters are too long to stand side by side."""
    best = trials.filter(state="COMPLETE").sort("value", "number").head(TRIALS_SHOWN)
    header = [f"{study['section']}.", *(f"trial {trial}" for trial in best["number"])]
    values = ["value", *(number(value, 4) for value in best["value"])]
    rows = [[key, *map(_shown, best[key])] for key in study["space"]]
    return Table(f"The {counted(len(best), 'best trial')}", header, [values, *rows], names=len(header))


def _shown(value: Any) -> str:
    """A value of params.yaml; trials.csv holds lists as JSON."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str) and value.startswith("["):
        value = json.loads(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
