"""The check of params.yaml as a whole: every profile passes, and every kind of mistake is listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from popularity.check import MAPS, OTHERS, SECTIONS, main
from popularity.core.config import read_yaml
from popularity.core.errors import ConfigError
from popularity.profile import read_profiles
from tests.repository import PROFILES, profile_text, write_profile


@pytest.mark.slow
@pytest.mark.parametrize("profile", read_profiles(PROFILES))
def test_every_profile_passes_and_has_every_section(profile: str, tmp_path: Path) -> None:
    params = write_profile(tmp_path, profile)
    main(["--params", str(params)])
    assert set(read_yaml(params)) == {*OTHERS, *MAPS, *SECTIONS}


def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    text = profile_text()
    for old, new in (
        ("  confidence_level: 0.95", "  confidense_level: 95"),
        ("\nsubmit:", "\nsubmitt:"),
        ("  root: data/demo", "  root: /no/such/folder"),
        ("  collected_at: last_post", "  collected_at: yesterday"),
        ("  thumbnail: 160", "  thumbnail: many"),
    ):
        assert old in text
        text = text.replace(old, new)
    params = tmp_path / "params.yaml"
    params.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        main(["--params", str(params)])
    message = str(caught.value)
    for expected in (
        "no stage reads section 'submitt'; known are profile, embed_image, embed_text, dataset, demo",
        "evaluate.confidense_level: unknown key; allowed here: seed, n_resamples, confidence_level",
        "evaluate.confidence_level: missing",
        "report.thumbnail: ",
        "submit",
        "dataset.root is /no/such/folder, which is no folder; make dataset ROOT=",
        "dataset.collected_at is 'yesterday'",
    ):
        assert expected in message


def test_a_table_that_is_gone(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    text = profile_text().replace("root: data/demo", f"root: {tmp_path}").replace('  table: ""', "  table: gone.csv", 1)
    params.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"dataset\.table is gone\.csv, which is no file: make dataset TABLE="):
        main(["--params", str(params)])
    (tmp_path / "gone.csv").touch()
    main(["--params", str(params)])


def test_a_default_outside_the_search_is_found(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    text = profile_text().replace("    lightgbm.num_leaves: 15", "    lightgbm.num_leaves: 640")
    params.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tune\.space\.lightgbm\.num_leaves: .* is 640, outside 7 to 63"):
        main(["--params", str(params)])
    fixed = profile_text().replace("    num_leaves: search", "    num_leaves: 640")  # a value is not searched
    params.write_text(fixed, encoding="utf-8")
    main(["--params", str(params)])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("text_loader: bert_text", "text_loader: clip_text", r"network\.text_loader is clip_text, but .* is bert_text"),
        (
            "    image: efficientnet_lite0\n    text",
            "    image: clip\n    text",
            r"stack\.image is clip, but embed_image has",
        ),
        ("\n  minilm:\n", "\n  Mini-LM:\n", r"embed_text.*Mini-LM"),
        ("    max_tokens: 64", "    max_token: 64", r"embed_text\.minilm\.max_token: unknown key"),
    ],
)
def test_encoders_in_use_are_entries_with_their_loaders(old: str, new: str, message: str, tmp_path: Path) -> None:
    text, params = profile_text(), tmp_path / "params.yaml"
    assert text.count(old) == 1
    params.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        main(["--params", str(params)])


@pytest.mark.parametrize(("name", "said"), [("T\u00e9l\u00e9chargements", True), ("downloads", False)])
def test_copies_of_trials_need_an_ascii_path(
    name: str, said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).mkdir()
    write_profile(tmp_path / name)
    monkeypatch.chdir(tmp_path / name)
    main([])
    assert ("need a folder whose path is ASCII" in caplog.text) == said
