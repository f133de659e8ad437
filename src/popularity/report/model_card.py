"""The model card, in Markdown. Text of the data set cannot become markup."""

from __future__ import annotations

import io
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from ruamel.yaml import YAML

from popularity.core import paths
from popularity.core.config import read_yaml
from popularity.core.contracts import HOLDOUT, MAIN_MODEL
from popularity.report import head
from popularity.report.run_folder import RunFolder
from popularity.report.score_cells import by_metric, metric_cells, overall
from popularity.report.sections import errors, provenance
from popularity.report.sections.splits import SCHEME_SHOWS, scheme_shows
from popularity.report.wording import class_label, estimate, number, percent

READS = (
    *head.READS,
    *errors.READS,
    paths.TUNING_MEMBERS,
    paths.ENSEMBLE_WEIGHTS,
    paths.SUBMISSIONS,
)
GROUPINGS = {"user": "user", "category": "first-level class", "month": "month"}


def model_card(run: RunFolder) -> str:
    """The card; a section whose files are missing is left out or says so."""
    environment = Environment(
        loader=PackageLoader("popularity.report"),
        autoescape=False,  # Markdown, not HTML: every value of the data passes the filter `plain`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = plain
    return environment.get_template("model_card.md").render(
        name=run.dataset_name,
        counted=run.counted,
        summary=head.summary(run),
        properties=head.properties(run),
        confidence=percent(run.evaluation.confidence_level, 0),
        n_resamples=run.evaluation.n_resamples,
        params=_yaml(_without_machine(run)),
        **_data(run),
        **_scores(run),
        **_choices(run),
    )


def plain(text: object) -> str:
    r"""Text that Markdown shows as it is, on one line.

    >>> plain("a|b <i> *c*")
    'a\\|b &lt;i&gt; \\*c\\*'
    """
    line = re.sub(r"\s+", " ", str(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~$!])", r"\\\1", line)


def _data(run: RunFolder) -> dict[str, Any]:
    summary = run.json(paths.INGEST_SUMMARY) if run.has(paths.INGEST_SUMMARY) else None
    split = run.json(paths.SPLIT_SUMMARY) if run.has(paths.SPLIT_SUMMARY) else None
    manifest = run.json(paths.STACK_MANIFEST) if run.has(paths.STACK_MANIFEST) else {"libraries": {}}
    return {
        "label": summary["label"] if summary else None,
        "missing_test": summary is not None and "test" not in summary["parts"],
        "unseen": percent(split["wanted_unseen_post_share"]) if split else None,
        "libraries": manifest["libraries"],
        "submissions": provenance.submission_digests(run) if run.has(paths.SUBMISSIONS) else {},
    }


def _scores(run: RunFolder) -> dict[str, Any]:
    scores = overall(run.scores) if run.has(paths.SCORES) else None
    if scores is None:
        return {"schemes": [], "scores": [], "bias": "", "subgroups": _subgroups(run), "coverage": _coverage(run)}
    used = dict(scores.select("scheme", "used_in_selection").unique(maintain_order=True).iter_rows())
    shows = scheme_shows(run.json(paths.SPLIT_SUMMARY)) if run.has(paths.SPLIT_SUMMARY) else SCHEME_SHOWS
    bias = scores.filter(scheme=HOLDOUT, model=MAIN_MODEL, metric="bias").to_dicts()
    return {
        "schemes": [(scheme, used_for_selection, shows[scheme]) for scheme, used_for_selection in used.items()],
        "scores": [
            (scheme, model, metrics["src"]["posts"], metrics["src"]["users"], *metric_cells(metrics))
            for (scheme, model), metrics in by_metric(scores, ["scheme", "model"])
        ],
        "bias": estimate(bias[0]["value"], bias[0]["low"], bias[0]["high"], sign=True) if bias else "",
        "subgroups": _subgroups(run),
        "coverage": _coverage(run),
    }


def _subgroups(run: RunFolder) -> list[tuple[Any, ...]]:
    """Kind, group, posts, MAE, SRC, bias of the main model in scheme HOLDOUT."""
    if not run.has(*errors.READS):
        return []
    own = run.group_scores.filter(scheme=HOLDOUT, model=MAIN_MODEL)
    found = [
        (kind, class_label(group) if grouping == "category" else group, metrics)
        for grouping, kind in GROUPINGS.items()
        for (group,), metrics in by_metric(own.filter(grouping=grouping), ["group"])
    ]
    found += [("modality", group, metrics) for group, metrics in errors.modality_scores(run)]
    return [
        (kind, group, metrics["mae"]["posts"], *metric_cells(metrics, ("mae", "src", "bias")))
        for kind, group, metrics in found
    ]


def _coverage(run: RunFolder) -> list[tuple[str, ...]]:
    """Nominal coverage, users, coverage, its bounds and the mean width, in scheme HOLDOUT."""
    if not run.has(paths.COVERAGE):
        return []
    own = run.csv(paths.COVERAGE).filter(scheme=HOLDOUT)
    return [
        (
            percent(row["nominal"], 0),
            row["group"],
            *(percent(row[name]) for name in ("coverage", "low", "high")),
            number(row["width"], 2),
        )
        for row in own.iter_rows(named=True)
    ]


def _choices(run: RunFolder) -> dict[str, Any]:
    """Name, weight and parameters of each member; empty where there is none."""
    weights = run.json(paths.ENSEMBLE_WEIGHTS)["weights"] if run.has(paths.ENSEMBLE_WEIGHTS) else {}
    values = read_yaml(run.path(paths.TUNING_MEMBERS)) if run.has(paths.TUNING_MEMBERS) else {}
    return {"members": [(name, percent(weight, 0), values.get(name, {})) for name, weight in weights.items()]}


def _without_machine(run: RunFolder) -> dict[str, Any]:
    """params.yaml with the data set's name in place of its path, and without the search's storage."""
    params = {**run.params, "dataset": {**run.params["dataset"], "root": run.dataset_name}}
    if "tune" in params:
        params["tune"] = {key: value for key, value in params["tune"].items() if key != "storage"}
    return params


def _yaml(content: dict[str, Any]) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.width = 1000
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue().replace("```", "` ` `")
