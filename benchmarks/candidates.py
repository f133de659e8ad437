"""The candidates that benchmarks.screen knows: other values of section stack, by group and name.

Add a candidate to a group, or a group. What is no key of section stack needs a key first (docs/contributing.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from popularity.core.config import read_yaml
from popularity.core.errors import ConfigError
from popularity.stack import StackParams
from popularity.stack.matrix import FeatureGroup
from popularity.tuning.space import Space

Keys = Mapping[str, Any]  # values by dotted key of section stack
FILE = "file"  # the group of the candidates of a file

WITH_CATBOOST: Mapping[str, Keys] = {
    "catboost": {"learners": ["catboost"]},
    "catboost, squared error": {"learners": ["catboost"], "catboost.loss_function": "RMSE"},
}
CANDIDATES: Mapping[str, Mapping[str, Keys]] = {
    "vectors": {  # what is read of texts and images
        "title or tags": {"columns.text_vectors": "post"},
        "16 components": {"columns.n_components": 16},
        "64 components": {"columns.n_components": 64},
        "128 components": {"columns.n_components": 128},
        "no image": {"columns.feature_blocks": ["metadata", "text", "prototype"]},
        "no text": {"columns.feature_blocks": ["metadata", "image", "prototype"]},
        "no prototype": {"columns.feature_blocks": ["metadata", "image", "text"]},
        "metadata and text": {"columns.feature_blocks": ["metadata", "text"]},
    },
    "feature_groups": {
        "no feature group": {"columns.feature_groups": []},
        **{f"only {group}": {"columns.feature_groups": [group]} for group in get_args(FeatureGroup)},
        "class_time, user_target, rhythm": {"columns.feature_groups": ["class_time", "user_target", "rhythm"]},
        "every feature group": {"columns.feature_groups": list(get_args(FeatureGroup))},
    },
    "prototype": {  # the block by its parts; x~ is attended_image
        "x~ alone": {"columns.prototype_parts": ["attended_image"]},
        "x~ and scalars": {"columns.prototype_parts": ["attended_image", "losses", "distance", "unseen"]},
        "x~, logits, scalars": {
            "columns.prototype_parts": ["attended_image", "logits", "losses", "distance", "unseen"]
        },
        "no prompts": {
            "columns.prototype_parts": [
                "attended_image", "attended_visual", "attended_text", "logits", "losses", "distance", "unseen",
            ]
        },
        "logits and scalars": {"columns.prototype_parts": ["logits", "losses", "distance", "unseen"]},
    },
    "ridges": {
        "no ridge": {"columns.oof_ridge": []},
        "no character ridge": {"columns.oof_ridge": ["image", "text", "prototype"]},
        "no prototype ridge": {"columns.oof_ridge": ["image", "text", "characters"]},
    },
    "target": {
        "no trend": {"detrend": "none"},
        "line": {"detrend": "linear"},
        "family of trends": {"detrend": "family"},
        "rank_gauss": {"target_transform": "rank_gauss"},
    },
    "rows": {
        "half-life of a year": {"sample_weight_half_life_days": 365.0},
        "half-life of 120 days": {"sample_weight_half_life_days": 120.0},
        "77 % of least class loss": {"row_selection.fraction": 0.77},
        "user as category": {"columns.uid_category": True},
        "30 % of the pasts hidden": {"history_dropout": 0.3},
    },
    "learners": {
        "absolute error": {"lightgbm.objective": "regression_l1"},
        "squared error": {"lightgbm.objective": "regression"},
        "huber": {"lightgbm.objective": "huber"},
        "extra trees": {"lightgbm.extra_trees": True},
        "squared error, extra trees": {"lightgbm.objective": "regression", "lightgbm.extra_trees": True},
        "columns drawn by node": {"lightgbm.feature_fraction": 1.0, "lightgbm.feature_fraction_bynode": 0.2},
        "squared error, extra trees, columns drawn by node": {
            "lightgbm.objective": "regression",
            "lightgbm.extra_trees": True,
            "lightgbm.feature_fraction": 1.0,
            "lightgbm.feature_fraction_bynode": 0.2,
        },
        "7 leaves": {"lightgbm.num_leaves": 7},
        "63 leaves": {"lightgbm.num_leaves": 63, "lightgbm.min_data_in_leaf": 20},
        **(WITH_CATBOOST if find_spec("catboost") else {}),
    },
}  # fmt: skip


def chosen_candidates(names: Sequence[str], file: Path | None, taken: Sequence[str]) -> dict[str, Keys]:
    """The candidates of some names or groups, and those of a file; all of CANDIDATES without either.

    Args:
        names: of candidates or groups.
        file: YAML file of further candidates, or None.
        taken: names that no candidate may have.

    Raises:
        ConfigError: a name is neither a candidate nor a group, or the file holds something else than candidates.
    """
    added = {} if file is None else read_candidates(file, taken)
    groups = dict(CANDIDATES)
    if added:
        groups[FILE] = added
    every = {name: keys for group in groups.values() for name, keys in group.items()}
    unknown = set(names) - {*every, *groups}
    if unknown:
        expected = f"expected groups ({', '.join(groups)}) or candidates ({', '.join(every)})"
        raise ConfigError(f"--candidates {' '.join(sorted(unknown))}: {expected}")
    if not names and not added:
        return every
    found = dict(added)
    for name in names:
        found |= groups[name] if name in groups else {name: every[name]}
    return found


def read_candidates(path: Path, taken: Sequence[str]) -> dict[str, Keys]:
    """The candidates of a YAML file: dotted keys of section stack by name.

    Raises:
        ConfigError: an entry is no mapping, or its name is among `taken`.
    """
    found = read_yaml(path)
    for name, keys in found.items():
        if not isinstance(keys, Mapping) or name in taken:
            raise ConfigError(
                f"{path}: {name}: expected a name other than {', '.join(taken)}, and below it keys of section stack "
                "with their values, such as `lightgbm.num_leaves: 63`"
            )
    return found


def changed(base: StackParams, name: str, keys: Keys) -> StackParams:
    """Section stack of a candidate.

    Raises:
        ConfigError: section stack has no such key, or does not take the value.
    """
    return Space("stack", base, {}).apply(keys, f"candidate '{name}'")
