"""Time and memory of ours and of a baseline, and the ratio of the two, by subcommand.

    python -m benchmarks.speed features                     # at a tenth, three tenths and all of SMPD's 486,194 posts
    python -m benchmarks.speed stack --posts 48619 --csv stack.csv
    python -m benchmarks.speed network --posts 305613 --encoder clip --steps 200
    python -m benchmarks.speed all                          # every section: `make bench`, up to 40 minutes
    python -m benchmarks.speed launches                     # operations of a training step, before and after
    python -m benchmarks.speed attention                    # on a CPU: attention in linear time against all pairs
    python -m benchmarks.speed predict --folder RUN         # a process that holds a finished run's models
    python -m benchmarks.speed boosters --folder RUN        # those of a finished run's search and stack, and their time
    python -m benchmarks.speed data --out smpd --posts 486194          # the data set itself

| subcommand | ours | baseline |
|---|---|---|
| features | ingest; split; counts and target statistics of the refit | pandas, the same values |
| images, text | the embed stage, reading and decoding included | the encoder alone over batches in memory |
| text_model | fits and predictions on stored outputs of the frozen layers | the same on the texts |
| network | a training step | its matrix products alone |
| stack | encoders, rounds, boosters, error scale; predictions | LightGBM's cv, train and predict on the matrix |
| | one booster inside `fit_fold` | `lightgbm.train` with its parameters, rounds, threads and matrix |
| dvc | `dvc repro` with nothing to do | |
| change | `dvc repro` after a changed parameter of the stack (profile tiny) | the whole run |

Each number is of its own process; ours and the baseline alternate. Seconds are wall-clock time, CPU is of all threads:
on a busy machine CPU and the ratio are reliable. The ratio is CPU of the baseline over CPU of ours. Growth is the
exponent of the CPU time in the number of posts. `network` needs torch, transformers and accelerate alone, and runs on
the accelerator if there is one: then the ratio is of seconds. `launches` counts the operations that a training step
launches on an accelerator, and how often the host waits for it: with G, L and each parameter's update apart, then as
they are taken. `attention` times a training step, and the columns of a batch in `embed_posts`, on a CPU, with the first
layer in linear time and over all pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import measure
from benchmarks.tables import add_csv_flag, text_table, write_csv
from popularity.core.stage import run

SMPD_POSTS = 486_194
FRACTIONS = (0.1, 0.3, 1.0)
# Posts (images, texts) of the largest data set of each section.
LARGEST = {
    "features": SMPD_POSTS, "images": 2560, "text": 10_000, "text_model": 1000, "network": 30_000, "stack": SMPD_POSTS,
    "dvc": SMPD_POSTS, "change": 2000,
}  # fmt: skip
# Flags of a section, whole numbers.
NUMBERS = {
    "images": {"batch_size": "of the encoder; by default that of params.yaml"},
    "text_model": {"baseline_layers": "trained layers of the baseline; by default ours"},
}
MIN_POSTS = 300
FILE_POSTS = 1000
STEP_POSTS = 3000


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="section", required=True)
    for name in (*SECTIONS, "all"):
        command = commands.add_parser(name)
        command.add_argument("--posts", type=int, nargs="+", help="sizes of the data sets")
        command.add_argument("--work", type=Path, help="folder for data sets; by default a temporary one")
        add_csv_flag(command)
        if name == "network":
            add_network_flags(command)
        for flag, text in NUMBERS.get(name, {}).items():
            command.add_argument(f"--{flag.replace('_', '-')}", type=int, help=text)
    for name, defaults in STEPS.items():
        add_network_flags(commands.add_parser(name), **defaults)
    resident = commands.add_parser("predict", help="one post and a file of posts, by a process that holds the models")
    resident.add_argument("--folder", type=Path, default=Path(), help="in which the graph has run")
    resident.add_argument("--posts", type=int, default=FILE_POSTS, help="of the file")
    add_csv_flag(resident)
    whole = commands.add_parser("boosters", help="stages tune and stack of a finished run again, boosters counted")
    whole.add_argument("--folder", type=Path, default=Path(), help="in which the graph has run")
    add_csv_flag(whole)
    add_data_flags(commands.add_parser("data", help="write a data set of any size in the official layout"))
    args = parser.parse_args(argv)
    if args.section == "data":
        print(json.dumps(measure("speed.features", "data", args.out.resolve(), *data_words(args))))
        return
    if args.section in ("predict", "boosters"):
        folder = args.folder.resolve()
        rows: list[dict[str, Any]] = list(
            predict(folder, args.posts) if args.section == "predict" else boosters(folder)
        )
        print(text_table(rows, digits=2))
        write_csv(rows, args.csv)
        return
    if args.section in STEPS:
        print(step_table(args.section, network_flags(args)))
        return
    flags = {name: getattr(args, name) for name in NUMBERS.get(args.section, {})}
    if args.section == "network":
        flags = network_flags(args)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.work and args.work.resolve()) as name:
        for section in SECTIONS if args.section == "all" else [args.section]:
            for posts in args.posts or sizes(LARGEST[section]):
                for row in SECTIONS[section](Path(name), posts, **flags):
                    rows.append(row)
                    print(f"{row['what']}, {posts:,} posts: {row['cpu']:.1f} CPU s", file=sys.stderr, flush=True)
    print(text_table(rows, digits=2))
    print(f"\n{growth(rows)}\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end")
    write_csv(rows, args.csv)


# Of each task of step.py: the defaults of its flags.
STEPS: dict[str, dict[str, Any]] = {
    "launches": {"encoder": "clip", "classes": 77, "dim": 512, "depth": 2, "precision": "fp32"},
    "attention": {"classes": 174},
}


def step_table(task: str, flags: dict[str, Any]) -> str:
    """The result of a task of step.py as a table, with the ratio of the first row to the second."""
    with tempfile.TemporaryDirectory() as folder:
        given = {name: value for name, value in flags.items() if value is not None}
        words = [*([str(STEP_POSTS)] if task == "attention" else []), json.dumps(given)]
        found = measure("speed.step", task, Path(folder), *words)
    pairs = {
        "launches": [("apart", "joint")],
        "attention": [("pairs", "shared"), ("embed_pairs", "embed_shared")],
    }[task]
    value = {"launches": "launched", "attention": "cpu"}[task]
    rows = [{"step": kind, **found[kind]} for kinds in pairs for kind in kinds]
    ratios = [f"ratio of {value}, {two}: {found[one][value] / found[two][value]:.2f}" for one, two in pairs]
    return "\n".join([text_table(rows, digits=2), "", *ratios])


def add_network_flags(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Adds the flags of the network, which replace values of section train.

    Args:
        parser: of a command.
        defaults: of the flags, where the command has others.
    """
    parser.add_argument(
        "--encoder", choices=["clip", "minilm"], default="minilm", help="clip: the size of CLIP, random weights"
    )
    parser.add_argument("--classes", type=int, default=77)
    parser.add_argument("--dim", type=int, help="of the attention; replaces that of params.yaml")
    parser.add_argument("--depth", type=int, help="of the attention; replaces that of params.yaml")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.set_defaults(**defaults)


