"""The whole graph at the official size: seconds, CPU seconds, memory and disk of every stage, measured.

    python -m benchmarks.official --folder ../official                # 486,194 posts
    python -m benchmarks.official --folder ../official --fraction .1  # a tenth, for the column `growth`
    python -m benchmarks.official --folder ../official --print        # the table of what was run, and nothing else

Posts are generated in the proportions of SMPD (users, classes, texts, trend; user file B), with pictures of a pool. The
stages of dvc.yaml run one after another in a clone of the last commit, from raw files to the submission, which is
checked. Data, clone, state, cache (of hard links) and outputs lie in the folder, outside of the repository.

It may be interrupted and killed: the same command goes on, with the commit of its clone, and seconds and CPU seconds of
all attempts of a stage are summed. A record of each attempt lies in `attempts` in the folder, or where `--attempts`
says: there it outlives the folder. Where it was lost, stages of separate folders are summed, and the table says so.

To measure the stages apart, on days of their own:

    python -m benchmarks.official --folder ../one --until embed_image@efficientnet_lite0 --csv one.csv
    python -m benchmarks.official --folder ../two --copy-vectors --with one.csv

`--copy-vectors` encodes each picture of the pool once and copies its vector to all posts that have it, in place of the
stages embed_image, which then have no time of their own. `--with` adds the rows of stages that this folder lacks.

Seconds and CPU seconds have the start of Python and DVC's checksums in them. Peak MiB is the larger of two: what all
processes of a stage hold at a time (shared memory once, looked at every second), and the largest resident set of one of
them, which counts mapped files that the system could drop. Growth is the exponent of the CPU seconds in the number of
posts, against a tenth of the posts in the same folder; of stages of a few seconds it says little. No stage that is
measured computes a vector once for two posts because their pictures are alike; equal texts are encoded once, as in
every run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import psutil  # type: ignore[import-untyped]  # a requirement of DVC
from PIL import Image
from tqdm import tqdm

from benchmarks.measuring import REPOSITORY, environment, execute
from benchmarks.speed.features import SMPD_POSTS, scaled
from benchmarks.speed.graph import make_clone
from benchmarks.tables import add_csv_flag, text_table, write_csv
from popularity.core import paths
from popularity.core.atomic import atomic_directory, read_json, write_json
from popularity.core.config import PARAMS_FILE, read_yaml
from popularity.core.contracts import IMAGE_STATISTICS, IMAGE_STATUS, IMAGES, SPLITS, read_table, write_table
from popularity.core.errors import ConfigError, PopularityError
from popularity.core.stage import run
from popularity.core.vectors import Block, read_block, write_block
from popularity.dataset.preparation import set_root
from popularity.demo import generate
from popularity.demo.images import draw
from popularity.demo.layout import write_images
from popularity.demo.posts import choose_classes
from popularity.resources import stage_order

SIDE = 500  # pixels of a published picture's longer side
POOLED_QUALITY = 40  # of the pool's JPEG files: half a million of them take 7 GB
POOL = 24  # pictures of each class
EMBED_IMAGE = "embed_image@"  # the start of the names of the stages that encode pictures
BEAT_SECONDS = 5.0  # between two records of a running attempt
LOOK_SECONDS = 1.0  # between two looks at its memory


class StageFailedError(PopularityError):
    """A stage of the clone ended with an error."""


@dataclass(frozen=True)
class Place:
    """The folders of a run.

    Args:
        base: holds the others.
        attempts: records of the attempts.
    """

    base: Path
    attempts: Path

    @property
    def data(self) -> Path:
        """The data set, with its truth beside it."""
        return self.base / "generated" / "data"

    @property
    def clone(self) -> Path:
        """The repository in which the graph runs."""
        return self.base / "run"

    @property
    def name(self) -> str:
        """Of the clone: another one after the folder was lost."""
        return str(read_json(self.base / "run.json")["name"])


@dataclass(frozen=True)
class Attempt:
    """One start of a stage.

    Args:
        run: name of the clone.
        commit: that it is of.
        stage: as in dvc.yaml.
        started: seconds since 1970.
        group: its process group.
        state: running, done or failed; an attempt that was killed stays at running.
        seconds: until the last record.
        cpu: seconds of all its processes.
        peak_mib: the largest sum over its processes.
        mb: of its outputs.
    """

    run: str
    commit: str
    stage: str
    started: float
    group: int = 0
    state: str = "running"
    seconds: float = 0.0
    cpu: float = 0.0
    peak_mib: float = 0.0
    mb: float = 0.0


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of data, clone and outputs; outside the repository")
    parser.add_argument("--posts", type=int, default=SMPD_POSTS, help="in both parts together")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the posts")
    parser.add_argument("--profile", default="smpd_cpu")
    parser.add_argument("--pool", type=int, default=POOL, help="different pictures of each class")
    parser.add_argument("--side", type=int, default=SIDE, help="pixels of a picture's longer side")
    parser.add_argument("--until", metavar="STAGE", help="the last stage that is run")
    parser.add_argument("--attempts", type=Path, help="folder of the records; by default in --folder")
    parser.add_argument("--copy-vectors", action="store_true", help="encode each picture once, without a time")
    parser.add_argument("--with", type=Path, dest="others", metavar="FILE", help="a --csv of stages measured apart")
    parser.add_argument("--print", action="store_true", dest="only_print", help="run nothing")
    add_csv_flag(parser)
    args = parser.parse_args(argv)
    if args.folder.resolve().is_relative_to(REPOSITORY):
        raise ConfigError(f"--folder {args.folder}: expected a folder outside of {REPOSITORY}")
    posts = round(args.posts * args.fraction)
    place = place_of(args.folder, args.attempts, posts)
    if not args.only_print:
        prepare(place, posts, args.profile, (args.pool, args.side))
        repro(place, args.until, args.copy_vectors)
    others = [] if args.others is None else read_rows(args.others, posts)
    rows = table(place, posts, place_of(args.folder, args.attempts, round(posts / 10)), others)
    print(text_table(rows, digits=2))
    print("\n".join(notes(place, posts, args.profile, args.others)))
    write_csv(rows, args.csv)


def place_of(folder: Path, attempts: Path | None, posts: int) -> Place:
    """The folders of the run on so many posts."""
    base = folder.resolve() / f"posts-{posts}"
    return Place(base, base / "attempts" if attempts is None else attempts.resolve() / f"posts-{posts}")


def prepare(place: Place, posts: int, profile: str, pool: tuple[int, int]) -> None:
    """Generates the data set and makes the clone, where they are missing.

    Args:
        place: of the run.
        posts: in both parts together.
        profile: of the clone.
        pool: pictures of each class, and pixels of their longer side.

    Raises:
        ConfigError: the clone there is of another profile.
    """
    if not place.data.exists():
        with atomic_directory(place.data.parent) as partial:
            write_data(partial, posts, *pool)
    if not (place.base / "run.json").exists():
        make_clone(place.clone)
        for key, value in (("core.site_cache_dir", str(place.base / "dvc")), ("cache.type", "hardlink,copy")):
            execute(place.clone, "dvc", "config", "--local", key, value)
        execute(place.clone, sys.executable, "-m", "popularity.profile", profile)
        set_root(place.clone / PARAMS_FILE, place.data)
        write_json(place.base / "run.json", {"name": uuid.uuid4().hex[:8], "profile": profile})
    found = read_json(place.base / "run.json")["profile"]
    if found != profile:
        raise ConfigError(
            f"{place.clone}: runs with profile {found}, not {profile}\n  expected: the same until it has finished\n"
            f"  next: give --profile {found}, or remove {place.base / 'run.json'} to begin again with these data"
        )


def head(repository: Path) -> str:
    """The last commit."""
    return execute(repository, "git", "rev-parse", "HEAD").strip()


def write_data(out: Path, posts: int, pool: int, side: int) -> None:
    """Writes a data set in the official layout into out/data, its pictures into shards, and its truth into out/truth.

    Args:
        out: an empty folder.
        posts: in both parts together.
        pool: different pictures of each class; a post gets one of its class.
        side: pixels of a picture's longer side.
    """
    params = scaled(posts, "B", side)
    generate(params, out / "data", out / "truth", 0)
    rng, chosen = np.random.default_rng(params.seed), random.Random(params.seed)
    pictures = {
        one.subcategory.name: [
            smaller(draw(one.category, one.subcategory, index % 3 % len(one.subcategory.concepts), quality, side, rng))
            for index, quality in enumerate(rng.random(pool))
        ]
        for one in tqdm(choose_classes(params.subcategories), desc="pool", unit="class")
    }
    for split in SPLITS:
        folder = out / "data" / f"{split}_allmetadata_json"
        names = (folder / f"{split}_img_filepath.txt").read_text(encoding="utf-8").split()
        classes = [row["Subcategory"] for row in read_json(folder / f"{split}_category.json")]
        images = (chosen.choice(pictures[name]) for name in classes)
        progress = tqdm(zip(names, images, strict=True), total=len(names), desc=f"{split} images", unit="post")
        write_images(out / "data" / f"{split}_images.tar", progress)


def smaller(picture: bytes) -> bytes:
    """The same pixels, nearly, in a smaller JPEG file."""
    stream = BytesIO()
    Image.open(BytesIO(picture)).save(stream, "JPEG", quality=POOLED_QUALITY)
    return stream.getvalue()


def stages_of(clone: Path) -> list[str]:
    """The stages in the order of dvc.yaml, in which each comes after those that it reads."""
    return stage_order(read_yaml(clone / "dvc.yaml"), read_yaml(clone / PARAMS_FILE))


def repro(place: Place, until: str | None, copy: bool) -> None:
    """Runs every stage that is not up to date, and checks the submission at the end.

    Args:
        place: of the run.
        until: the last stage that is run.
        copy: the stages embed_image do not run: see `copy_vectors`.

    Raises:
        ConfigError: there is no stage `until`.
        StageFailedError: a stage ended with an error.
    """
    names = stages_of(place.clone)
    if until is not None and until not in names:
        raise ConfigError(f"--until {until}: no stage; there are {', '.join(names)}")
    end_left_behind(place)
    for name in names:
        if copy and name.startswith(EMBED_IMAGE):
            copy_vectors(place, name)
        else:
            run_stage(place, name)
        if name == until:
            return
    found = execute(place.clone, sys.executable, "-m", "popularity.submission").strip().splitlines()
    write_json(place.base / "submission.json", {"check": found})


def run_stage(place: Place, stage: str) -> None:
    """Runs a stage by `dvc repro`, with a record of it that is renewed every BEAT_SECONDS.

    Raises:
        StageFailedError: it ended with an error.
    """
    number = len(list(place.attempts.glob("*.json")))
    file = place.attempts / f"{number:04d}-{stage.replace('@', '-')}.json"
    attempt = Attempt(place.name, head(place.clone), stage, time.time())
    log = place.base / "logs" / file.with_suffix(".log").name
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{datetime.now(UTC):%H:%M:%S} {stage}", file=sys.stderr, flush=True)
    before = _children_cpu()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            ["dvc", "repro", "--single-item", stage],
            cwd=place.clone,
            env=environment(place.clone),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        attempt = replace(attempt, group=process.pid)
        try:
            for cost in watch(process):
                attempt = replace(attempt, **cost)
                write_json(file, asdict(attempt))
        except BaseException:  # an interruption ends the stage, too
            os.killpg(process.pid, signal.SIGKILL)
            raise
    text = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode == 0 and "Running stage" not in text:  # it was up to date
        file.unlink(missing_ok=True)
        return
    attempt = replace(attempt, cpu=_children_cpu() - before)
    if process.returncode:
        write_json(file, asdict(replace(attempt, state="failed")))
        raise StageFailedError(
            f"stage {stage} failed: {text[-2000:]}\n  next: mend it and run the same command: finished stages are kept"
        )
    outs = read_yaml(place.clone / "dvc.lock")["stages"][stage].get("outs", [])
    mb = sum(out.get("size", 0) for out in outs) / 1e6
    peak = max(attempt.peak_mib, recorded_peak(place.clone, stage))
    write_json(file, asdict(replace(attempt, state="done", mb=mb, peak_mib=peak)))


def copy_vectors(place: Place, stage: str) -> None:
    """Writes the outputs of a stage embed_image@NAME from one post of each picture, unless they are up to date.

    The last bits of a vector may be others than the stage's, which has the picture in another batch. The stage counts
    as run then: to measure it, take another folder.
    """
    encoder, clone = stage.removeprefix(EMBED_IMAGE), place.clone
    out = vectors_of(place, stage)
    if out.exists() and json.loads(execute(clone, "dvc", "status", "--json", stage)) == {}:
        return
    images = read_table(clone / paths.IMAGES, IMAGES)
    usable = images.filter(status="ok").sort("pid")
    first = usable.unique("checksum", keep="first", maintain_order=True)
    posts = usable.select("pid", "checksum").join(first.select("checksum", picture="pid"), on="checksum").sort("pid")
    with TemporaryDirectory(dir=place.base) as name:
        table, encoded = Path(name) / "images.parquet", Path(name) / "out"
        write_table(first, table, IMAGES)
        resources = clone / paths.encoder_resources("image", encoder)
        files = {"root": place.data, "images": table, "out": encoded, "resources": resources}
        flags = [word for flag, path in files.items() for word in (f"--{flag}", str(path))]
        command = ("popularity.launch", "stages.embed_image", "--encoder", encoder, *flags)
        execute(clone, sys.executable, "-m", *command)
        block = read_block(encoded, "pooled")
        statistics = read_table(encoded / "statistics.parquet", IMAGE_STATISTICS).rename({"pid": "picture"})
    with atomic_directory(out) as partial:
        values = block.values[block.rows(posts["picture"].to_list())]
        write_block(Block(values, posts["pid"].to_list(), block.metadata), partial, "pooled")
        own = posts.join(statistics, on="picture").sort("pid").drop("picture", "checksum")
        write_table(own, partial / "statistics.parquet", IMAGE_STATISTICS)
        write_table(images.select("pid", "status"), partial / "status.parquet", IMAGE_STATUS)
    execute(clone, "dvc", "commit", "--force", stage)


def vectors_of(place: Place, stage: str) -> Path:
    """The output of a stage embed_image@NAME."""
    return place.clone / "data" / "embeddings" / "image" / stage.removeprefix(EMBED_IMAGE)


def watch(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """Yields the cost of a process so far, at once and then every BEAT_SECONDS, until it has ended.

    Yields:
        `seconds`, `cpu` and `peak_mib` of Attempt.
    """
    started, beat, peak = time.monotonic(), 0.0, 0.0
    ended = False
    while not ended:
        cpu, mib = usage(process.pid)
        peak = max(peak, mib)
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_SECONDS)
            ended = True
        if ended or time.monotonic() >= beat:
            beat = time.monotonic() + BEAT_SECONDS
            yield {"seconds": time.monotonic() - started, "cpu": cpu, "peak_mib": round(peak, 1)}


def usage(pid: int) -> tuple[float, float]:
    """CPU seconds so far and memory (MiB, shared pages once) of a process and all below it."""
    cpu, size = 0.0, 0
    with suppress(psutil.Error):
        for one in [(first := psutil.Process(pid)), *first.children(recursive=True)]:
            with suppress(psutil.Error):
                cpu += sum(one.cpu_times()[:4])
                size += one.memory_full_info().pss
    return cpu, size / 2**20


def recorded_peak(clone: Path, stage: str) -> float:
    """MiB of the largest process of a stage, by its own record of resources."""
    record = read_json(clone / "reports" / "resources" / f"{stage.replace('@', '_')}.json")
    return float(max(record["peak_mib"], record["largest_child_mib"]))


def _children_cpu() -> float:
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def end_left_behind(place: Place) -> None:
    """Ends what a killed run of this benchmark left behind in its clone, and removes DVC's locks of it."""
    groups = {one.group for one in attempts_of(place) if one.state == "running"}
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) in groups and Path(process.cwd()) == place.clone:
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=10)
    (place.clone / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)


