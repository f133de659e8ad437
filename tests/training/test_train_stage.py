"""The stage on a small data set with real tiny encoders: outputs, kills, live towers, DVCLive's curves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from accelerate.state import AcceleratorState
from ruamel.yaml import YAML
from safetensors.torch import load_file

from popularity.core.contracts import IMAGES, POSTS, read_table, write_table
from popularity.core.errors import DataError
from popularity.core.vectors import read_block
from popularity.encoders.image import load_image_encoder
from popularity.encoders.image_blocks import embed_images
from popularity.encoders.prompting import load_prompt_tower, unfreeze_last
from popularity.encoders.text_blocks import embed_texts
from popularity.network.build import load_network
from popularity.network.inputs import EncoderOutputs, EncoderPair, read_network_data
from stages import prototypes, train
from tests.encoders.tiny_encoders import encoder_sections, image_params, make_images, save_bert, save_clip, text_params
from tests.network.small_network import VALUES, changed
from tests.processes import PATIENCE, wait_for
from tests.repository import REPOSITORY, stage_flags
from tests.small_tables import small_posts
from tests.training.small_training import TRAIN, train_params


@dataclass(frozen=True)
class Project:
    """A folder in which all stages before `train` ran."""

    folder: Path
    towers: EncoderPair

    def write_params(self, **changes: Any) -> None:
        network = changed(VALUES, {name: value for name, value in changes.items() if name not in TRAIN})
        own = {name: value for name, value in changes.items() if name in TRAIN}
        sections = {
            **encoder_sections(self.towers.image, self.towers.text),
            "prototypes": {"seed": 0, "max_per_class": 8, "class_name_format": "auto"},
            "train": {**TRAIN, "batch_size": 8, **own, "network": network},
        }
        YAML().dump(sections, self.folder / "params.yaml")

    def arguments(self, name: str) -> list[str]:
        """Of the stage, with outputs below `name`."""
        given = {"root": "data", "posts": "posts.parquet", "images": "images.parquet"}
        given |= {input_folder: input_folder for input_folder in ("image", "text", "prototypes")}
        outs = {"out": "network", "live": "live", "resources": "train.json", "state": "state"}
        given |= {flag: f"{name}/{path}" for flag, path in outs.items()}
        return stage_flags("train", self.folder, **given)

    def train(self, name: str) -> dict[str, bytes]:
        """The bytes of what the stage writes below `name`."""
        AcceleratorState._reset_state()
        train.main(self.arguments(name))
        return self.written(name)

    def written(self, name: str) -> dict[str, bytes]:
        """The bytes of what the stage wrote below `name`."""
        written = [*self.folder.glob(f"{name}/network/*"), *self.folder.glob(f"{name}/live/**/*")]
        return {str(file.relative_to(self.folder / name)): file.read_bytes() for file in written if file.is_file()}


def make_project(folder: Path, towers: EncoderPair) -> Project:
    """20 posts, two of them without a readable image, one without a text."""
    posts = small_posts(train=16, test=4)
    texts = ["cat at the sea", "dog", "sunset of the sea", "", "the cat"]
    pids = read_table(folder / "images.parquet", IMAGES)["pid"].sort()
    named = [
        pl.col(name).str.replace_many([f"Class {index}" for index in range(4)], ["cat", "dog", "sea", "the sunset"])
        for name in ("subcategory", "concept")
    ]
    posts = posts.with_columns(*named, pid=pids, title=pl.Series([texts[row % 5] for row in range(20)]))
    write_table(posts, folder / "posts.parquet", POSTS)
    project = Project(folder, towers)
    project.write_params()
    embed_images(folder / "data", folder / "images.parquet", folder / "image", towers.image)
    embed_texts(folder / "posts.parquet", folder / "text", towers.text)
    paths = {"posts": "posts.parquet", "out": "prototypes"} | {name: name for name in ("image", "text")}
    prototypes.main(stage_flags("prototypes", folder, **paths))
    return project


@pytest.fixture(scope="module", params=["clip", "timm and bert"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("project")
    image_set = make_images(folder)
    if request.param == "clip":
        weights = f"path:{save_clip(folder / 'clip')}"
        image = image_params(loader="clip_image", model="clip", weights=weights)
        text = text_params(loader="clip_text", weights=weights)
    else:
        image, text = image_set.params(), text_params(weights=f"path:{save_bert(folder / 'bert')}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("POPULARITY_WORKERS", "0")
        return make_project(
            folder, EncoderPair(image, type(text)(**{**vars(text), "max_tokens": 12, "model": image.model}))
        )


@pytest.fixture
def project(made: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy that a test may change; the working directory is its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POPULARITY_WORKERS", "0")
    for path in made.folder.iterdir():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    return Project(tmp_path, made.towers)


def test_outputs(project: Project) -> None:
    written = project.train("one")
    content = json.loads(written["network/network.json"])
    epochs = len(content["history"])
    assert epochs == TRAIN["epochs"]
    table = written["live/plots/metrics/train/loss.tsv"].decode().splitlines()
    assert table[0].split("\t") == ["step", "loss"]
    assert [float(line.split("\t")[1]) for line in table[1:]] == [epoch["train/loss"] for epoch in content["history"]]
    last = json.loads(written["live/metrics.json"])
    assert last["validation"]["top1"]["mean"] == content["history"][-1]["validation/top1/mean"]
    manifest = json.loads(written["network/manifest.json"])
    assert manifest["metrics"]["validation/top1/mean"] == content["history"][-1]["validation/top1/mean"]
    assert not any(name.startswith("train/") for name in manifest["metrics"])
    assert manifest["params"]["train"] == content["train"]
    assert set(manifest["params"]) == {"train", "embed_image", "embed_text"}
    assert set(manifest["inputs"]) == {"posts", "images", "image", "text", "prototypes"}
    assert json.loads(Path("one/train.json").read_text())["stage"] == "train"
    assert not list(Path("one/state/train").iterdir())
    # The network's file holds no frozen tower: that stays with its encoder.
    names = load_file("one/network/network.safetensors").keys()
    assert {name.partition(".")[0] for name in names} == {
        "global_prompt",
        "local_prompt",
        "attention",
        "log_temperatures",
    }
    inputs = read_network_data(
        read_table(Path("posts.parquet"), POSTS),
        EncoderOutputs.read(Path("image"), Path("text")),
        Path("prototypes"),
        train_params(),
    )
    network, params = load_network(Path("one/network"), inputs, project.towers)
    assert params.epochs == epochs
    assert not network.training
    assert project.train("again") == written


@pytest.mark.parametrize("made", ["clip"], indirect=True)
def test_a_killed_run_goes_on_after_its_last_epoch(project: Project) -> None:
    project.write_params(epochs=40, **{"attention.dropout": 0.2})
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'src'}", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "stages.train", *project.arguments("stopped")]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    wait_for(lambda: finished_epochs("stopped") > 0, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < finished_epochs("stopped") < 40
    assert not Path("stopped/network").exists()
    threads = torch.get_num_threads()
    stopped, whole = project.train("stopped"), project.train("whole")
    assert stopped.keys() == whole.keys()
    assert [name for name in whole if stopped[name] != whole[name]] == []
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("made", ["clip"], indirect=True)
def test_a_run_that_is_killed_within_an_epoch_ends_in_the_same_bytes(project: Project) -> None:
    """Killed by the system, after a checkpoint within an epoch: nothing of the process is asked or cleaned up."""
    # A checkpoint after every step.
    project.write_params(
        batch_size=2, valid_fraction=0.2, epochs=4, checkpoint_minutes=1e-6, **{"attention.dropout": 0.2}
    )
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'src'}", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "stages.train", *project.arguments("killed")]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while True:
        wait_for(lambda: is_within_an_epoch("killed"), process)
        process.send_signal(signal.SIGSTOP)  # else it might end the epoch before the kill
        if is_within_an_epoch("killed"):
            break
        process.send_signal(signal.SIGCONT)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not Path("killed/network").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch" in done.stderr
    killed, whole = project.written("killed"), project.train("whole")
    assert killed.keys() == whole.keys()
    assert [name for name in whole if killed[name] != whole[name]] == []


def is_within_an_epoch(name: str) -> bool:
    """Whether the checkpoint is of the second epoch or a later one, between its first step and its last."""
    found = list(Path(name).glob("state/train/*/checkpoint/begun.json"))
    try:
        return bool(found and finished_epochs(name) > 0 and json.loads(found[0].read_text())["steps"] > 0)
    except FileNotFoundError:  # it is being replaced
        return False


def finished_epochs(name: str) -> int:
    found = list(Path(name).glob("state/train/*/checkpoint/history.json"))
    return len(json.loads(found[0].read_text())) if found else 0


def test_unfrozen_towers_read_images_and_texts_and_train_their_last_blocks(project: Project) -> None:
    block = read_block(Path("image"), "pooled")
    assert len(block.pids) == 18  # of 20 posts: some that train lack an image
    project.write_params(unfreeze_layers=1, lr_tower=1e-2, valid_fraction=0.0)
    project.train("live")
    trained = load_file("live/network/network.safetensors")
    for name, tower in (
        ("tower", load_prompt_tower(project.towers.text)),
        ("image_tower", load_image_encoder(project.towers.image)),
    ):
        chosen = {id(parameter) for parameter in unfreeze_last(tower, 1)}
        expected = {key for key, parameter in tower.named_parameters() if id(parameter) in chosen}
        before = tower.state_dict()
        assert expected
        assert expected < set(before)
        after = {key.removeprefix(f"{name}."): value for key, value in trained.items() if key.startswith(f"{name}.")}
        assert after.keys() == before.keys()
        moved = {key for key in before if not torch.equal(before[key], after[key])}
        assert moved <= expected  # neither the blocks before nor running statistics
        # A key's bias has no gradient (a softmax does not see it), nor has an activation that is never on.
        assert len(moved) > 0.8 * len(expected)


def test_images_that_are_read_are_those_of_the_post(project: Project) -> None:
    """Live towers at rate 0 train as cached vectors do, up to the float16 in which those are stored."""
    project.write_params(epochs=2)
    project.train("cached")
    project.write_params(epochs=2, unfreeze_layers=1, lr_tower=0.0)
    project.train("live")
    cached, live = (
        json.loads(Path(f"{name}/network/network.json").read_text())["history"] for name in ("cached", "live")
    )
    for one, other in zip(cached, live, strict=True):
        for name in one:
            if "top" not in name:
                assert other[name] == pytest.approx(one[name], rel=0.02), name


@pytest.mark.parametrize("made", ["clip"], indirect=True)
def test_a_repository_without_a_commit(project: Project) -> None:
    subprocess.run(["git", "init", "--quiet", "."], check=True)
    with pytest.raises(DataError, match="at least one commit"):
        project.train("one")
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *identity, "commit", "--quiet", "--allow-empty", "-m", "start"], check=True)
    assert "live/metrics.json" in project.train("one")


@pytest.mark.parametrize("made", ["clip"], indirect=True)
def test_two_processes_make_the_prototypes_of_one(project: Project) -> None:
    """Each encodes a part of the representatives. One epoch: the prototypes are those of the untrained towers."""
    project.write_params(unfreeze_layers=1, epochs=1)
    project.train("one")
    environment = {**os.environ, "POPULARITY_TOPOLOGY": "two_cpu_processes", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'src'}", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "popularity.launch", "stages.train", *project.arguments("two")]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    one, two = (
        {name: values for name, values in load_file(f"{run}/network/network.safetensors").items() if "adapted" in name}
        for run in ("one", "two")
    )
    assert {"adapted.members.visual", "adapted.members.text", "adapted.subcategory.visual_sum"} <= one.keys()
    for name, values in one.items():
        torch.testing.assert_close(two[name], values, atol=2e-3, rtol=0, msg=name)
    assert (one["adapted.members.text"].float().norm(dim=1) > 0.9).all()
