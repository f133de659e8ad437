"""The search over the network, on a project of random vectors and a tiny tower."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from ruamel.yaml import YAML

from popularity.core.config import load_params, read_yaml
from popularity.core.contracts import IMAGES, POSTS, read_table, write_table
from popularity.core.errors import ConfigError
from popularity.core.vectors import write_block, write_tokens
from popularity.network.params import TrainParams
from popularity.profile import main as edit_params
from popularity.tuning.network import NetworkObjective, NetworkSearchParams, main, network_search
from popularity.tuning.results import best_of
from popularity.tuning.study import Search, Step, run_search
from tests.encoders.tiny_encoders import encoder_sections, image_params, save_bert, text_params
from tests.inference.small_world import readable_posts
from tests.network.small_inputs import make_prototypes, random_outputs
from tests.random_posts import random_images
from tests.repository import PAIR
from tests.stack.small_stack import tree_bytes
from tests.training.small_training import train_params

SPACE: dict[str, Any] = {
    "lr_attention": {"low": 1e-4, "high": 1e-1, "log": True, "integer": False},
    "network.prompts.local_length": {"choices": [1, 2, 3]},
    "network.temperatures.visual": {"low": 0.01, "high": 0.1, "log": True, "integer": False},
}
TRAIN = replace(train_params(epochs=1), lr_attention=1e-4)


def write_params(folder: Path, space: dict[str, Any], **train: Any) -> None:
    sections = {
        "dataset": {"root": "data/small"},
        **encoder_sections(image_params(), text_params(weights=f"path:{folder / 'bert'}", max_tokens=12)),
        "train": {**asdict(TRAIN), **train},
        "tune_network": {"seed": 2, "n_trials": 7, "timeout_hours": 0.0, "storage": "sqlite", "space": space},
    }
    YAML().dump(json.loads(json.dumps(sections)), folder / "params.yaml")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder in which the graph ran up to prototypes."""
    folder = tmp_path_factory.mktemp("project")
    save_bert(folder / "bert")
    write_params(folder, SPACE)
    posts = readable_posts(train=140, test=30)
    outputs = random_outputs(posts, set(), set())
    interim, embeddings = folder / "data/interim", folder / "data/embeddings"
    write_table(posts, interim / "posts.parquet", POSTS)
    write_table(random_images(posts, seed=0), interim / "images.parquet", IMAGES)
    write_block(outputs.image, embeddings / "image" / PAIR["image"], "pooled")
    write_block(outputs.text, embeddings / "text" / PAIR["text"], "post")
    write_tokens(outputs.tokens, embeddings / "text" / PAIR["text"], "tokens")
    make_prototypes(posts, outputs, folder / "models/prototypes")
    return folder


@pytest.fixture(autouse=True)
def no_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPULARITY_WORKERS", "0")


def of_project(folder: Path) -> Search:
    return network_search(load_params("tune_network", NetworkSearchParams, folder / "params.yaml"), folder)


def test_a_network_that_diverges_has_no_accuracy(project: Path, tmp_path: Path) -> None:
    space = of_project(project).space
    space = replace(space, base=replace(space.base, lr_prompt=1e30, clip_norm=1e9))
    assert list(NetworkObjective(project, space, tmp_path)(space.default)) == [Step(-0.0, {"top1": 0.0})]


