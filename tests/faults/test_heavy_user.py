"""A user with nearly all posts costs time and memory in proportion to them, and loses none.

At 20,000 posts, not 100,000: what grows faster than the posts shows there, and the test stays short.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import polars as pl
import pytest
from ruamel.yaml import YAML

from popularity.schema import FOLDS, IMAGES, POSTS, FoldKey, read_table, write_table
from stages import featurize, ingest, split
from tests.dataset.layout import build
from tests.faults.test_texts import FEATURIZE, SPLIT, flags
from tests.small_tables import small_posts

POSTS_OF_ONE = 20_000
HEAVY = "7@N00"


def test_ingest(tmp_path: Path) -> None:
    layout = build("B", train=POSTS_OF_ONE, test=20)
    for rows in layout.train.records.values():
        for row in rows:
            row["Uid"] = HEAVY
    layout.train.image_paths = [f"train/{HEAVY}/{row['Pid']}.jpg" for row in layout.train.records["category"]]
    layout.write(tmp_path / "data")
    names = {"root": "data", "posts": "posts.parquet", "users": "users.parquet", "quarantine": "quarantine.parquet"}
    ingest.main(flags(tmp_path, **names, report="report.json", resources="cost.json"))
    posts = read_table(tmp_path / "posts.parquet", POSTS)
    assert posts.filter(uid=HEAVY).sort("source_index")["pid"].to_list() == [
        row["Pid"] for row in layout.train.records["category"]
    ]
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["parts"]["train"]["posts"], report["parts"]["train"]["users"]) == (POSTS_OF_ONE, 1)


def seconds(folder: Path, train: int) -> float:
    """Processor time of splits and features of `train` training posts, 95% of them by one user."""
    folder.mkdir()
    posts = small_posts(train=train, test=train // 10, users=200)
    posts = posts.with_columns(uid=pl.when(pl.col("source_index") % 20 != 0).then(pl.lit(HEAVY)).otherwise("uid"))
    write_table(posts, folder / "posts.parquet", POSTS)
    empty = {name: pl.lit(None, rule.dtype) for name, rule in IMAGES.columns.items() if rule.nullable}
    none = {"shard": pl.lit(""), "offset": pl.lit(0, pl.Int64), "bytes": pl.lit(0, pl.Int64)}
    images = posts.select("pid", **none, **empty, status=pl.lit("missing"))
    write_table(images.select(list(IMAGES.columns)), folder / "images.parquet", IMAGES)
    sections = {"split": asdict(SPLIT), "featurize": asdict(FEATURIZE)}
    YAML().dump(json.loads(json.dumps(sections)), folder / "params.yaml")
    given = {"params": "params.yaml", "posts": "posts.parquet", "resources": "cost.json", "splits": "splits.parquet"}
    started = time.process_time()
    split.main(flags(folder, **given, report="split.json"))
    featurize.main(flags(folder, **given, images="images.parquet", out="features", report="histories.json"))
    return time.process_time() - started


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_splits_and_features(tmp_path: Path) -> None:
    seconds(tmp_path / "warm", 1_000)
    few, many = (seconds(tmp_path / str(count), count) for count in (POSTS_OF_ONE // 4, POSTS_OF_ONE))
    assert many < 9 * few  # 4 in proportion, 16 in the square
    folder = tmp_path / str(POSTS_OF_ONE)
    splits = read_table(folder / "splits.parquet", FOLDS)
    kept = splits.filter(pl.col("role") != "dropped")
    label = folder / "features/label"
    assert sum(pl.read_parquet(path).height for path in label.iterdir()) == kept.height
    final = pl.read_parquet(label / FoldKey("final", 0).file_name).join(
        read_table(folder / "posts.parquet", POSTS), on="pid"
    )
    longest = final.filter(split="test", uid=HEAVY)["uid_history_posts"].to_list()
    assert set(longest) == {POSTS_OF_ONE * 19 // 20}