def network_flags(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("encoder", "classes", "dim", "depth", "steps", "precision")}


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a data set in SMPD's proportions."""
    parser.add_argument("--out", type=Path, required=True, help="replaced; gets data/ and, for checks, truth/")
    parser.add_argument("--posts", type=int, default=SMPD_POSTS, help="in both parts together")
    parser.add_argument("--user-file", choices=["A", "B"], default="A")
    parser.add_argument("--images", type=int, default=0, help="different images in each part; 0: no shards")
    parser.add_argument("--side", type=int, default=96, help="pixels of the longer side of an image")


def data_words(args: argparse.Namespace) -> list[str]:
    return [str(value) for value in (args.posts, args.user_file, args.images, args.side)]


def sizes(largest: int) -> list[int]:
    """Numbers of posts: FRACTIONS of the largest, at least MIN_POSTS."""
    return [max(round(largest * fraction), MIN_POSTS) for fraction in FRACTIONS]


def row_of(what: str, posts: int, ours: dict[str, Any], baseline: str = "", other: dict[str, Any] | None = None) -> Any:
    """A row of the table: seconds, CPU seconds and peak memory (MiB) of ours and of the baseline, and their ratio."""
    row = {"what": what, "posts": posts} | {name: ours[name] for name in ("seconds", "cpu", "mib")}
    row["baseline"] = baseline
    row |= {f"baseline {name}": None if other is None else other[name] for name in ("seconds", "cpu", "mib")}
    by = ours.get("ratio_by", "cpu")
    row["ratio"] = None if other is None or not ours[by] else other[by] / ours[by]
    return row | {"note": ours.get("note", "")}


def data_set(folder: Path, posts: int) -> Path:
    """The data set of that size, generated once."""
    root = folder / f"{posts}"
    if not root.exists():
        measure("speed.features", "data", root, str(posts), "B", "16", "32")
    return root


