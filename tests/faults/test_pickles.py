"""A pickle instead of any file that stages read is never run: the stage names it and ends."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from ruamel.yaml import YAML

from popularity.core.errors import ContractError, DataError
from popularity.stack import StackModel
from stages import train
from tests.encoders.tiny_encoders import encoder_sections
from tests.inference.small_world import World
from tests.network.small_network import VALUES
from tests.repository import stage_flags
from tests.stack.test_stack_stage import inputs, run_stack  # noqa: F401  # a fixture
from tests.training.small_training import TRAIN

pytestmark = pytest.mark.slow


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


def bare(payload: Payload) -> bytes:
    return pickle.dumps({"weights": payload})


def by_torch(payload: Payload) -> bytes:
    stream = io.BytesIO()
    torch.save({"weights": payload}, stream)
    return stream.getvalue()


def by_numpy(payload: Payload) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([payload], dtype=object), allow_pickle=True)
    return stream.getvalue()


def by_numpy_in_zip(payload: Payload) -> bytes:
    """Every array of any .npz that is read by one of these names."""
    stream = io.BytesIO()
    names = ("vectors", "image_mean", "pooled_mean", "head_mean", "mean", "image_components", "weights", "codes")
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(f"{name}.npy", by_numpy(payload))
    return stream.getvalue()


FORMS: list[Callable[[Payload], bytes]] = [bare, by_torch, by_numpy, by_numpy_in_zip]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_the_forms_are_dangerous(form: Callable[[Payload], bytes], tmp_path: Path) -> None:
    """Read carelessly, each of them does what it holds: the tests below can fail."""
    (tmp_path / "file").write_bytes(form(Payload(tmp_path / "proof")))
    if form is bare:
        pickle.loads((tmp_path / "file").read_bytes())
    elif form is by_torch:
        torch.load(tmp_path / "file", weights_only=False)
    else:
        loaded = np.load(tmp_path / "file", allow_pickle=True)
        if form is by_numpy_in_zip:
            loaded["vectors"]
    assert (tmp_path / "proof").is_dir()


NETWORK_FILES = [
    "network/network.safetensors",
    "prototypes/prototypes.safetensors",
    "image/pooled.npy",
    "text/post.npy",
    "text/tokens.npy",
    "text/tokens.offsets.npy",
    "posts.parquet",
    "prototypes/classes.parquet",
]


def test_what_embed_posts_reads(world: World) -> None:
    world.make_network()
    proof = world.folder / "proof"
    for name in NETWORK_FILES:
        path = world.folder / name
        whole = path.read_bytes()
        for form in FORMS:
            path.write_bytes(form(Payload(proof)))
            with pytest.raises(ContractError) as caught:
                world.embed()
            assert str(path) in str(caught.value)
            assert "next: " in str(caught.value)
            assert not proof.exists()
        path.write_bytes(whole)
    assert not (world.folder / "out").exists()
    world.embed()


def test_finished_parts_of_embed_posts(world: World) -> None:
    world.make_network()
    proof, taken = world.folder / "proof", world.folder / "out-explain"
    taken.write_text("a file in the way of the second output: finished parts stay")
    with pytest.raises(NotADirectoryError):
        world.embed()
    (part, *_) = sorted((world.folder / ".state/embed_posts").glob("*/shard-*.npz"))
    whole = part.read_bytes()
    taken.unlink()
    for form in FORMS:
        part.write_bytes(form(Payload(proof)))
        with pytest.raises(ContractError):
            world.embed()
        assert not proof.exists()
    part.write_bytes(whole)
    world.embed()


def train_arguments(world: World) -> list[str]:
    sections = {
        **encoder_sections(world.towers.image, world.towers.text),
        "train": {**TRAIN, "epochs": 2, "network": VALUES},
    }
    YAML().dump(sections, world.folder / "train.yaml")
    paths = {"params": "train.yaml", "posts": "posts.parquet", "images": "images.parquet", "out": "trained"}
    paths |= {key: key for key in ("root", "image", "text", "prototypes", "live", "state")}
    paths |= {"resources": "train.json"}
    return stage_flags("train", world.folder, **paths)


def test_the_checkpoint_of_a_training(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.folder)
    proof, taken = world.folder / "proof", world.folder / "trained"
    taken.write_text("a file in the way of the output: the checkpoint stays")

    def run() -> None:
        AcceleratorState._reset_state()
        train.main(train_arguments(world))

    with pytest.raises(NotADirectoryError):
        run()
    (checkpoint,) = (world.folder / "state/train").glob("*/checkpoint")
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != "history.json"}
    assert {"model.safetensors", "optimizer.bin", "random_states_0.pkl", "schedule.json"} <= set(files)
    for name, whole in files.items():
        for form in FORMS:
            (checkpoint / name).write_bytes(form(Payload(proof)))
            with pytest.raises(DataError, match="the checkpoint cannot be read") as caught:
                run()
            assert f"rm -r {checkpoint}" in str(caught.value)
            assert not proof.exists()
        (checkpoint / name).write_bytes(whole)
    taken.unlink()
    run()
    assert (world.folder / "trained/network.safetensors").is_file()


def test_a_fitted_stack(inputs: Path, tmp_path: Path) -> None:  # noqa: F811
    run_stack(inputs, tmp_path)
    model = tmp_path / "models" / "stack"
    read = [path for path in sorted(model.iterdir()) if path.suffix in (".npz", ".txt")]
    assert {path.suffix for path in read} == {".npz", ".txt"}
    for path in read:
        whole = path.read_bytes()
        for form in FORMS:
            path.write_bytes(form(Payload(tmp_path / "proof")))
            with pytest.raises(ContractError, match=str(path)):
                StackModel.load(model)
            assert not (tmp_path / "proof").exists()
        path.write_bytes(whole)
    StackModel.load(model)
