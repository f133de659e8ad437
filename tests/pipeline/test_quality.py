"""The scores of the demo in reports/metrics.json lie between a floor and a ceiling.

A score above the ceiling is as suspicious as one below the floor: it may be a leak.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from popularity.core.config import leaves, read_yaml
from popularity.profile import read_profiles
from tests.repository import GENERATED, PROFILES, REPOSITORY

# Not a spread over seeds: 95 % intervals of one run of profile demo (1,000 resamples of its users) as it was committed
# on 2026-11-24, holdout: 315 posts of 104 users, forward: 689 posts of 210 users. (scheme, metric) -> low, high.
INTERVALS = {
    ("holdout", "src"): (0.627, 0.741),
    ("holdout", "mae"): (1.277, 1.621),
    ("forward", "src"): (0.550, 0.653),
    ("forward", "mae"): (1.305, 1.481),
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
