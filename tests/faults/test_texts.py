"""Texts and values that no sane user writes, through ingest and every stage that reads texts."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from ruamel.yaml import YAML

from popularity.core.atomic import read_json
from popularity.core.contracts import FEATURES, IMAGES, POSTS, QUARANTINE, read_table, write_table
from popularity.core.errors import DataError
from popularity.core.vectors import read_block, read_tokens
from popularity.features import FeaturizeParams
from popularity.validation import SplitParams
from stages import embed_text, featurize, ingest, split
from tests.dataset.layout import build
from tests.encoders.tiny_encoders import encoder_sections, text_params
from tests.random_posts import random_images
from tests.repository import stage_flags, write_profile

pytestmark = pytest.mark.slow

SPLIT = SplitParams(
    seed=0,
    span="fractions",
    holdout_fraction=0.15,
    forward_fraction=0.15,
    n_origins=1,
    n_folds=2,
    unseen_user_fraction=0.5,
    tolerance=0.4,
    match_collection_order=False,
)
FEATURIZE = FeaturizeParams(
    seed=0, n_text_components=3, target_statistics=("uid", "subcategory"), target_statistics_prior=3.0
)
MEGABYTE = 1_000_000
TEXTS: dict[str, str] = {
    "one megabyte of words": "sea sunset " * (MEGABYTE // 11),
    "one megabyte without a space": "x" * MEGABYTE,
    "emoji": "\U0001f600\U0001f469\u200d\U0001f469\u200d\U0001f467\U0001f1e9\U0001f1ea\ufe0f",
    "right to left": "\u202eשלום עולם\u202c مرحبا بالعالم",
    "control characters": "".join(map(chr, [*range(1, 32), *range(127, 160)])),
    "combining": "Z" + "\u0351\u036b\u0343" * 200,
    "spaces of every kind": "\u00a0\u2003\u3000\u200b\ufeff",
    "markup": "<script>alert(1)</script>&lt;b&gt;{{7*7}}${x}'; DROP TABLE posts; --",
    "a formula": '=HYPERLINK("http://x")',
    "special tokens": "[CLS] [SEP] [PAD] [MASK] <s> </s>",
    "half a character": "a\ud800b",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POPULARITY_WORKERS", "0")
    return tmp_path


def run_ingest(folder: Path) -> pl.DataFrame:
    names = {"posts": "posts.parquet", "quarantine": "quarantine.parquet", "summary": "ingest.json"}
    write_profile(folder)
    ingest.main(stage_flags("ingest", folder, root="data", **names))
    return read_table(folder / "posts.parquet", POSTS)


def run_rest(folder: Path) -> None:
    """Splits, features and vectors of the posts."""
    sections = {"split": asdict(SPLIT), "featurize": asdict(FEATURIZE), **encoder_sections(text=text_params())}
    YAML().dump(json.loads(json.dumps(sections)), folder / "params.yaml")
    posts = read_table(folder / "posts.parquet", POSTS)
    write_table(random_images(posts, 0), folder / "images.parquet", IMAGES)
    tables = {"posts": "posts.parquet", "splits": "splits.parquet"}
    split.main(stage_flags("split", folder, **tables))
    more = {"images": "images.parquet", "users": None, "out": "features"}
    featurize.main(stage_flags("featurize", folder, **tables, **more))
    embed_text.main(stage_flags("embed_text", folder, posts="posts.parquet", out="text"))


def test_every_text_passes_all_stages_and_moves_no_row(folder: Path) -> None:
    layout, rows = build("B", train=60, test=20), {}
    for number, (kind, text) in enumerate(TEXTS.items()):
        rows[kind] = 2 * number + 1
        for role, name in (("text", "Title"), ("text", "Alltags"), ("user", "user_description")):
            layout.train.records[role][rows[kind]][name] = text
    plain = build("B", train=60, test=20)
    vectors, tables = {}, {}
    for name, each in (("plain", plain), ("odd", layout)):
        (folder / name).mkdir()
        each.write(folder / name / "data")
        tables[name] = run_ingest(folder / name)
        run_rest(folder / name)
        vectors[name] = read_block(folder / name / "text", "post")
    odd_pids = {kind: layout.train.records["text"][row]["Pid"] for kind, row in rows.items()}
    for kind, text in TEXTS.items():
        row = tables["odd"].filter(pid=odd_pids[kind])
        assert row["title"][0] == row["tags"][0] == text.replace("\ud800", "\ufffd")
    columns = [name for name in tables["odd"].columns if name not in ("title", "tags", "user_description")]
    assert tables["odd"].select(columns).equals(tables["plain"].select(columns))
    quarantine = read_table(folder / "odd/quarantine.parquet", QUARANTINE)
    assert set(quarantine["pid"]) == {odd_pids["half a character"]}
    # Other posts keep their texts and vectors.
    others = [pid for pid in vectors["odd"].pids if pid not in odd_pids.values()]
    one, other = (vectors[name].values[vectors[name].rows(others)] for name in ("plain", "odd"))
    np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)
    tokens = read_tokens(folder / "odd/text", "tokens")
    assert list(tokens.pids) == list(vectors["odd"].pids) == tables["odd"]["pid"].to_list()
    assert np.diff(tokens.offsets).max() <= text_params().max_tokens
    assert set(read_table(folder / "odd/features/row.parquet", FEATURES)["pid"]) == set(tables["odd"]["pid"])


MEDIAN = datetime(2015, 5, 27, 22, 13, 20, tzinfo=UTC)  # of the 58 dates that are left
# Role, field, what is published there, the column of posts and its value then.
VALUES: list[tuple[str, str, Any, str, Any]] = [
    ("temporalspatial", "Postdate", -5_000_000_000, "posted_at", MEDIAN),
    ("temporalspatial", "Postdate", 253_402_300_799, "posted_at", MEDIAN),  # the end of the year 9999
    ("temporalspatial", "Postdate", 10**15, "posted_at", MEDIAN),
    ("user", "photo_firstdate", -1, "first_photo_at", None),
    ("user", "photo_firstdate", "9999-12-31 23:59:59", "first_photo_at", None),
    ("user", "photo_firstdatetaken", "0001-01-01 00:00:00", "first_taken_at", None),
    ("temporalspatial", "Latitude", 91, "latitude", None),
    ("temporalspatial", "Longitude", 1e300, "longitude", None),
    ("temporalspatial", "Latitude", "NaN", "latitude", None),
    ("temporalspatial", "Longitude", "Infinity", "longitude", None),
    ("user", "photo_count", 10**30, "photo_count", None),
]


def test_values_beyond_all_bounds_are_set_aside_and_pass_all_stages(folder: Path) -> None:
    layout = build("B", train=61, test=20)
    for number, (role, name, value, _, _) in enumerate(VALUES):
        layout.train.records[role][3 * number + 14][name] = value
    layout.write(folder / "data")
    posts = run_ingest(folder).filter(split="train").sort("source_index")
    assert len(posts) == 61
    for number, (_, name, _, column, then) in enumerate(VALUES):
        assert posts[column][3 * number + 14] == then, name
    quarantine = read_table(folder / "quarantine.parquet", QUARANTINE)
    assert sorted(quarantine["row"]) == [3 * number + 14 for number in range(len(VALUES))]
    assert read_json(folder / "ingest.json")["quarantine"]["values"] == len(VALUES)
    run_rest(folder)
    for file in (folder / "features").rglob("*.parquet"):
        for values in pl.read_parquet(file).iter_columns():
            if values.dtype.is_float():
                assert values.drop_nulls().is_finite().all(), (file.name, values.name)


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity"])
def test_a_token_that_is_no_json_names_its_row(folder: Path, token: str) -> None:
    layout = build("B")
    path = layout.path(layout.write(folder / "data"), "train", "temporalspatial")
    path.write_text(path.read_text().replace('"48.137"', token, 5).replace(token, '"48.137"', 4))
    with pytest.raises(DataError, match=f"{token} is not JSON") as caught:
        run_ingest(folder)
    assert (caught.value.file, caught.value.row) == (path, 4)
    assert not (folder / "posts.parquet").exists()


@pytest.mark.parametrize("content", ["[]", "{}", ""])
def test_an_empty_training_part_is_named(folder: Path, content: str) -> None:
    layout = build("B")
    root = layout.write(folder / "data")
    for path in (root / "train_allmetadata_json").iterdir():
        path.write_text(content if path.suffix == ".json" else "")
    with pytest.raises(DataError) as caught:
        run_ingest(folder)
    assert caught.value.file == layout.path(root, "train", "category")
    assert caught.value.expected
    assert not (folder / "posts.parquet").exists()
