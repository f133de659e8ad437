"""A changed parameter reruns only what follows: real DVC in a clean clone, profile tiny."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from popularity.core.config import read_yaml
from popularity.core.contracts import PREDICTIONS, read_table
from tests.clones import Clone, copy_of


@contextmanager
def changed(clone: Clone, old_line: str, new_line: str) -> Iterator[None]:
    """Another line in params.yaml inside the block."""
    params = clone.root / "params.yaml"
    before = params.read_text(encoding="utf-8")
    assert old_line in before
    params.write_text(before.replace(old_line, new_line), encoding="utf-8")
    try:
        yield
    finally:
        params.write_text(before, encoding="utf-8")


def test_a_changed_parameter_reruns_only_what_follows(clone: Clone, tmp_path: Path) -> None:
    copy = copy_of(clone, tmp_path / "clone")
    predictions = copy.root / "data/ensemble/predictions.parquet"
    old = read_table(predictions, PREDICTIONS)
    with changed(copy, "lr_prompt: 0.005\n", "lr_prompt: 0.01\n"):
        assert copy.stages_run(copy.run("dvc", "repro").stdout) == [
            "train", "embed_posts", "tune", "stack", "ensemble", "evaluate", "submit", "report",
        ]  # fmt: skip
    assert not read_table(predictions, PREDICTIONS).equals(old)


def test_another_encoder_runs_its_own_stage(clone: Clone, tmp_path: Path) -> None:
    """And the links of stack_vectors, whose bytes stay, so that no stage after it runs but the report."""
    copy = copy_of(clone, tmp_path / "clone")
    params = copy.root / "params.yaml"
    entry = read_yaml(params)["embed_text"]["minilm"] | {"max_tokens": 8}
    text = params.read_text(encoding="utf-8")
    params.write_text(text.replace("  minilm:\n", f"  other: {json.dumps(entry)}\n  minilm:\n", 1), encoding="utf-8")
    ran = copy.entries_run(copy.run("dvc", "repro", "report").stdout)
    assert ran == ["embed_text@other", "stack_vectors", "report"]
    with changed(copy, "    text: minilm\n\nprototypes", "    text: [minilm, other]\n\nprototypes"):
        found = json.loads(copy.run("dvc", "status", "--json").stdout)
        assert sorted(found) == ["report", "stack_vectors", "submit"]
        copy.run("dvc", "repro", "stack_vectors")
        found = json.loads(copy.run("dvc", "status", "--json").stdout)
        assert sorted(found) == ["report", "stack", "submit", "tune"]


def test_a_parameter_of_the_stack_is_read_by_those_that_fit_and_show_it(clone: Clone) -> None:
    with changed(clone, "max_bin: 255\n", "max_bin: 31\n"):
        assert sorted(json.loads(clone.run("dvc", "status", "--json").stdout)) == ["report", "stack", "tune"]
    assert json.loads(clone.run("dvc", "status", "--json").stdout) == {}
