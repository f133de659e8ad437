"""The generator beyond the demo: more classes, images from a pool or none, users' entries on disk."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed import __main__ as speed
from benchmarks.speed.features import SMPD_POSTS, TEST_POSTS, USERS, scaled
from popularity.dataset import ingest
from popularity.demo import DemoParams, generate
from popularity.demo.posts import _choice, _cumulated, choose_classes


def test_a_scaled_data_set_has_the_parts_of_smpd(tmp_path: Path) -> None:
    speed.main(["data", "--out", str(tmp_path / "scaled"), "--posts", "700", "--user-file", "B"])
    posts = ingest(tmp_path / "scaled" / "data").posts
    assert posts["split"].value_counts(sort=True)["count"].to_list() == [440, 260]
    assert not list((tmp_path / "scaled" / "data").glob("*.tar"))
    params = scaled(SMPD_POSTS, "A")
    assert params.users == USERS
    assert round(params.posts * params.test_fraction) == TEST_POSTS


def test_further_classes_have_names_and_words_of_their_own() -> None:
    classes = choose_classes(77)
    keys = {(used.category.name, used.subcategory.name) for used in classes}
    assert len(keys) == 77
    assert sum(used.share for used in classes) == pytest.approx(1)
    for used in classes:
        assert used.subcategory in used.category.subcategories
        others = [other for other in used.category.subcategories if other is not used.subcategory]
        assert not any(set(used.subcategory.words) == set(other.words) for other in others)
    first = choose_classes(33)
    assert [used.subcategory for used in classes[:33]] == [used.subcategory for used in first]


def test_images_of_a_pool_are_used_in_turn(tiny_params: DemoParams, tmp_path: Path) -> None:
    params = replace(tiny_params, posts=60, users=15)
    generate(params, tmp_path / "own", tmp_path / "truth")
    generate(params, tmp_path / "pool", tmp_path / "pool_truth", drawn=4)
    with (
        tarfile.open(tmp_path / "own" / "train_images.tar") as own,
        tarfile.open(tmp_path / "pool" / "train_images.tar") as pool,
    ):
        assert own.getnames() == pool.getnames()
        contents = [[tar.extractfile(name).read() for name in tar.getnames()] for tar in (own, pool)]  # type: ignore[union-attr]
    assert contents[1][:4] == contents[0][:4]
    assert contents[1][4:8] == contents[1][:4]
    assert len(set(contents[1])) == 4


def test_user_files_are_what_json_writes(tiny_params: DemoParams, tmp_path: Path) -> None:
    for form in ("A", "B"):
        generate(replace(tiny_params, posts=60, users=15, user_file=form), tmp_path / form, tmp_path / f"{form}t", 0)
        for file in (tmp_path / form).rglob("*.json"):
            written = file.read_text(encoding="utf-8")
            assert written == json.dumps(json.loads(written), ensure_ascii=False)


def test_choices_are_those_of_numpy() -> None:
    shares = np.array([0.2, 0.5, 0.05, 0.25])
    ours, numpys = np.random.default_rng(3), np.random.default_rng(3)
    cumulated = _cumulated(shares)
    for _ in range(200):
        assert _choice(cumulated, ours) == numpys.choice(4, p=shares)
