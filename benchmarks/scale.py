"""Writes a data set of any size in the official layout: the demo's generator, with SMPD's numbers by default.

305,613 + 180,581 posts, 70,000 users, 77 classes take some two minutes of one core; without pictures by default, with
--pictures N every post has one of N that are drawn for each part, in tar shards.

    python -m benchmarks.scale --out /tmp/smpd
    python -m benchmarks.scale --out /tmp/smpd --user-file B
    python -m benchmarks.scale --out /tmp/tenth --posts 48619 --users 7000 --pictures 500
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from popularity.config import parse_section
from popularity.demo import DemoParams, generate
from popularity.files import atomic_directory
from popularity.stage import run

TRAINING_POSTS, TEST_POSTS, USERS, CLASSES = 305_613, 180_581, 70_000, 77  # of SMPD
POSTS = TRAINING_POSTS + TEST_POSTS


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="replaced; gets data/ and, for checks, truth/")
    parser.add_argument("--posts", type=int, default=POSTS, help="in both parts together")
    parser.add_argument("--users", type=int, help="by default in SMPD's proportion to the posts")
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--user-file", choices=["A", "B"], default="A")
    parser.add_argument("--pictures", type=int, default=0, help="different ones in each part; 0: no shards")
    parser.add_argument("--side", type=int, default=96, help="pixels of the longer side")
    parser.add_argument("--seed", type=int, default=20)
    args = parser.parse_args(argv)
    params = scaled(args.posts, args.user_file, users=args.users, classes=args.classes, side=args.side, seed=args.seed)
    with atomic_directory(args.out) as out:
        generate(params, out / "data", out / "truth", args.pictures)
    truth = json.loads((args.out / "truth" / "truth.json").read_text(encoding="utf-8"))
    print(f"{args.out / 'data'}: {truth['best']['train']['posts']:,} + {truth['best']['test']['posts']:,} posts")


def scaled(
    posts: int, user_file: str, *, users: int | None = None, classes: int = CLASSES, side: int = 96, seed: int = 20
) -> DemoParams:
    """SMPD's proportions at another number of posts."""
    values = {
        "seed": seed,
        "posts": posts,
        "users": users or max(10, round(posts * USERS / POSTS)),
        "subcategories": classes,
        "image_size": side,
        "test_share": TEST_POSTS / POSTS,
        "user_file": user_file,
        "trend": 2.3,
    }
    return parse_section("demo", values, DemoParams, "the flags")


if __name__ == "__main__":
    run(main)