def features(folder: Path, posts: int) -> Iterator[Any]:
    root = data_set(folder, posts)
    for task in ("ingest", "split"):
        yield row_of(task, posts, measure("speed.features", task, root))
    ours, baseline = measure("speed.features", "features", root), measure("speed.features", "pandas", root)
    ours["note"] = f"values within {measure('speed.features', 'difference', root)['worst']:.0e}"
    yield row_of("counts and target statistics", posts, ours, "pandas", baseline)


def images(folder: Path, posts: int, batch_size: int | None = None) -> Iterator[Any]:
    words = str(posts), str(batch_size or "")
    ours, baseline = (measure("speed.models", task, folder, *words) for task in ("images", "bare_images"))
    yield row_of("decode and encode images", posts, ours, "encoder alone", baseline)


def text(folder: Path, posts: int) -> Iterator[Any]:
    ours, baseline = (measure("speed.models", task, folder, str(posts)) for task in ("text", "bare_text"))
    yield row_of("tokenise and encode texts", posts, ours, "encoder alone", baseline)


def text_model(folder: Path, posts: int, baseline_layers: int | None = None) -> Iterator[Any]:
    ours = measure("speed.text_model", "stored", folder, str(posts))
    baseline = measure("speed.text_model", "whole", folder, str(posts), str(baseline_layers or ""))
    yield row_of("text model, fits and predictions", posts, ours, "every layer in every step", baseline)


def network(folder: Path, posts: int, **flags: Any) -> Iterator[Any]:
    found = measure("speed.network", "network", folder, str(posts), json.dumps(flags))
    yield row_of("network, a training step", posts, found["step"], "matrix products", found["products"])


def stack(folder: Path, posts: int) -> Iterator[Any]:
    root = data_set(folder, posts)
    if not (root / "features").exists():
        for task in ("ingest", "split"):
            measure("speed.features", task, root)
        measure("speed.models", "stack_features", root)
    ours, baseline = (measure("speed.models", task, root) for task in ("stack", "lightgbm"))
    for name in ("fit", "predict"):
        yield row_of(f"stack, {name}", posts, ours | ours[name], "LightGBM", baseline | baseline[name])
    found = measure("speed.models", "boosters", root)
    one, plain = found | found["one"], found | found["plain"]
    one["note"] = f"{found['boosters']} boosters in the fit"
    yield row_of("stack, one booster in the fit", posts, one, "lightgbm.train", plain)


def dvc(folder: Path, posts: int) -> Iterator[Any]:
    root = data_set(folder, posts)
    yield row_of("dvc repro, nothing to do", posts, measure("speed.graph", "nothing_to_do", folder, str(root)))


def change(folder: Path, posts: int) -> Iterator[Any]:
    found = measure("speed.graph", "change", folder, str(posts))
    yield row_of("a changed stack parameter (tiny)", posts, found["changed"], "whole run", found["whole"])


def predict(folder: Path, posts: int) -> Iterator[Any]:
    """Rows of a process that holds the models of a finished run, each beside the seconds that it may take."""
    found = measure("speed.resident", "predict", folder, str(posts))
    for what, rows, part, bound in (
        ("models loaded, and the first post", 1, "load", None),
        ("one post", 1, "one", 0.5),
        ("a file of posts", posts, "file", 60 * posts / FILE_POSTS),
    ):
        yield {"what": what, "posts": rows, **found[part], "mib": found["mib"], "at most": bound}


def boosters(folder: Path) -> Iterator[Any]:
    """A row for each stage of a finished run that trains boosters: their number, seconds in LightGBM and in all."""
    found = measure("speed.boosters", "boosters", folder)
    for stage in ("tune", "stack"):
        own = found[stage]
        seconds = {"seconds in LightGBM": own["lightgbm"], "of the stage": own["seconds"]}
        yield {"stage": stage, "boosters": own["boosters"], **seconds, "cpu": own["cpu"]}


SECTIONS: dict[str, Callable[..., Iterator[Any]]] = {
    "features": features, "images": images, "text": text, "text_model": text_model, "network": network,
    "stack": stack, "dvc": dvc, "change": change,
}  # fmt: skip


def growth(rows: Sequence[dict[str, Any]]) -> str:
    """The exponent of the CPU time in posts, by least squares on logarithms, of each kind of row with two sizes."""
    lines = []
    for what in dict.fromkeys(row["what"] for row in rows):
        points = [(math.log(row["posts"]), math.log(max(row["cpu"], 1e-3))) for row in rows if row["what"] == what]
        if len({x for x, _ in points}) > 1:
            lines.append(f"{what:<40}  cpu ~ posts ^ {slope(points):.2f}")
    return "\n".join(lines)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the least-squares line through the points."""
    mean_x, mean_y = (sum(each) / len(points) for each in zip(*points, strict=True))
    return float(sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points))


if __name__ == "__main__":
    run(main)
