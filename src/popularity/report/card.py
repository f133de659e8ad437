"""The model card, in Markdown. Every number comes from the inputs; text of the data set cannot become markup."""

from __future__ import annotations

import io
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from ruamel.yaml import YAML

from popularity.evaluation.scores import MAIN_MODEL, REPORT
from popularity.report.inputs import Inputs
from popularity.report.page import dataset_name, facts, summary
from popularity.report.results import SCHEME_SAYS, by_metric, metric_cells, score_modalities
from popularity.report.wording import class_label, estimate, number, percent

GROUPINGS = (("user", "user"), ("category", "first-level class"), ("month", "month"))


def model_card(inputs: Inputs) -> str:
    environment = Environment(
        loader=PackageLoader("popularity.report"),
        autoescape=False,  # Markdown, not HTML: every value of the data passes the filter `plain`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = plain
    return environment.get_template("model_card.md").render(
        name=dataset_name(inputs),
        summary=summary(inputs),
        facts=facts(inputs),
        missing_test="test" not in inputs.ingest["parts"],
        unseen=percent(inputs.split["wanted_unseen_post_share"]),
        confidence=percent(inputs.evaluation.confidence, 0),
        bootstrap=inputs.evaluation.bootstrap,
        schemes=[(name, *SCHEME_SAYS[name]) for name in inputs.scores["scheme"].unique(maintain_order=True)],
        scores=[
            (scheme, model, metrics["src"]["posts"], metrics["src"]["users"], *metric_cells(metrics))
            for (scheme, model), metrics in by_metric(inputs.scores, ["scheme", "model"])
        ],
        subgroups=_subgroups(inputs),
        coverage=_coverage(inputs),
        label=inputs.ingest["label"],
        level=_level(inputs),
        selected=_selected(inputs),
        tuned=(inputs.study or {}).get("best"),
        tuned_section=(inputs.study or {}).get("section"),
        libraries=next((found["libraries"] for found in inputs.manifests.values()), {}),
        submissions=inputs.submissions,
        params=_yaml(_without_machine(inputs)),
    )


def plain(text: object) -> str:
    r"""Text that Markdown shows as it is, on one line.

    >>> plain("a|b <i> *c*")
    'a\\|b &lt;i&gt; \\*c\\*'
    """
    line = re.sub(r"\s+", " ", str(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~$!])", r"\\\1", line)


def _subgroups(inputs: Inputs) -> list[tuple[Any, ...]]:
    """Kind, group, posts, MAE, SRC, bias of the main model on scheme report."""
    own = inputs.groups.filter(scheme=REPORT, model=MAIN_MODEL)
    found = [
        (kind, class_label(group) if grouping == "category" else group, metrics)
        for grouping, kind in GROUPINGS
        for (group,), metrics in by_metric(own.filter(grouping=grouping), ["group"])
    ]
    found += [("modality", group, metrics) for group, metrics in score_modalities(inputs)]
    return [
        (kind, group, metrics["mae"]["posts"], *metric_cells(metrics, ("mae", "src", "bias")))
        for kind, group, metrics in found
    ]


def _coverage(inputs: Inputs) -> list[tuple[str, ...]]:
    if inputs.coverage is None:
        return []
    own = inputs.coverage.filter(scheme=REPORT)
    return [
        (
            percent(row["level"], 0),
            row["group"],
            *(percent(row[name]) for name in ("coverage", "low", "high")),
            number(row["width"], 2),
        )
        for row in own.iter_rows(named=True)
    ]


def _level(inputs: Inputs) -> str:
    """The bias of the main model on scheme report."""
    row = inputs.scores.filter(scheme=REPORT, model=MAIN_MODEL, metric="bias").to_dicts()
    return estimate(row[0]["value"], row[0]["low"], row[0]["high"], sign=True) if row else ""


def _selected(inputs: Inputs) -> dict[str, Any] | None:
    """The configuration that was chosen: its name and its keys."""
    found = inputs.selection or {"chosen": None, "configurations": []}
    return next((one for one in found["configurations"] if one["name"] == found["chosen"]), None)


def _without_machine(inputs: Inputs) -> dict[str, Any]:
    """params.yaml with the data set's name in place of its path, and without the search's storage."""
    params = {**inputs.params, "dataset": {**inputs.params["dataset"], "root": dataset_name(inputs)}}
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
