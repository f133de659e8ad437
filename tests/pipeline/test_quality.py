"""The scores of the demo in reports/metrics.json lie between a floor and a ceiling.

A score above the ceiling is as suspicious as one below the floor: it may be a leak.
"""

from __future__ import annotations

import csv
import json
import statistics
from typing import Any

import pytest

from popularity.core.config import leaves, read_yaml
from popularity.profile import read_profiles
from tests.repository import GENERATED, PROFILES, REPOSITORY

# Around the means over five seeds of the stack (docs/results/demo-seeds.csv), by over five standard deviations: the
# network and the text model of another CPU differ, too. (scheme, metric) -> half the width of the interval.
HALF_WIDTHS = {("holdout", "src"): 0.045, ("holdout", "mae"): 0.09, ("forward", "src"): 0.045, ("forward", "mae"): 0.09}


def seeds() -> dict[tuple[str, str], list[float]]:
    """The scores of the five seeds, by scheme and metric."""
    with (REPOSITORY / "docs/results/demo-seeds.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        (scheme, metric): [float(row[f"{scheme} {metric.upper()}"]) for row in rows] for scheme, metric in HALF_WIDTHS
    }


INTERVALS = {
    key: (statistics.mean(found) - HALF_WIDTHS[key], statistics.mean(found) + HALF_WIDTHS[key])
    for key, found in seeds().items()
}


def other_than_demo() -> str | None:
    """How the run that dvc.lock records differs from the demo; None if it does not."""
    stages: dict[str, Any] = read_yaml(REPOSITORY / "dvc.lock")["stages"]
    if f"--root {GENERATED} " not in stages["ingest"]["cmd"]:
        return "the last run was on another data set"
    used = {
        key: value
        for stage in stages.values()
        for key, value in leaves(stage.get("params", {}).get("params.yaml", {})).items()
    }
    profile = read_profiles(PROFILES)["demo"]
    changed = [".".join(key) for key, value in profile.items() if used.get(key, value) != value]
    return f"the last run was on other parameters than profile demo: {', '.join(changed)}" if changed else None


def test_five_seeds_lie_well_inside_the_intervals() -> None:
    for key, found in seeds().items():
        assert len(found) == 5
        assert 5 * statistics.stdev(found) < HALF_WIDTHS[key], key


@pytest.mark.parametrize(("scheme", "metric"), INTERVALS)
def test_the_demos_score_lies_in_its_interval(scheme: str, metric: str) -> None:
    if other := other_than_demo():
        pytest.skip(other)
    metrics = json.loads((REPOSITORY / "reports/metrics.json").read_text(encoding="utf-8"))
    low, high = INTERVALS[scheme, metric]
    assert low <= metrics[scheme]["stack"][metric] <= high


def test_the_intervals_exclude_models_that_learn_less() -> None:
    """On `holdout` and `forward` the scores of constant and user_mean lie outside."""
    if other := other_than_demo():
        pytest.skip(other)
    metrics = json.loads((REPOSITORY / "reports/metrics.json").read_text(encoding="utf-8"))
    for (scheme, metric), (low, high) in INTERVALS.items():
        for model in ("constant", "user_mean"):
            value = metrics[scheme][model][metric]
            assert value is None or not low <= value <= high, (scheme, metric, model)
