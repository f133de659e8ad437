"""The sections on how the stack's parameters were chosen: among registered configurations, and by a search."""

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


def selection_section(inputs: Inputs) -> Section:
    """Which configuration was chosen, and why."""
    found, scores = inputs.selection, inputs.selection_scores
    if found is None or scores is None or found["chosen"] is None:
        none = Markup("Nothing was chosen: there were no candidates (<code>select.candidates</code>).")
        return Section("selection", "Choice of a configuration", [Text(none)])
    chosen, best = found["chosen"], found["best"]
    lead = "it is the best of them" if chosen == best else f"the best is {best}"
    text = (
        f"Chosen: {chosen}. Candidates stand from the simplest down, and the first is taken whose distance from the "
        f"best is at most one standard error; {lead}. Each was fitted with the values of section stack that it names, "
        f"and judged by the cuts of {found['scheme']}, never by report: MAE relative to that of a constant, minus SRC, "
        f"so lower is better. The standard error is that of the difference, over {found['draws']:,} draws of users, "
        "the same for all candidates."
    )
    rows = [
        [
            one["name"], "chosen" if one["name"] == chosen else "",
            "; ".join(f"{key}: {_shown(value)}" for key, value in one["keys"].items()),
            number(one["src"], 4), number(one["mae"], 4), number(one["value"], 4),
            f"{number(one['difference'], 4, sign=True)} ± {number(one['standard_error'], 4)}",
        ]
        for one in found["configurations"]
    ]  # fmt: skip
    header = ["configuration", "", "in place of params.yaml", "SRC", "MAE", "value", "to the best"]
    table = Table("Which configuration was chosen, and why", header, rows, names=3)
    return Section("selection", "Choice of a configuration", [Text(text), table, _by_cut(scores)])


def _by_cut(scores: pl.DataFrame) -> Table:
    """A row a configuration, SRC and MAE of each cut."""
    cuts = scores.select("cut", "posts").unique(maintain_order=True).rows()
    header = ["configuration"]
    for cut, _ in cuts:
        header += [f"SRC, cut {cut}", f"MAE, cut {cut}"]
    rows = [
        [str(name), *(number(value, 4) for row in own.select("src", "mae").iter_rows() for value in row)]
        for (name,), own in scores.group_by("configuration", maintain_order=True)
    ]
    sizes = ", ".join(f"{posts:,}" for _, posts in cuts)
    return Table(f"Scores of each cut, in order of time (posts: {sizes})", header, rows)


def tuning_section(inputs: Inputs) -> Section:
    trials, study = inputs.trials, inputs.study
    if trials is None or study is None or study["best"] is None:
        return Section("tuning", "Tuning", [Text("Not tuned: no trial chose a value of the stack.")])
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
    header = [f"{study['section']}.", "first trial", f"best (trial {best['number']})"]
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
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
