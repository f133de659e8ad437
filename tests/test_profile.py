from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import polars as pl
import pytest

from popularity.core.config import leaves, load_params, read_yaml
from popularity.core.errors import ConfigError
from popularity.evaluation.scores import EvaluateConfig
from popularity.network.inputs import training_rows
from popularity.network.params import TrainParams
from popularity.profile import main, read_profiles
from popularity.training.batches import BatchPlan, training_steps
from tests.repository import PROFILES, REPOSITORY, profile_text, write_profile


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the repository's params.yaml, in the demo profile, and of its profiles."""
    write_profile(tmp_path, "demo")
    shutil.copytree(PROFILES, tmp_path / "profiles")
    return tmp_path


def _switch(project: Path, name: str, *more: str) -> None:
    main([name, "--params", str(project / "params.yaml"), "--profiles", str(project / "profiles"), *more])


def _text(project: Path) -> str:
    return (project / "params.yaml").read_text(encoding="utf-8")


def test_the_committed_parameters_are_those_of_profile_demo() -> None:
    """A clean clone starts from them."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("no git repository: whether the file is as it was committed, nobody can say")
    changed = subprocess.run(
        ["git", "status", "--porcelain", "params.yaml"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    if changed.stdout:
        pytest.skip("params.yaml has been edited since the last commit")
    assert (REPOSITORY / "params.yaml").read_text(encoding="utf-8") == profile_text("demo")


def test_the_profiles_exist_and_leave_the_data_set_alone() -> None:
    profiles = read_profiles(PROFILES)
    assert set(profiles) == {"tiny", "demo", "full", "paper"}
    assert not any(key[0] in ("dataset", "profile") for values in profiles.values() for key in values)


def test_there_and_back_gives_the_same_bytes(project: Path) -> None:
    before = _text(project)
    for name in ("tiny", "full", "paper", "tiny", "demo"):
        _switch(project, name)
    assert _text(project) == before


@pytest.mark.parametrize("name", ["tiny", "full", "paper"])
def test_only_listed_values_change_and_comments_stay(project: Path, name: str) -> None:
    before, old = leaves(read_yaml(project / "params.yaml")), _text(project)
    _switch(project, name)
    after = leaves(read_yaml(project / "params.yaml"))
    assert list(after) == list(before)
    profile = leaves(read_yaml(project / "profiles" / f"{name}.yaml"))
    assert after == {**before, **profile, ("profile",): name}
    assert [line.partition("#")[2] for line in _text(project).splitlines()] == [
        line.partition("#")[2] for line in old.splitlines()
    ]


def test_tiny_is_read_by_the_stages(project: Path) -> None:
    _switch(project, "tiny")
    assert load_params("evaluate", EvaluateConfig, project / "params.yaml").n_resamples == 50
    assert read_yaml(project / "params.yaml")["demo"]["posts"] == 300


def test_the_printed_diff_says_what_changed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    before = _text(project)
    _switch(project, "tiny", "--show")
    lines = capsys.readouterr().out.splitlines()
    assert "-profile: demo" in lines
    assert "+profile: tiny" in lines
    assert _text(project) == before
    _switch(project, "demo")
    assert "already" in capsys.readouterr().out


def test_values_set_by_hand_outside_the_profile_stay(project: Path) -> None:
    (project / "params.yaml").write_text(_text(project).replace("root: data/demo", "root: /elsewhere/data"))
    _switch(project, "full")
    assert read_yaml(project / "params.yaml")["dataset"]["root"] == "/elsewhere/data"


def test_a_key_that_params_lack_is_an_error(project: Path) -> None:
    for file in (project / "profiles").iterdir():
        file.write_text(file.read_text() + "nowhere:\n  trees: 5\n")
    with pytest.raises(ConfigError, match=r"has no nowhere\.trees"):
        _switch(project, "tiny")


def test_profiles_with_different_keys_are_an_error(project: Path) -> None:
    with (project / "profiles" / "tiny.yaml").open("a") as stream:
        stream.write("submit:\n  decimals: 5\n")
    with pytest.raises(ConfigError, match=r"demo\.yaml: every profile must list the same keys.*submit\.decimals"):
        _switch(project, "tiny")


def test_an_unknown_name_is_an_error(project: Path) -> None:
    with pytest.raises(ConfigError, match="no profile 'huge'; there are demo, full, paper, tiny"):
        _switch(project, "huge")


SMPD_POSTS = {"train": 305_613, "test": 180_581}


def test_paper_is_what_the_paper_prints(project: Path) -> None:
    _switch(project, "paper")
    params = read_yaml(project / "params.yaml")
    train, network, stack = params["train"], params["train"]["network"], params["stack"]
    assert not train["transductive"]
    assert train["valid_fraction"] == train["min_steps"] == 0
    assert (train["epochs"], train["batch_size"], train["weight_decay"]) == (4, 128, 1e-5)
    assert train["lr_prompt"] == train["lr_attention"] == 1e-4
    assert train["unfreeze_layers"] == 0
    assert network["attention"]["dropout"] == 0.1
    assert network["temperatures"] == {
        "global_prompt": 0.07, "local_prompt": 0.07, "tokens": 0.1, "visual": 0.07, "text": 0.07, "contrastive": 0.07,
        "learn": False,
    }  # fmt: skip
    assert network["weights"] == {
        "global_prompt": 1, "local_prompt": 1, "attention": 1, "contrastive": 0, "consistency": 0,
    }  # fmt: skip
    assert (network["prototypes"]["folds"], network["prototypes"]["levels"]) == (1, ["subcategory"])
    assert (network["prompts"]["global_length"], network["prompts"]["local_length"]) == (16, 8)
    assert network["prompts"]["instance_length"] == 0
    assert params["prototypes"]["max_per_class"] == 256
    for section in ("embed_image", "embed_text"):
        assert params[section]["model"] == "openai/clip-vit-base-patch32"
        assert params[section]["loader"] == section.replace("embed", "clip")

    columns = stack["columns"]
    assert columns["feature_blocks"] == ["metadata", "image", "text", "prototype"]
    assert columns["prototype_parts"] == [
        "global_prompt", "local_prompt", "attended_image", "attended_visual", "attended_text",
    ]  # fmt: skip
    assert (columns["text_vectors"], columns["n_components"]) == ("post", 0)
    assert columns["oof_ridge"] == columns["feature_groups"] == params["select"]["candidates"] == []
    assert stack["row_selection"] == {"fraction": 0.77, "order": "low_loss"}
    assert (stack["learners"], stack["detrend"], stack["target_transform"]) == (["lightgbm"], "none", "none")
    assert (stack["n_seeds"], stack["sample_weight_half_life_days"], stack["text_model_weights"]) == (1, 0, [0])
    assert params["text_model"]["epochs"] == params["tune"]["n_trials"] == 0


def test_paper_takes_9552_steps_on_the_official_data(project: Path) -> None:
    """Sec 4.1; counted without a step being taken."""
    _switch(project, "paper")
    params = load_params("train", TrainParams, project / "params.yaml")
    posts = pl.DataFrame({"split": [split for split, count in SMPD_POSTS.items() for _ in range(count)]})
    vectors = Mock(target=np.zeros((posts.height, 1), np.int64), levels=("subcategory",))
    train, valid = training_rows(posts, vectors, params)
    assert (len(train), len(valid)) == (305_613, 0)
    assert training_steps(len(train), params) == 9_552
    plan = BatchPlan(params.batch_size, params.micro_batch)
    assert sum(len(plan.epoch(train, epoch, params.seed)) for epoch in range(params.epochs)) == 9_552


@pytest.mark.parametrize("name", ["tiny", "demo", "full"])
def test_the_other_profiles_keep_what_is_ours(project: Path, name: str) -> None:
    """Those of `paper` are no values of theirs."""
    before = leaves(read_yaml(project / "params.yaml"))
    _switch(project, name)
    after = leaves(read_yaml(project / "params.yaml"))
    for key in ("transductive", "valid_fraction", "batch_size", "weight_decay"):
        assert after["train", key] == before["train", key]
    kept = ("learners", "detrend", "text_model_weights")
    assert all(after["stack", key] == before["stack", key] for key in kept)
