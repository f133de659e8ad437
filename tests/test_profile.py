from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import polars as pl
import pytest

from popularity.check import check
from popularity.core.config import leaves, load_params, read_yaml
from popularity.core.errors import ConfigError
from popularity.evaluation.scores import EvaluateConfig
from popularity.network.inputs import training_rows
from popularity.network.params import TrainParams
from popularity.profile import Profiles, main, read_profiles
from popularity.stack import StackParams
from popularity.training.batches import BatchPlan, training_steps
from popularity.validation import SplitParams
from tests.repository import OVERLAYS, PROFILES, REPOSITORY, profile_text, write_profile


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the repository's params.yaml, in the demo profile, and of its sizes and overlays."""
    write_profile(tmp_path, "demo")
    shutil.copytree(PROFILES, tmp_path / "profiles")
    shutil.copytree(OVERLAYS, tmp_path / "overlays")
    return tmp_path


def _switch(project: Path, *names: str) -> None:
    folders = [f"--{name}={project / name}" for name in ("profiles", "overlays")]
    main([*names, "--params", str(project / "params.yaml"), *folders])


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
    assert set(profiles) == {"tiny", "demo", "standard", "smpd_cpu", "full", "paper"}
    assert not any(key[0] in ("dataset", "profile") for values in profiles.values() for key in values)


def test_there_and_back_gives_the_same_bytes(project: Path) -> None:
    before = _text(project)
    for name in ("tiny", "standard", "smpd_cpu", "full", "paper", "standard", "tiny", "demo"):
        _switch(project, name)
    assert _text(project) == before


def _comments(text: str) -> list[str]:
    return [line.partition("#")[2] for line in text.splitlines() if "#" in line]


@pytest.mark.parametrize("name", ["tiny", "standard", "smpd_cpu", "full", "paper"])
def test_only_listed_values_change_and_comments_stay(project: Path, name: str) -> None:
    before, old = leaves(read_yaml(project / "params.yaml")), _text(project)
    _switch(project, name)
    after = leaves(read_yaml(project / "params.yaml"))
    assert [key for key in after if key in before] == list(before)
    profile = leaves(read_yaml(project / "profiles" / f"{name}.yaml"))
    assert after == {**before, **profile, ("profile",): name}
    assert _comments(_text(project)) == _comments(old)


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
        stream.write("report:\n  thumbnail: 80\n")
    with pytest.raises(ConfigError, match=r"demo\.yaml: every profile must list the same keys.*report\.thumbnail"):
        _switch(project, "tiny")


def test_an_unknown_name_is_an_error(project: Path) -> None:
    known = "the sizes demo, full, paper, smpd_cpu, standard, tiny and the overlays clip, dinov2, mpnet, siglip, smpd"
    with pytest.raises(ConfigError, match=f"no profile 'huge'; there are {known}"):
        _switch(project, "huge")
    with pytest.raises(ConfigError, match="clip full: only the first name can be a size; full is one"):
        _switch(project, "clip", "full")


@pytest.mark.parametrize("names", [("full", "clip"), ("tiny", "siglip"), ("demo", "dinov2", "mpnet")])
def test_overlays_are_put_on_a_size_and_taken_back(names: tuple[str, ...], project: Path) -> None:
    """In their order; a size alone gives the bytes that were there before."""
    before, old = _text(project), leaves(read_yaml(project / "params.yaml"))
    _switch(project, *names)
    after = leaves(read_yaml(project / "params.yaml"))
    files = [project / ("overlays" if index else "profiles") / f"{name}.yaml" for index, name in enumerate(names)]
    expected = old | {("profile",): " ".join(names)}
    for file in files:
        expected |= leaves(read_yaml(file))
    assert after == expected
    assert len(after) > len(old)
    check(project / "params.yaml")
    _switch(project, "demo")
    assert _text(project) == before


def test_overlay_smpd_switches_on_all_that_reads_the_order_of_collection(project: Path) -> None:
    before = _text(project)
    assert "true" not in [line.split()[1] for line in before.splitlines() if "match_collection_order:" in line]
    _switch(project, "full", "smpd")
    assert load_params("split", SplitParams, project / "params.yaml").match_collection_order
    stack = load_params("stack", StackParams, project / "params.yaml")
    assert stack.detrend == "collection_order"
    assert "collection_order" in stack.columns.feature_groups
    check(project / "params.yaml")
    _switch(project, "demo")
    assert _text(project) == before
    assert "collection_order" not in load_params("stack", StackParams, project / "params.yaml").columns.feature_groups


def test_an_overlay_alone_keeps_the_size_and_the_overlays_before_it(project: Path) -> None:
    _switch(project, "tiny", "mpnet")
    _switch(project, "dinov2")
    _switch(project, "dinov2")
    values = read_yaml(project / "params.yaml")
    assert values["profile"] == "tiny mpnet dinov2"
    assert values["demo"]["posts"] == 300
    assert values["encoders"]["stack"] == {"image": "dinov2", "text": "mpnet"}
    assert set(values["embed_image"]) == {"efficientnet_lite0", "dinov2"}


def test_the_last_named_overlay_is_the_last_applied(project: Path) -> None:
    for names in (("demo", "dinov2"), ("clip",), ("dinov2",)):
        _switch(project, *names)
    values = read_yaml(project / "params.yaml")
    assert values["profile"] == "demo clip dinov2"
    assert values["encoders"]["stack"] == {"image": "dinov2", "text": "clip"}