def attempts_of(place: Place) -> list[Attempt]:
    """All attempts, in the order of their start."""
    return [Attempt(**read_json(file)) for file in sorted(place.attempts.glob("*.json"))]


def costs(place: Place) -> dict[str, list[Attempt]]:
    """By stage the attempts that count: those in the clone in which it finished last, else those in the last clone."""
    found: dict[str, list[Attempt]] = {}
    for one in attempts_of(place):
        found.setdefault(one.stage, []).append(one)
    counted = {}
    for stage, own in found.items():
        last = next((one.run for one in reversed(own) if one.state == "done"), own[-1].run)
        counted[stage] = [one for one in own if one.run == last]
    return counted


def read_rows(file: Path, posts: int) -> list[dict[str, Any]]:
    """The rows of stages of a table that --csv wrote.

    Raises:
        ConfigError: they are of another number of posts.
    """
    rows = pl.read_csv(file).filter(pl.col("stage") != "all")
    if found := [each for each in rows["posts"].unique() if each != posts]:
        raise ConfigError(f"--with {file}: of {found[0]:,} posts\n  expected: {posts:,}, as this run has")
    return rows.to_dicts()


def table(place: Place, posts: int, tenth: Place, others: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """A row for each stage that has run, and their sum; peaks do not add up.

    Args:
        place: of the run.
        posts: in both parts together.
        tenth: of a run on a tenth of the posts.
        others: rows of stages that were measured apart; those that this run has finished take precedence.
    """
    found, smaller_run = costs(place), costs(tenth)
    apart = [row for row in others if row["stage"] not in found or found[row["stage"]][-1].state != "done"]
    names = {row["stage"] for row in apart}
    own = {stage: attempts for stage, attempts in found.items() if stage not in names}
    rows = [row_of(stage, attempts, growth(attempts, smaller_run.get(stage, ()))) for stage, attempts in own.items()]
    rows = [*({"posts": posts, **row} for row in rows), *apart]
    every: dict[str, Any] = {name: sum(row[name] for row in rows) for name in ("attempts", "seconds", "cpu", "mb")}
    every |= {"posts": posts, "stage": "all", "peak_mib": max((row["peak_mib"] for row in rows), default=0)}
    every["state"] = next((row["state"] for row in rows if row["state"] != "done"), "done")
    cpu = sum(one.cpu for attempts in smaller_run.values() for one in attempts)
    same = {row["stage"] for row in rows} == set(smaller_run)
    done = every["state"] == "done" and all(attempts[-1].state == "done" for attempts in smaller_run.values())
    every["growth"] = math.log10(every["cpu"] / cpu) if same and done and cpu else None
    return [*rows, every]


def row_of(stage: str, own: Sequence[Attempt], exponent: float | None) -> dict[str, Any]:
    """The sums over the attempts of a stage; `state` is `done`, or that of the last attempt."""
    state = own[-1].state
    return {
        "stage": stage,
        "attempts": len(own),
        "state": "interrupted" if state == "running" else state,
        "seconds": sum(one.seconds for one in own),
        "cpu": sum(one.cpu for one in own),
        "peak_mib": round(max(one.peak_mib for one in own)),
        "mb": own[-1].mb,
        "growth": exponent,
        "commit": own[-1].commit[:7],
    }


def growth(own: Sequence[Attempt], tenth: Sequence[Attempt]) -> float | None:
    """The exponent of the CPU seconds, of finished stages alone.

    >>> one = Attempt("", "", "", 0.0, state="done", cpu=10.0)
    >>> growth([replace(one, cpu=100.0)], [one])
    1.0
    """
    if not own or not tenth or {own[-1].state, tenth[-1].state} != {"done"}:
        return None
    return math.log10(sum(one.cpu for one in own) / max(sum(one.cpu for one in tenth), 1e-3))


def notes(place: Place, posts: int, profile: str, others: Path | None = None) -> Iterator[str]:
    """Lines below the table: what ran, whether it is whole, and what the submission's check said."""
    counted = [one for own in costs(place).values() for one in own]
    commits = ", ".join(dict.fromkeys(one.commit[:7] for one in counted))
    yield f"\n{posts:,} posts, profile {profile}, commit {commits or '-'}, {os.cpu_count()} cores"
    runs = len({one.run for one in counted})
    if runs > 1:
        yield f"The folder was lost: stages of {runs} separate clones are summed."
    for stage in stages_of(place.clone) if place.clone.exists() else ():
        if stage.startswith(EMBED_IMAGE) and vectors_of(place, stage).exists() and stage not in costs(place):
            yield f"Not measured in this folder: {stage}"
    if others is not None:
        yield f"Stages that this folder lacks were measured apart: {others}"
    check = place.base / "submission.json"
    yield from read_json(check)["check"] if check.exists() else ["No submission yet: the graph has not run to its end."]


if __name__ == "__main__":
    run(main)
