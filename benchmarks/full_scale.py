"""Ours beside the plain way at 1, 3 and 10 times as many posts, up to SMPD's 486,194: time, memory, growth. One table.

    make bench
    python -m benchmarks.full_scale --only features stack --posts 48619
    python -m benchmarks.full_scale --out reports/bench.txt

| section | ours | beside it |
|---|---|---|
| features | ingest, split, metadata features without text components (`final`; all) | pandas, same values (not at 3x) |
| images, text | the embed stage, reading and decoding included | the encoder alone over batches in memory |
| network | a training step | its matrix products alone |
| stack | encoders, rounds, boosters, scale of the error | LightGBM's cv and train on the same matrix |
| predict | predictions of the stack | LightGBM's on the same matrix |
| dvc | `dvc repro` with nothing to do | |
| change | `dvc repro` after a changed parameter of the stack (profile tiny) | the whole run |

Each number is of a process of its own; ours and the other take turns. Seconds are of the clock, CPU of all threads: on
a machine that does other work believe the second and the ratios. Growth is the exponent of the CPU time in the posts.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.measuring import REPOSITORY, execute, measure
from benchmarks.scale import POSTS
from popularity.dataset.preparation import set_root
from popularity.files import write_text
from popularity.stage import run

TIMES = (1, 3, 10)
# Posts (pictures, texts) at 10 times; the rest follows.
LARGEST = {"features": POSTS, "images": 2560, "text": 10_000, "network": 30_000, "stack": POSTS, "dvc": POSTS}
CHANGED_POSTS = 2000


@dataclass(frozen=True)
class Row:
    """One measurement: seconds, CPU seconds and peak memory of ours, and of the other where there is one."""

    what: str
    posts: int
    seconds: float
    cpu: float
    mib: float
    beside: str = ""
    other_seconds: float | None = None
    other_cpu: float | None = None
    other_mib: float | None = None
    note: str = ""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--posts", type=int, help="of the largest data set in every section; default: see the source")
    parser.add_argument("--out", type=Path, default=Path("reports/bench.txt"), help="the table; beside it a .csv")
    parser.add_argument("--folder", type=Path, help="for data sets; default: a temporary one")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        for section in args.only:
            largest = args.posts or LARGEST.get(section, CHANGED_POSTS)
            for times in TIMES:
                posts = max(round(largest * times / TIMES[-1]), 300)
                sections = SECTIONS | BETWEEN if TIMES[0] < times < TIMES[-1] else SECTIONS
                for row in sections[section](Path(name), posts):
                    rows.append(row)
                    print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)
    text = f"{table(rows)}\n\n{growth(rows)}\n\n{(time.perf_counter() - started) / 60:.1f} minutes, {machine()}\n"
    write_text(args.out, text)
    with args.out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    print(text)


def machine() -> str:
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end"


def table(rows: Sequence[Row]) -> str:
    lines: list[tuple[str, ...]] = [("", "posts", "s", "CPU s", "MiB", "beside", "s", "CPU s", "MiB", "CPU ratio", "")]
    for row in rows:
        ratio = "" if row.other_cpu is None or not row.cpu else f"{row.other_cpu / row.cpu:.2f}"
        own = (row.seconds, row.cpu, row.mib)
        other = (row.other_seconds, row.other_cpu, row.other_mib)
        lines.append((row.what, f"{row.posts:,}", *map(_shown, own), row.beside, *map(_shown, other), ratio, row.note))
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    texts = {0, 5, 10}
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if place in texts else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


def growth(rows: Sequence[Row]) -> str:
    """The exponent of CPU time in posts, by least squares on logarithms, of each kind of row."""
    lines = []
    for what in dict.fromkeys(row.what for row in rows):
        points = [(math.log(row.posts), math.log(max(row.cpu, 1e-3))) for row in rows if row.what == what]
        if len({x for x, _ in points}) > 1:
            lines.append(f"{what:<40}  cpu ~ posts ^ {slope(points):.2f}")
    return "\n".join(lines)


def slope(points: Sequence[tuple[float, float]]) -> float:
    mean_x, mean_y = (sum(each) / len(points) for each in zip(*points, strict=True))
    return float(sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points))


def beside(what: str, posts: int, ours: dict[str, Any], name: str, other: dict[str, Any], note: str = "") -> Row:
    return Row(
        what, posts, ours["seconds"], ours["cpu"], ours["mib"], name, other["seconds"], other["cpu"], other["mib"], note
    )


def alone(what: str, posts: int, ours: dict[str, Any], note: str = "") -> Row:
    return Row(what, posts, ours["seconds"], ours["cpu"], ours["mib"], note=note)


def data_set(folder: Path, posts: int, form: str) -> tuple[Path, dict[str, Any] | None]:
    """The data set of that size and form, and what it cost if it was not there."""
    root = folder / f"{posts}{form}"
    cost = None if root.exists() else measure("scale_features", "generate", root, str(posts), form)
    return root, cost


# features


def features(folder: Path, posts: int, *, pandas: bool = True) -> Iterator[Row]:
    for form in ("A", "B"):
        root, cost = data_set(folder, posts, form)
        if cost:
            yield alone(f"generator, user file {form}", posts, cost)
        yield alone(f"ingest, user file {form}", posts, measure("scale_features", "ingest", root))
        if form == "A":
            shutil.rmtree(root)
    yield alone("split", posts, measure("scale_features", "split", root))
    yield alone("ingest + features of final alone", posts, measure("scale_features", "final", root))
    ours = measure("scale_features", "all", root)
    if not pandas:
        yield alone("ingest + metadata features", posts, ours)
        return
    other = measure("scale_features", "pandas", root)
    worst = measure("scale_features", "differences", root)["worst"]
    yield beside("ingest + metadata features", posts, ours, "pandas", other, f"values within {worst:.0e}")


# images and text


def images(folder: Path, posts: int) -> Iterator[Row]:
    ours, other = (
        measure("scale_models", "images", folder, str(posts)),
        measure("scale_models", "bare_images", folder, str(posts)),
    )
    yield beside("decode + encode pictures", posts, ours, "encoder alone", other, ours["note"])


def text(folder: Path, posts: int) -> Iterator[Row]:
    ours, other = (
        measure("scale_models", "text", folder, str(posts)),
        measure("scale_models", "bare_text", folder, str(posts)),
    )
    yield beside("tokenise + encode texts", posts, ours, "encoder alone", other)


# network


def network(folder: Path, posts: int) -> Iterator[Row]:
    found = measure("scale_models", "network", folder, str(posts))
    step, products = found["step"], found["products"]
    yield beside("network, training steps", posts, step | {"mib": found["mib"]}, "matrix products", products)


# stack


def stack(folder: Path, posts: int) -> Iterator[Row]:
    root, _ = data_set(folder, posts, "B")
    if not (root / "label.parquet").exists():
        measure("scale_features", "final", root)
    ours, other = measure("scale_models", "stack", root, "ours"), measure("scale_models", "stack", root, "plain")
    for name in ("fit", "predict"):
        what = "stack, fit" if name == "fit" else "stack, predict"
        yield beside(what, posts, ours[name] | {"mib": ours["mib"]}, "LightGBM", other[name] | {"mib": other["mib"]})


def dvc(folder: Path, posts: int) -> Iterator[Row]:
    """`dvc repro` with nothing to do: a clone whose outputs are stand-ins that are committed as they are."""
    root, _ = data_set(folder, posts, "B")
    clone = folder / f"clone{posts}"
    shutil.rmtree(clone, ignore_errors=True)
    make_clone(clone)
    stand_in(clone, root / "data")
    execute(clone, "dvc", "commit", "--force")
    execute(clone, "dvc", "repro", "--quiet")
    cost = measure("scale_features", "repro", clone)
    if cost["ran"]:
        raise RuntimeError(f"dvc repro ran {cost['ran']} stages that had nothing to do")
    yield alone("dvc repro, nothing to do", posts, cost)


def make_clone(clone: Path) -> None:
    execute(REPOSITORY, "git", "clone", "--quiet", "--no-hardlinks", str(REPOSITORY), str(clone))


def stand_in(clone: Path, root: Path) -> None:
    """Puts a small file wherever the graph of `clone` has an output, and `root` in as its data set."""
    set_root(clone / "params.yaml", root)
    stages = YAML(typ="safe").load((clone / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    outs: set[str] = set()
    deps: set[str] = set()
    for stage in stages.values():
        for kind, names in (("outs", outs), ("metrics", outs), ("deps", deps)):
            names |= {next(iter(each)) if isinstance(each, dict) else each for each in stage.get(kind, [])}
        files = {name for each in stage.get("params", []) if isinstance(each, dict) for name in each}
        outs |= {name for name in files if not (clone / name).exists()}
    made = {dep for dep in deps if dep.startswith(("data/", "models/", "reports/", "submissions/"))}
    for name in sorted(outs | made, reverse=True):  # a file in a folder before the folder
        path = clone / name
        inner = path if path.suffix else path / "content"
        inner.parent.mkdir(parents=True, exist_ok=True)
        if not inner.is_dir():
            inner.write_text("{}\n", encoding="utf-8")


def change(folder: Path, posts: int) -> Iterator[Row]:
    """The whole graph on a demo of the profile tiny, then once more after a change of the stack's parameters."""
    clone = folder / f"run{posts}"
    make_clone(clone)
    execute(clone, sys.executable, "-m", "popularity.profile", "tiny")
    yaml, file = YAML(), clone / "params.yaml"

    def edit(section: str, **values: Any) -> None:
        content = yaml.load(file.read_text(encoding="utf-8"))
        content[section] |= values
        with file.open("w", encoding="utf-8") as stream:
            yaml.dump(content, stream)

    edit("demo", posts=posts, users=posts // 4)
    whole = measure("scale_features", "repro", clone)
    edit("stack", seed=1)
    changed = measure("scale_features", "repro", clone)
    yield beside("a changed stack parameter (tiny)", posts, changed, "whole run", whole)


SECTIONS: dict[str, Callable[[Path, int], Iterator[Row]]] = {
    "features": features,
    "images": images,
    "text": text,
    "network": network,
    "stack": stack,
    "dvc": dvc,
    "change": change,
}
# Between the ends pandas would take minutes and say nothing that they do not.
BETWEEN: dict[str, Callable[[Path, int], Iterator[Row]]] = {"features": partial(features, pandas=False)}

if __name__ == "__main__":
    run(main)
