"""The stage ensemble on files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from popularity.core.contracts import MEMBER_PREDICTIONS, POSTS, PREDICTIONS, read_table, write_table
from popularity.core.errors import ConfigError
from stages import ensemble
from tests.ensemble.test_members import PARAMS, made
from tests.random_posts import random_posts

BASELINES = ("constant", "metadata", "user_mean")


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """What the stage reads, in a folder."""
    predictions, text, labels = made()
    constant = predictions.filter(model="constant")
    baselines = [constant.with_columns(model=pl.lit(name)) for name in BASELINES if name != "constant"]
    posts = random_posts(0, train=labels.height, test=1).sort("pid").head(labels.height)
    keyed = labels.sort("pid")
    posts = posts.with_columns(pid=keyed["pid"], uid=keyed["uid"], label=keyed["label"], split=pl.lit("train"))
    write_table(posts, tmp_path / "posts.parquet", POSTS)
    table = pl.concat([predictions, *baselines]).sort(PREDICTIONS.key)
    write_table(table, tmp_path / "stack/predictions.parquet", PREDICTIONS)
    importance = "model,block,feature,gain\na,metadata,hour,3.0\na,text,x,1.0\nb,metadata,hour,5.0\n"
    (tmp_path / "stack/importance.csv").write_text(importance, encoding="utf-8")
    write_table(text, tmp_path / "text/predictions.parquet", MEMBER_PREDICTIONS)
    (tmp_path / "members").mkdir()
    (tmp_path / "params.yaml").write_text(json.dumps({"ensemble": asdict(PARAMS)}), encoding="utf-8")
    return tmp_path


def run(inputs: Path, name: str = "out", **params: Any) -> dict[str, Any]:
    """The weights that the stage writes."""
    file = inputs / f"{name}.yaml"
    file.write_text(json.dumps({"ensemble": {**asdict(PARAMS), **params}}), encoding="utf-8")
    paths = {
        "params": file, "posts": inputs / "posts.parquet", "stack": inputs / "stack", "text-model": inputs / "text",
        "members": inputs / "members", "predictions": inputs / name / "data",
        "models": inputs / name / "models", "resources": inputs / f"{name}.json",
    }  # fmt: skip
    ensemble.main([part for flag, path in paths.items() for part in (f"--{flag}", str(path))])
    content: dict[str, Any] = json.loads((inputs / name / "models/weights.json").read_text(encoding="utf-8"))
    return content


def test_outs_are_the_same_bytes_in_two_runs(inputs: Path) -> None:
    weights = run(inputs)
    assert set(weights["weights"]) == {"a", "b", "text_model"}
    assert sorted(path.name for path in (inputs / "out/models").iterdir()) == ["manifest.json", "weights.json"]
    predictions = read_table(inputs / "out/data/predictions.parquet", PREDICTIONS)
    assert sorted(predictions["model"].unique()) == ["constant", "metadata", "stack", "user_mean"]
    given = read_table(inputs / "stack/predictions.parquet", PREDICTIONS)
    assert predictions.filter(model="stack").height == given.filter(model="a").height
    for name in BASELINES:
        assert predictions.filter(model=name).equals(given.filter(model=name))
    importance = pl.read_csv(inputs / "out/data/importance.csv")
    assert importance.columns == ["block", "feature", "gain"]
    manifest = json.loads((inputs / "out/models/manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["metrics"]) == {"forward", "holdout"}
    run(inputs, "again")
    files = [file.relative_to(inputs / "out") for file in (inputs / "out").rglob("*") if file.is_file()]
    assert len(files) == 4
    assert all((inputs / "again" / file).read_bytes() == (inputs / "out" / file).read_bytes() for file in files)


def test_without_the_text_model_the_stack_is_alone(inputs: Path) -> None:
    assert set(run(inputs, text_model=False)["weights"]) == {"a", "b"}


def test_a_file_is_a_member(inputs: Path) -> None:
    text = read_table(inputs / "text/predictions.parquet", MEMBER_PREDICTIONS)
    write_table(text, inputs / "members/theirs.parquet", MEMBER_PREDICTIONS)
    found = run(inputs, members=["theirs"])
    assert (set(found["weights"]), found["files"]) == ({"a", "b", "text_model", "theirs"}, ["theirs"])


def test_bad_parameters_are_named(inputs: Path) -> None:
    with pytest.raises(ConfigError, match=r"ensemble\.shrinkage"):
        run(inputs, shrinkage=1.5)