def test_a_search_writes_a_patch_that_can_be_applied(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(["--folder", str(project), "--out", str(out)])
    trials = pl.read_csv(out / "trials.csv")
    assert trials.columns == ["number", "name", "state", "value", *sorted(SPACE), "top1"]
    assert trials.height == 7
    assert trials["lr_attention"][0] == TRAIN.lr_attention
    assert trials["top1"].n_unique() > 1
    assert set(trials["state"]) == {"COMPLETE"}
    assert trials["value"].to_list() == (-trials["top1"]).to_list()
    assert not list((project / ".state").rglob("*.db"))
    main(["--folder", str(project), "--out", str(tmp_path / "again")])
    assert tree_bytes(tmp_path / "again") == tree_bytes(out)

    best = json.loads((out / "study.json").read_text(encoding="utf-8"))["best"]["params"]
    patch, params = out / "best_params.yaml", tmp_path / "params.yaml"
    assert f"--patch {patch} --show" in capsys.readouterr().out
    before = (project / "params.yaml").read_text(encoding="utf-8").replace("epochs: 1", "epochs: 1  # kept")
    params.write_text(before, encoding="utf-8")
    edit_params(["--patch", str(patch), "--params", str(params), "--show"])
    assert params.read_text(encoding="utf-8") == before
    assert "+  lr_attention:" in capsys.readouterr().out
    edit_params(["--patch", str(patch), "--params", str(params)])
    applied = load_params("train", TrainParams, params)
    assert applied.lr_attention == best["lr_attention"]
    assert applied.network.prompts.local_length == best["network.prompts.local_length"]
    assert applied.network.temperatures.visual == best["network.temperatures.visual"]
    assert "epochs: 1  # kept" in params.read_text(encoding="utf-8")
    assert read_yaml(params)["embed_text"] == read_yaml(project / "params.yaml")["embed_text"]


def test_fewer_trials_by_the_flag_and_none_left_behind(project: Path, tmp_path: Path) -> None:
    main(["--folder", str(project), "--out", str(tmp_path / "out"), "--n-trials", "1"])
    assert pl.read_csv(tmp_path / "out/trials.csv").height == 1
    study = json.loads((tmp_path / "out/study.json").read_text(encoding="utf-8"))
    assert study["best"]["name"] == "default"


@pytest.mark.parametrize(
    ("space", "train", "message"),
    [
        ({"transductive": {"choices": [True, False]}}, {}, r"tune_network\.space\.transductive: .*cannot be compared"),
        ({"seed": {"choices": [0, 1]}}, {}, r"tune_network\.space\.seed"),
        ({"network.attention.widths": {"choices": [1]}}, {}, r"section 'train' has no such key"),
        (SPACE, {"valid_fraction": 0.0}, r"train\.valid_fraction is 0"),
    ],
)
def test_a_search_that_could_not_be_scored_is_refused(
    project: Path, tmp_path: Path, space: dict[str, Any], train: dict[str, Any], message: str
) -> None:
    for name in ("data", "models", "bert"):
        (tmp_path / name).symlink_to(project / name)
    write_params(tmp_path, space, **train)
    with pytest.raises(ConfigError, match=message):
        of_project(tmp_path)


def test_the_best_value_is_that_of_its_parameters_scored_again(project: Path, tmp_path: Path) -> None:
    search = of_project(project)
    search = replace(search, budget=replace(search.budget, n_trials=3))
    trials = run_search(search, partial(NetworkObjective, project, search.space, tmp_path), state=tmp_path)
    best = best_of(trials)
    assert best is not None
    assert list(NetworkObjective(project, search.space, tmp_path)(best.values)) == [Step(best.value, best.metrics)]


@pytest.mark.parametrize("labels", ["permuted", "taken away"])
def test_trials_are_the_same_with_other_labels_and_with_none(project: Path, tmp_path: Path, labels: str) -> None:
    other = tmp_path / "other"
    (other / "data/interim").mkdir(parents=True)
    for name in ("params.yaml", "models", "data/embeddings", "data/interim/images.parquet"):
        (other / name).symlink_to(project / name)
    posts = read_table(project / "data/interim/posts.parquet", POSTS)
    label = pl.col("label").reverse() if labels == "permuted" else pl.lit(None, pl.Float64)
    changed = posts.with_columns(label=label.over("split") if labels == "permuted" else label)
    assert not changed["label"].equals(posts["label"])
    write_table(changed, other / "data/interim/posts.parquet", POSTS)
    for folder, name in ((project, "out"), (other, "other_out")):
        main(["--folder", str(folder), "--out", str(tmp_path / name), "--n-trials", "3"])
    assert tree_bytes(tmp_path / "other_out") == tree_bytes(tmp_path / "out")