def test_a_commit_that_make_weights_wrote_stays(project: Path) -> None:
    """Unless the weights are others."""
    _switch(project, "demo", "clip")
    commit = "0123456789abcdef" * 2 + "01234567"
    text = _text(project)
    assert text.count("revision: main") == 2
    (project / "params.yaml").write_text(text.replace("revision: main", f"revision: {commit}", 1))
    for names in (("full", "clip"), ("clip",), ("paper",)):
        _switch(project, *names)
        assert read_yaml(project / "params.yaml")["embed_image"]["clip"]["revision"] == commit
        assert read_yaml(project / "params.yaml")["embed_text"]["clip"]["revision"] == "main"
    (project / "params.yaml").write_text(_text(project).replace("clip-vit-base-patch32", "clip-vit-large-patch14"))
    _switch(project, "full", "clip")
    assert read_yaml(project / "params.yaml")["embed_image"]["clip"]["revision"] == "main"


def test_an_entry_of_the_user_stays(project: Path) -> None:
    mine = "embed_text:\n  mine:\n    model: my-bert\n"
    (project / "mine.yaml").write_text(mine)
    main(["--patch", str(project / "mine.yaml"), "--params", str(project / "params.yaml")])
    for names in (("full", "clip"), ("tiny",)):
        _switch(project, *names)
        assert read_yaml(project / "params.yaml")["embed_text"]["mine"] == {"model": "my-bert"}


def test_every_overlay_has_size_length_precision_and_batch() -> None:
    """The towers of one model have its length of a text: 77 tokens of CLIP, exactly 64 of SigLIP."""
    overlays = Profiles.read(PROFILES, OVERLAYS).overlays
    assert set(overlays) == {"clip", "siglip", "dinov2", "mpnet", "smpd"}
    sizes = leaves(read_yaml(PROFILES / "demo.yaml"))
    keys = {key[2:] for key in leaves(read_yaml(REPOSITORY / "params.yaml")) if key[:2] == ("embed_text", "minilm")}
    for values in overlays.values():
        texts = {key[1] for key in values if key[0] == "embed_text"} - {"minilm"}
        assert all({key[2:] for key in values if key[:2] == ("embed_text", text)} == keys for text in texts)
        assert not {key for key in values if key[0] not in ("embed_image", "embed_text")} - set(sizes)
    assert overlays["clip"]["embed_text", "clip", "max_tokens"] == 77
    assert overlays["siglip"]["embed_text", "siglip", "max_tokens"] == 64


def test_an_entry_of_a_size_goes_with_it(project: Path) -> None:
    before = _text(project)
    _switch(project, "paper")
    assert set(read_yaml(project / "params.yaml")["embed_text"]) == {"minilm", "clip"}
    _switch(project, "demo")
    assert _text(project) == before


def test_a_key_that_no_size_takes_back_is_refused(project: Path) -> None:
    (project / "overlays/slow.yaml").write_text("train:\n  clip_norm: 2.0\n")
    with pytest.raises(ConfigError, match=r"slow\.yaml: no size sets train\.clip_norm; list it in every size"):
        _switch(project, "demo", "clip")
    (project / "overlays/slow.yaml").rename(project / "overlays/tiny.yaml")
    with pytest.raises(ConfigError, match=r"tiny\.yaml: there is a size of this name"):
        _switch(project, "demo")


SMPD_POSTS = {"train": 305_613, "test": 180_581}


def test_paper_is_what_the_paper_prints(project: Path) -> None:
    _switch(project, "paper")
    params = read_yaml(project / "params.yaml")
    train, network = params["train"], params["train"]["network"]
    stack = json.loads(json.dumps(asdict(load_params("stack", StackParams, project / "params.yaml"))))
    assert not train["transductive"]
    assert train["valid_fraction"] == train["min_steps"] == train["max_steps"] == train["patience"] == 0
    assert (train["schedule"], train["warmup_fraction"]) == ("constant", 0)
    assert (train["epochs"], train["batch_size"], train["weight_decay"]) == (4, 128, 1e-5)
    assert train["lr_prompt"] == train["lr_attention"] == 1e-4
    assert train["unfreeze_layers"] == 0
    assert network["attention"]["dropout"] == 0.1
    assert network["attention"]["prototypes"] == ["visual", "text"]
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
    assert params["encoders"]["stack"] == {"image": "clip", "text": "clip"}
    assert params["encoders"]["network"] == {
        "image": "clip", "image_loader": "clip_image", "text": "clip", "text_loader": "clip_text",
    }  # fmt: skip
    for section in ("embed_image", "embed_text"):
        assert params[section]["clip"]["model"] == "openai/clip-vit-base-patch32"
        assert params[section]["clip"]["weights"] == "hub"
    assert (params["embed_image"]["clip"]["image_size"], params["embed_text"]["clip"]["max_tokens"]) == (224, 77)

    columns = stack["columns"]
    assert columns["feature_blocks"] == ["metadata", "image", "text", "prototype"]
    assert columns["prototype_parts"] == [
        "global_prompt", "local_prompt", "attended_image", "attended_visual", "attended_text",
    ]  # fmt: skip
    assert (columns["text_vectors"], columns["n_components"]) == ("post", 0)
    assert columns["oof_ridge"] == columns["feature_groups"] == params["tune"]["candidates"] == []
    assert stack["row_selection"] == {"fraction": 0.77, "order": "low_loss"}
    assert (stack["learners"], stack["detrend"], stack["target_transform"]) == (["lightgbm"], "none", "none")
    assert (stack["n_seeds"], stack["sample_weight_half_life_days"], stack["history_dropout"]) == (1, 0, 0)
    assert not params["ensemble"]["text_model"]
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
    kept = (("stack", "learners"), ("stack", "detrend"), ("ensemble", "text_model"))
    assert all(after[own] == before[own] for own in kept)
