"""A user with nearly all posts costs calls and memory in proportion to them at most, and loses none.

At 20,000 posts, not 100,000: what grows faster than the posts shows there, and the test stays short. What the same
costs in seconds is printed by benchmarks.full_scale.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import polars as pl
import pytest
from ruamel.yaml import YAML

from popularity.core.atomic import read_json
from popularity.core.contracts import FOLDS, IMAGES, POSTS, FoldKey, read_table, write_table
from stages import featurize, ingest, split
from tests.dataset.layout import build
from tests.faults.test_texts import FEATURIZE, SPLIT
from tests.repository import stage_flags, write_profile
from tests.small_tables import small_posts
from tests.work import Work, work_of

pytestmark = pytest.mark.slow

POSTS_OF_ONE = 20_000
HEAVY = "7@N00"


def test_ingest(tmp_path: Path) -> None:
    layout = build("B", train=POSTS_OF_ONE, test=20)
    for rows in layout.train.records.values():
        for row in rows:
            row["Uid"] = HEAVY
    layout.train.image_paths = [f"train/{HEAVY}/{row['Pid']}.jpg" for row in layout.train.records["category"]]
    layout.write(tmp_path / "data")
    write_profile(tmp_path)
    ingest.main(stage_flags("ingest", tmp_path, root="data", posts="posts.parquet", summary="ingest.json"))
    posts = read_table(tmp_path / "posts.parquet", POSTS)
    assert posts.filter(uid=HEAVY).sort("source_index")["pid"].to_list() == [
        row["Pid"] for row in layout.train.records["category"]
    ]
    summary = read_json(tmp_path / "ingest.json")
    assert (summary["parts"]["train"]["posts"], summary["parts"]["train"]["users"]) == (POSTS_OF_ONE, 1)


def work(folder: Path, train: int) -> Work:
    """Of the splits and the features of `train` training posts, 95% of them by one user."""
    folder.mkdir()
    posts = small_posts(train=train, test=train // 10, users=200)
    posts = posts.with_columns(uid=pl.when(pl.col("source_index") % 20 != 0).then(pl.lit(HEAVY)).otherwise("uid"))
    write_table(posts, folder / "posts.parquet", POSTS)
    empty = {name: pl.lit(None, rule.dtype) for name, rule in IMAGES.columns.items() if rule.nullable}
    none = {"shard": pl.lit(""), "offset": pl.lit(0, pl.Int64), "bytes": pl.lit(0, pl.Int64)}
    images = posts.select("pid", **none, **empty, status=pl.lit("missing"), checksum=pl.lit(""))
    write_table(images.select(list(IMAGES.columns)), folder / "images.parquet", IMAGES)
    sections = {"split": asdict(SPLIT), "featurize": asdict(FEATURIZE)}
    YAML().dump(json.loads(json.dumps(sections)), folder / "params.yaml")
    tables = {"posts": "posts.parquet", "splits": "splits.parquet"}
    more = {"images": "images.parquet", "users": None, "columns": None, "out": "features"}

    def run() -> None:
        split.main(stage_flags("split", folder, **tables))
        featurize.main(stage_flags("featurize", folder, **tables, **more))

    return work_of(run)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_splits_and_features(tmp_path: Path) -> None:
    work(tmp_path / "warm", 1_000)
    few, many = (work(tmp_path / str(count), count) for count in (POSTS_OF_ONE // 4, POSTS_OF_ONE))
    for one, four in zip(few, many, strict=True):
        assert four < 6 * one  # 4 in proportion, 16 in the square
    folder = tmp_path / str(POSTS_OF_ONE)
    splits = read_table(folder / "splits.parquet", FOLDS)
    kept = splits.filter(pl.col("role") != "excluded")
    label = folder / "features/label"
    assert sum(pl.read_parquet(path).height for path in label.iterdir()) == kept.height
    final = pl.read_parquet(label / FoldKey("refit", 0).file_name).join(
        read_table(folder / "posts.parquet", POSTS), on="pid"
    )
    longest = final.filter(split="test", uid=HEAVY)["uid_target_posts"].to_list()
    assert set(longest) == {POSTS_OF_ONE * 19 // 20}
