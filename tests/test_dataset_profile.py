"""`make dataset` picks the profile, leaves what the user changed, and does without weights that cannot be had."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from popularity import dataset_profile
from popularity.check import check
from popularity.check import main as check_main
from popularity.core.config import leaves, read_yaml
from popularity.core.errors import ConfigError, MissingWeightsError
from popularity.dataset_profile import chosen_size, count_posts, main
from popularity.profile import main as set_profile
from tests.dataset.layout import build
from tests.dataset.tables import forum, shop
from tests.repository import OVERLAYS, PROFILES, profile_text


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """params.yaml of profile demo that points at a small data set; no weights are fetched."""
    root = build("B", train=40, test=20).write(tmp_path / "flickr")
    text = profile_text("demo").replace("  root: data/demo\n", f"  root: {root}\n")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(dataset_profile, "_fetch", lambda model, folder: None)
    monkeypatch.setattr(dataset_profile, "usable_gpus", lambda: 0)
    return tmp_path


def folders(project: Path) -> list[str]:
    return ["--params", str(project / "params.yaml"), "--profiles", str(PROFILES), "--overlays", str(OVERLAYS)]


def chosen(project: Path, *names: str) -> dict[str, Any]:
    main([*names, *folders(project)])
    return read_yaml(project / "params.yaml")


def change(project: Path, old: str, new: str) -> None:
    file = project / "params.yaml"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def no_weights(model: str, folder: Path) -> None:
    raise MissingWeightsError(f"{model}: no network\n  next: later")


@pytest.mark.parametrize(
    ("posts", "accelerator", "size"),
    [
        (60, False, "standard"),
        (60, True, "standard"),
        (49_999, False, "standard"),
        (50_000, False, "smpd_cpu"),
        (486_194, False, "smpd_cpu"),
        (486_194, True, "full"),
    ],
)
def test_the_size_follows_posts_and_accelerator(posts: int, accelerator: bool, size: str) -> None:
    found, why = chosen_size(posts, accelerator=accelerator)
    assert found == size
    assert f"{posts:,} posts" in why


def test_a_clean_clone_gets_standard_and_is_told_why(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = chosen(project)
    assert now["profile"] == "standard"
    assert now["encoders"]["stack"]["text"] == ["minilm", "mpnet"]
    assert now["encoders"]["network"]["text"] == "minilm"
    expected = leaves(read_yaml(PROFILES / "standard.yaml"))
    assert {key: leaves(now)[key] for key in expected} == expected
    printed = capsys.readouterr().out
    assert "profile: demo -> standard (60 posts are fewer than 50,000" in printed
    assert "PROFILE=NAME takes another" in printed
    assert "kept" not in printed
    check(project / "params.yaml")
    before = (project / "params.yaml").read_bytes()
    chosen(project)
    assert (project / "params.yaml").read_bytes() == before


def test_the_posts_of_a_table_are_its_rows_and_those_of_the_test_table(project: Path) -> None:
    """The folder of the pictures is in no layout."""
    listings, photos = shop(project, 20)
    change(project, "  root: " + str(project / "flickr"), f"  root: {photos}")
    for name in ("table", "test_table"):
        change(project, f'  {name}: ""', f"  {name}: ../{listings.name}")
    params = project / "params.yaml"
    assert count_posts(project, read_yaml(params)["dataset"]) == 20
    assert chosen(project)["profile"] == "standard"
    posts, later = forum(project, 30)
    change(project, f"  table: ../{listings.name}", f"  table: ../{posts.name}")
    change(project, f"  test_table: ../{listings.name}", f"  test_table: ../{later.name}")
    assert count_posts(project, read_yaml(params)["dataset"]) == 30


def test_many_posts_and_an_accelerator(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_profile, "LARGE", 60)
    assert chosen(project)["profile"] == "smpd_cpu"
    monkeypatch.setattr(dataset_profile, "usable_gpus", lambda: 1)
    monkeypatch.setenv("POPULARITY_TOPOLOGY", "cpu")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert chosen(project)["profile"] == "smpd_cpu"
    monkeypatch.delenv("POPULARITY_TOPOLOGY")
    assert chosen(project)["profile"] == "full"


def test_values_that_the_user_changed_stay(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(project, "  epochs: 4 ", "  epochs: 9 ")
    change(project, "  n_seeds: 2 ", "  n_seeds: 7 ")
    change(project, "  tolerance: 0.01 ", "  tolerance: 0.02 ")  # in no profile
    now = chosen(project)
    assert (now["train"]["epochs"], now["stack"]["n_seeds"], now["split"]["tolerance"]) == (9, 7, 0.02)
    assert now["embed_image"]["efficientnet_lite0"]["image_size"] == 224
    printed = capsys.readouterr().out
    assert "kept as it was changed: train.epochs: 9" in printed
    assert "kept as it was changed: stack.n_seeds: 7" in printed


def test_encoders_that_the_user_chose_stay(project: Path) -> None:
    set_profile(["demo", "clip", *folders(project)])
    now = chosen(project)
    assert now["profile"] == "standard clip"
    assert now["encoders"]["stack"] == {"image": "clip", "text": "clip"}
    set_profile(["demo", *folders(project)])
    pair = "    image: efficientnet_lite0\n    text: {}\n\n"
    change(project, pair.format("minilm"), pair.format("own"))
    own = (
        "{loader: bert_text, model: own, weights: 'path:/own', revision: '', max_tokens: 9, batch_size: 3, "
        "shard_rows: 5, precision: fp32}"
    )
    change(project, "  minilm:\n", f"  own: {own}\n  minilm:\n")
    now = chosen(project)
    assert now["encoders"]["stack"]["text"] == "own"
    assert set(now["embed_text"]) == {"own", "minilm"}  # and no MPNet, which nothing would use


@pytest.mark.parametrize("size", ["tiny", "full", "paper"])
def test_a_size_that_the_user_chose_stays(project: Path, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    set_profile([size, *folders(project)])
    before = (project / "params.yaml").read_bytes()
    chosen(project)
    assert (project / "params.yaml").read_bytes() == before
    assert "PROFILE=standard would suit" in capsys.readouterr().out


def test_a_named_profile(project: Path) -> None:
    assert chosen(project, "full", "clip")["profile"] == "full clip"
    with pytest.raises(ConfigError, match="no profile 'large'"):
        chosen(project, "large")


def test_without_weights_the_map_has_no_mpnet(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dataset_profile, "_fetch", no_weights)
    for _ in range(2):  # and again, from profile standard without it
        now = chosen(project)
        assert now["profile"] == "standard"
        assert set(now["embed_text"]) == {"minilm"}
        assert now["encoders"]["stack"]["text"] == "minilm"
        printed = capsys.readouterr().out
        assert "mpnet is left out, and the stack reads minilm, because all-mpnet-base-v2: no network" in printed
        assert "kept" not in printed
        check(project / "params.yaml")
    monkeypatch.setattr(dataset_profile, "_fetch", lambda model, folder: None)
    assert chosen(project)["encoders"]["stack"]["text"] == ["minilm", "mpnet"]


def test_an_encoder_of_the_network_is_not_left_out(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dataset_profile, "_fetch", no_weights)
    assert chosen(project, "standard", "mpnet")["encoders"]["network"]["text"] == "mpnet"
    assert "run `make weights` before dvc repro" in capsys.readouterr().out


def test_an_unknown_profile_or_file_of_parameters_stops_nothing(
    project: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    change(project, "profile: demo", "profile: mine")
    before = (project / "params.yaml").read_bytes()
    chosen(project)
    assert "profile: mine is none of this repository, and stays" in capsys.readouterr().out
    assert (project / "params.yaml").read_bytes() == before
    change(project, "profile: mine", "profile: demo")
    change(project, "  min_steps: 200 ", "  other_steps: 200 ")
    chosen(project)
    assert "keeps its profile" in caplog.text
    assert read_yaml(project / "params.yaml")["profile"] == "demo"


def test_the_check_before_a_run_names_weights_that_are_not_there(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(project / "home"))
    chosen(project)
    with pytest.raises(
        MissingWeightsError, match=r"embed_text\.mpnet: .*has no weights\n.*make weights.*\n?.*make dataset"
    ):
        check_main(["--params", str(project / "params.yaml")])
    folder = project / "home/.cache/popularity/all-mpnet-base-v2"
    folder.mkdir(parents=True)
    shutil.copy(project / "params.yaml", folder / "model.safetensors")
    check_main(["--params", str(project / "params.yaml")])
