"""A changed parameter reruns only what follows: real DVC in a clean clone, profile tiny."""

from __future__ import annotations

import pytest

from popularity.schema import PREDICTIONS, read_table
from tests.pipeline.conftest import Clone


@pytest.mark.parametrize(
    ("old_line", "new_line", "rerun"),
    [
        ("max_bin: 255\n", "max_bin: 31\n", ["select", "tune", "stack", "evaluate", "submit", "report"]),
        (
            "lr_prompt: 0.005\n",
            "lr_prompt: 0.01\n",
            ["train", "embed_posts", "select", "tune", "stack", "evaluate", "submit", "report"],
        ),
    ],
)
def test_a_changed_parameter_reruns_only_what_follows(
    clone: Clone, old_line: str, new_line: str, rerun: list[str]
) -> None:
    params = clone.root / "params.yaml"
    before = params.read_text(encoding="utf-8")
    predictions = clone.root / "data/stack/predictions.parquet"
    old = read_table(predictions, PREDICTIONS)
    try:
        assert old_line in before
        params.write_text(before.replace(old_line, new_line), encoding="utf-8")
        assert clone.stages_run(clone.run("dvc", "repro").stdout) == rerun
        assert not read_table(predictions, PREDICTIONS).equals(old)
    finally:
        params.write_text(before, encoding="utf-8")
        clone.run("dvc", "repro")
    assert read_table(predictions, PREDICTIONS).equals(old)
