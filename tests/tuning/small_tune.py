"""What stage tune reads, small: posts with signal, split and featurized, a space, and the stage's flags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl

from popularity.core.config import SEARCH, leaves, nested, patched
from popularity.core.contracts import IMAGES, POSTS, write_table
from popularity.core.vectors import write_block
from popularity.stack import Blocks, StackParams
from stages import featurize, split, tune
from tests.encoders.tiny_encoders import encoder_sections
from tests.random_posts import random_images
from tests.stack.small_stack import FEATURIZE, SPLIT, STACK, write_tables

SMALL = replace(STACK, num_boost_round=25)
SPACE: dict[str, Any] = {
    "target_transform": {"choices": ["none", "rank_gauss"]},
    "columns.feature_blocks": {
        "choices": [["metadata", "image", "text", "prototype"], ["metadata", "image"], ["image"]]
    },
    "row_selection.fraction": {"choices": [1.0, 0.7]},
    "sample_weight_half_life_days": {"low": 50.0, "high": 900.0, "log": True, "integer": False},
    "lightgbm.num_leaves": {"low": 2, "high": 15, "log": True, "integer": True},
    "lightgbm.learning_rate": {"low": 0.05, "high": 0.5, "log": True, "integer": False},
    "lightgbm.min_data_in_leaf": {"low": 3, "high": 40, "log": True, "integer": True},
}


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "images": {"columns.feature_blocks": ["image"]},
    "ranks": {"target_transform": "rank_gauss", "lightgbm.num_leaves": 3},
    "same": {},
}


def with_search(stack: StackParams, space: Mapping[str, Any] = SPACE) -> tuple[dict[str, Any], dict[str, Any]]:
    """Section stack where the keys of the space are `search`, and tune.start with its values."""
    section: dict[str, Any] = json.loads(json.dumps(asdict(stack)))
    known = {".".join(key): value for key, value in leaves(section).items()}
    start = {key: known[key] for key in space if key in known}
    return patched(section, nested(dict.fromkeys(start, SEARCH))), start


def write_params(file: Path, stack: Mapping[str, Any] | None = None, **changes: Any) -> None:
    """Sections split, featurize, stack and tune; `stack` holds values of keys that are not searched, by dotted key."""
    space = changes.get("space", SPACE)
    section, start = with_search(SMALL, space)
    tune_section = {
        "seed": 1, "n_trials": 5, "timeout_hours": 0.0, "storage": "sqlite", "candidates": [], "n_members": 2,
        "configurations": CONFIGURATIONS if space == SPACE else {}, "schemes": ["forward", "group"],
        "effort": {"n_seeds": 1, "max_train_rows": 0, "learning_rate_factor": 1.0}, "start": start, "space": space,
    }  # fmt: skip
    sections = {"split": asdict(SPLIT), "featurize": asdict(FEATURIZE), **encoder_sections()}
    sections["stack"] = patched(section, nested(stack or {}))
    file.write_text(json.dumps({**sections, "tune": {**tune_section, **changes}}), encoding="utf-8")


def flags(paths: Mapping[str, Path]) -> list[str]:
    return [part for name, path in paths.items() for part in (f"--{name}", str(path))]


def write_inputs(root: Path, posts: pl.DataFrame, blocks: Blocks) -> None:
    """Everything that the stages tune and stack read, in `root`."""
    write_params(root / "params.yaml")
    write_table(posts, root / "posts.parquet", POSTS)
    write_table(random_images(posts, 0), root / "images.parquet", IMAGES)
    for name, block in blocks.vectors.items():
        folder, stored = {"image": ("image", "pooled"), **dict.fromkeys(("title", "tags", "post"), ("text", name))}.get(
            name, ("prototype", name)
        )
        write_block(block, root / folder, stored)
    write_tables(blocks, root / "prototype")
    given = {"params": root / "params.yaml", "posts": root / "posts.parquet", "splits": root / "splits.parquet"}
    split.main(flags({**given, "summary": root / "split.json", "resources": root / "split.resources.json"}))
    more = {"images": root / "images.parquet", "out": root / "features", "summary": root / "target_statistics.json"}
    featurize.main(flags({**given, **more, "resources": root / "featurize.resources.json"}))


def input_flags(inputs: Path) -> list[str]:
    """Those that the stages tune and stack share."""
    tables = {name: inputs / f"{name}.parquet" for name in ("posts", "splits")}
    return flags({**tables, **{name: inputs / name for name in ("features", "image", "text", "prototype")}})


def tune_flags(inputs: Path, out: Path, params: Path | None = None) -> list[str]:
    own = {"params": params or inputs / "params.yaml", "out": out / "tuning", "resources": out / "tune.json"}
    return [*input_flags(inputs), *flags({**own, "state": out / "state"})]


def run_tune(inputs: Path, out: Path, params: Path | None = None) -> Path:
    """The folder that the stage writes, run in this process."""
    tune.main(tune_flags(inputs, out, params))
    return out / "tuning"
