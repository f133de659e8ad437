"""What a run on the official data would take: time and disk of every stage, from two smaller runs.

    python -m benchmarks.official                                       # profile full
    python -m benchmarks.official --profile demo --posts 1000 3000
    python -m benchmarks.official --folder ../official                  # keeps the runs there, and goes on with them

Both runs are of the whole graph, in a clone, on generated posts in SMPD's proportions, with pictures of its size. A
straight line through the two, and through zero where it would fall, gives each stage at 486,194 posts on this machine.
It is an estimate: trees also take more rounds where there is more to learn. The network trains whole epochs
(`train.min_steps` is 0), and `tune` makes one of TRIALS trials, for which its seconds are multiplied. Memory has no
such line: at these sizes most of it is libraries and batches; what grows is measured at full size by `make bench`.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.full_scale import machine, make_clone
from benchmarks.measuring import execute
from benchmarks.scale import POSTS
from popularity.config import PARAMS_FILE, read_yaml
from popularity.dataset.preparation import set_root
from popularity.errors import ConfigError
from popularity.files import write_text
from popularity.resources import read_records
from popularity.stage import run

SIDE = 500  # pixels of a published picture's longer side
TRIALS = 10  # of the search, of which one is made
UNCOUNTED = ("demo_data",)


@dataclass(frozen=True)
class Cost:
    """Of a stage: seconds, peak of memory of its largest process, size of its outs."""

    seconds: float
    mib: float
    mb: float


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="full")
    parser.add_argument("--posts", type=int, nargs=2, default=[2000, 6000], help="of the two runs")
    parser.add_argument("--folder", type=Path, help="of the runs; default: a temporary one")
    parser.add_argument("--out", type=Path, help="file of the table")
    args = parser.parse_args(argv)
    small, large = sorted(args.posts)
    if small == large:
        raise ConfigError(f"--posts {small} {large}: a line needs two numbers of posts")
    with nullcontext(args.folder) if args.folder else tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        runs = {posts: folder / f"{args.profile}{posts}" for posts in (small, large)}
        costs = {posts: costs_of(finished(clone, args.profile, posts)) for posts, clone in runs.items()}
    text = f"{table(costs)}\n\nprofile {args.profile}, {machine()}"
    print(text)
    if args.out:
        write_text(args.out, f"{text}\n")


def finished(clone: Path, profile: str, posts: int) -> Path:
    """A clone in which the graph ran on that many posts."""
    root = clone.with_suffix(".data")
    if not clone.exists():
        make_clone(clone)
    if not root.exists():
        size = ["--posts", f"{posts}", "--pictures", f"{posts}", "--side", f"{SIDE}"]
        execute(clone, sys.executable, "-m", "benchmarks.scale", "--out", str(root), *size)
    execute(clone, sys.executable, "-m", "popularity.profile", profile)
    trials = read_yaml(clone / PARAMS_FILE)["tune"]["trials"]
    with (clone / "changed.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump({"train": {"min_steps": 0}, "tune": {"trials": math.ceil(trials / TRIALS)}}, stream)
    execute(clone, sys.executable, "-m", "popularity.profile", "--patch", "changed.yaml")
    set_root(clone / PARAMS_FILE, root / "data")
    execute(clone, "dvc", "repro")
    return clone


def costs_of(clone: Path) -> dict[str, Cost]:
    """By stage, in the order of the graph, from its records of costs and dvc.lock."""
    lock = read_yaml(clone / "dvc.lock")["stages"]
    costs = {}
    for record in read_records(clone / "reports/resources", list(read_yaml(clone / "dvc.yaml")["stages"])):
        stage, seconds = record["stage"], record["seconds"]
        size = sum(out.get("size", 0) for out in lock[stage]["outs"])
        costs[stage] = Cost(
            seconds * TRIALS if stage == "tune" else seconds,
            max(record["peak_mib"], record["largest_child_mib"]),
            size / 1e6,
        )
    return {stage: cost for stage, cost in costs.items() if stage not in UNCOUNTED}


def on_line(posts: Sequence[int], values: Sequence[float], at: int) -> float:
    """The value at `at` posts of the line through two points; a line that falls is taken to be level.

    >>> on_line([10, 20], [1.0, 2.0], 100)
    10.0
    """
    (first, second), (low, high) = posts, values
    return high + max(0.0, (high - low) / (second - first)) * (at - second)


def table(costs: Mapping[int, Mapping[str, Cost]]) -> str:
    """A line a stage: what both runs cost, time and disk at POSTS; in total these add up, memory does not."""
    sizes = list(costs)
    small, large = costs.values()
    each = {stage: (small[stage], large[stage]) for stage in small}
    totals = tuple(map(_total, costs.values()))
    hours = {stage: on_line(sizes, [cost.seconds for cost in pair], POSTS) / 3600 for stage, pair in each.items()}
    gb = {stage: on_line(sizes, [cost.mb for cost in pair], POSTS) / 1e3 for stage, pair in each.items()}
    lines = [["stage", *(f"{what} {posts:,}" for what in ("s", "MiB", "MB") for posts in sizes)]]
    lines[0] += [f"hours {POSTS:,}", f"GB {POSTS:,}"]
    for stage, pair in [*each.items(), ("total", totals)]:
        measured = [f"{value:,.1f}" for values in zip(*map(astuple, pair), strict=True) for value in values]
        found = (each_of.get(stage, sum(each_of.values())) for each_of in (hours, gb))
        lines.append([stage, *measured, *(f"{value:.2f}" for value in found)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _total(costs: Mapping[str, Cost]) -> Cost:
    seconds, mib, mb = zip(*map(astuple, costs.values()), strict=True)
    return Cost(sum(seconds), max(mib), sum(mb))


if __name__ == "__main__":
    run(main)
