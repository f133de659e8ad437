"""The search for the stack's members, and their weights in the ensemble."""

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

READS = (paths.TUNING_STUDY, paths.TUNING_TRIALS, paths.ENSEMBLE_WEIGHTS)
TRIALS_SHOWN = 5  # columns, after that of the first trial: as many as fit a page of 1280 pixels
LOSS = "The selection loss is MAE relative to that of a constant, minus SRC; lower is better."


def build(run: RunFolder) -> Section:
    """The section."""
    study, ensemble = run.json(paths.TUNING_STUDY), run.json(paths.ENSEMBLE_WEIGHTS)
    elements: list[Element] = [Text(LOSS), *_ensemble(ensemble)]
    if study["best"] is not None:
        elements += _search(study, run.csv(paths.TUNING_TRIALS, {"name": pl.String}), run.params["tune"])
    return Section("tuning", "Search and ensemble", elements)


def _ensemble(ensemble: Mapping[str, Any]) -> list[Element]:
    """The members with weights and losses."""
    splits = ensemble["splits"]
    text = "The predictions are a weighted mean of the members. "
    if splits:
        text += (
            f"Weights were chosen on {counted(splits, 'forward split')}"
            f"{'; the loss of the mean in a split has the weights that the others choose' if splits > 1 else ''}."
        )
    else:
        text += "There is no forward split to choose weights on, so the stack's members have equal weights."
    losses = ensemble["losses"]
    rows = [
        [name, percent(weight, 0), number(losses[name], 4) if name in losses else ""]
        for name, weight in sorted(ensemble["weights"].items(), key=lambda item: -item[1])
    ]
    if ensemble["ensemble_loss"] is not None:
        rows.append(["their mean", "", number(ensemble["ensemble_loss"], 4)])
    return [Text(text), Table("Members of the ensemble", ["member", "weight", "loss on forward splits"], rows)]


def _search(study: Mapping[str, Any], trials: pl.DataFrame, tune: Mapping[str, Any]) -> list[Element]:
    counts = ", ".join(f"{count} {state.lower()}" for state, count in sorted(study["trials"].items()) if count)
    members = listed([one["name"] for one in study["members"]])
    schemes = listed(tune["schemes"])
    text = (
        f"Search: {counted(len(trials), 'trial')} ({counts}), by their loss on {schemes}; the registered "
        f"configurations came first. Members are the trials that predict the forward splits best together: {members}. "
        "They were chosen by these losses, so their losses are a little too low; the scores of other schemes are not "
        "affected. A trial fits with the effort tune.effort."
    )
    elements: list[Element] = [Text(text), _configurations(study, trials, tune["start"]), Charts([_history(trials)])]
    if study["importance"]:
        ordered = sorted(study["importance"].items(), key=lambda item: (-item[1], item[0]))
        largest = ordered[0][1] or 1.0
        rows = [Bar(name, [share / largest], percent(share)) for name, share in ordered]
        elements.append(Bars("Importance of the parameters: share of the variance between trials (fANOVA)", rows))
    return [*elements, _best_trials(trials, study)]


def _configurations(study: Mapping[str, Any], trials: pl.DataFrame, start: Mapping[str, Any]) -> Table:
    """A row a registered configuration: what differs from tune.start, and its loss."""
    losses = dict(trials.filter(pl.col("name").is_not_null()).select("name", "value").iter_rows())
    rows = [
        [
            name,
            "; ".join(f"{key}: {_shown(value)}" for key, value in values.items() if value != start[key]),
            number(losses[name], 4) if name in losses else "",
        ]
        for name, values in ((one["name"], one["params"]) for one in study["registered"])
    ]
    return Table("Registered configurations", ["configuration", "instead of tune.start", "loss"], rows, names=2)


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
