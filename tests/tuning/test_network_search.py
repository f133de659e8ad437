"""The search over the network, on a project of random vectors and a tiny tower."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from ruamel.yaml import YAML

from popularity.config import load_params, read_yaml
from popularity.errors import ConfigError
from popularity.network.params import TrainParams
from popularity.profile import main as edit_params
from popularity.schema import IMAGES, POSTS, write_block, write_table, write_tokens
from popularity.tuning.network import NetworkObjective, NetworkSearchParams, Project, Settings, main, network_search
from popularity.tuning.study import run_search
from stages import featurize, split
from tests.encoders.tiny_encoders import image_params, save_bert, text_params
from tests.inference.small_world import EMBED, readable_posts
from tests.network.small_inputs import make_prototypes, random_block, random_outputs
from tests.random_posts import random_images
from tests.stack.small_stack import FEATURIZE, SPLIT, STACK, tree_bytes
from tests.training.small_training import train_params
from tests.tuning.small_tune import flags

SPACE: dict[str, Any] = {
    "lr_attention": {"low": 1e-4, "high": 1e-1, "log": True, "integer": False},
    "network.prompts.local_length": {"choices": [1, 2, 3]},
    "network.temperatures.visual": {"low": 0.01, "high": 0.1, "log": True, "integer": False},
}
TRAIN = train_params(epochs=1)


def write_params(folder: Path, space: dict[str, Any], **train: Any) -> None:
    columns = replace(STACK.columns, blocks=("metadata", "prototype"), prototype_parts=("attended_image", "logits"))
    sections = {
        "dataset": {"root": "data/small"},
        "split": asdict(SPLIT),
        "featurize": asdict(FEATURIZE),
        "embed_image": asdict(image_params()),
        "embed_text": asdict(text_params(weights=f"path:{folder / 'bert'}", max_tokens=12)),
        "embed_posts": asdict(EMBED),
        "train": {**asdict(TRAIN), **train},
        "stack": asdict(replace(STACK, columns=columns)),
        "tune_network": {"seed": 2, "trials": 7, "hours": 0.0, "storage": "sqlite", "space": space},
    }
    YAML().dump(json.loads(json.dumps(sections)), folder / "params.yaml")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder in which the graph ran up to prototypes and featurize."""
    folder = tmp_path_factory.mktemp("project")
    save_bert(folder / "bert")
    write_params(folder, SPACE)
    posts = readable_posts(train=140, test=30)
    outputs = random_outputs(posts, set(), set())
    interim, embeddings = folder / "data/interim", folder / "data/embeddings"
    write_table(posts, interim / "posts.parquet", POSTS)
    write_table(random_images(posts, seed=0), interim / "images.parquet", IMAGES)
    write_block(outputs.image, embeddings / "image", "pooled")
    for name in ("title", "tags"):
        write_block(random_block(posts["pid"].to_list(), 4, seed=3), embeddings / "text", name)
    write_block(outputs.text, embeddings / "text", "post")
    write_tokens(outputs.tokens, embeddings / "text", "tokens")
    make_prototypes(posts, outputs, folder / "models/prototypes")
    given = {"params": folder / "params.yaml", "posts": interim / "posts.parquet", "splits": interim / "splits.parquet"}
    split.main(flags({**given, "report": folder / "split.json", "resources": folder / "split.resources.json"}))
    more = {"images": interim / "images.parquet", "out": folder / "data/features"}
    more |= {"report": folder / "histories.json", "resources": folder / "f.json"}
    featurize.main(flags({**given, **more}))
    return folder


@pytest.fixture(autouse=True)
def no_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPULARITY_WORKERS", "0")


def of_project(folder: Path) -> tuple[Project, Settings]:
    project = Project(folder)
    return project, Settings.load(project)


def test_a_network_that_diverges_is_worth_a_constant(project: Path, tmp_path: Path) -> None:
    params = load_params("tune_network", NetworkSearchParams, project / "params.yaml")
    _, space = network_search(params, *of_project(project))
    objective = NetworkObjective(*of_project(project), space, tmp_path)
    objective.space = replace(space, base=replace(space.base, lr_prompt=1e30, clip_norm=1e9))
    assert [step.value for step in objective(space.default)] == [0.0, 1.0]


def test_a_search_writes_a_patch_that_can_be_applied(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(["--folder", str(project), "--out", str(out)])
    trials = pl.read_csv(out / "trials.csv")
    assert trials.columns == ["number", "state", "value", *sorted(SPACE), "top1", "mae_of_constant", "src"]
    assert trials.height == 7
    assert trials["lr_attention"][0] == TRAIN.lr_attention
    assert trials["top1"].n_unique() > 1
    completed = trials.filter(state="COMPLETE")
    worth = completed["mae_of_constant"] - completed["src"] - completed["top1"]
    assert completed["value"].to_list() == pytest.approx(worth.to_list())
    pruned = trials.filter(state="PRUNED")
    assert pruned["value"].to_list() == pytest.approx((-pruned["top1"]).to_list())
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
    assert read_yaml(params)["stack"] == read_yaml(project / "params.yaml")["stack"]


def test_fewer_trials_by_the_flag_and_none_left_behind(project: Path, tmp_path: Path) -> None:
    main(["--folder", str(project), "--out", str(tmp_path / "out"), "--trials", "1"])
    assert pl.read_csv(tmp_path / "out/trials.csv").height == 1
    study = json.loads((tmp_path / "out/study.json").read_text(encoding="utf-8"))
    assert study["best"] == study["default"]


@pytest.mark.parametrize(
    ("space", "train", "message"),
    [
        ({"transductive": {"choices": [True, False]}}, {}, r"tune_network\.space\.transductive: .*cannot be compared"),
        ({"seed": {"choices": [0, 1]}}, {}, r"tune_network\.space\.seed"),
        ({"network.attention.widths": {"choices": [1]}}, {}, r"section 'train' has no such key"),
        (SPACE, {"validation_share": 0.0}, r"train\.validation_share is 0"),
    ],
)
def test_a_search_that_could_not_be_judged_is_refused(
    project: Path, tmp_path: Path, space: dict[str, Any], train: dict[str, Any], message: str
) -> None:
    for name in ("data", "models", "bert"):
        (tmp_path / name).symlink_to(project / name)
    write_params(tmp_path, space, **train)
    with pytest.raises(ConfigError, match=message):
        network_search(
            load_params("tune_network", NetworkSearchParams, tmp_path / "params.yaml"), *of_project(tmp_path)
        )


def test_the_report_rows_are_neither_judged_nor_fitted_on(project: Path, tmp_path: Path) -> None:
    """Other labels there, the same trials: the network reads no label, and `matched` has none of those rows."""
    params = replace(load_params("tune_network", NetworkSearchParams, project / "params.yaml"), trials=1)
    search, space = network_search(params, *of_project(project))
    objective = NetworkObjective(*of_project(project), space, tmp_path)
    splits = pl.read_parquet(project / "data/interim/splits.parquet")
    scored = splits.filter(scheme="report", role="score")["pid"]
    for fold in objective.folds:
        assert not set(scored) & {*fold.fit["pid"], *fold.score["pid"]}
    trials = run_search(search, lambda: objective, state=tmp_path)
    known = objective.posts
    objective.posts = known.with_columns(
        label=pl.when(pl.col("pid").is_in(scored.implode())).then(99.0).otherwise(pl.col("label"))
    )
    *_, step = objective(space.default)
    assert step.value == trials[0].value
