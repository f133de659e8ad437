"""A process that holds a run's models: the task of `python -m benchmarks.speed predict --folder RUN`."""

from __future__ import annotations

import statistics
import sys
import tempfile
from contextlib import chdir, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.measuring import Clock, Task, run_task
from popularity.core import paths
from popularity.core.config import read_yaml
from popularity.core.contracts import IMAGES, class_names, read_table
from popularity.images import ImageReader
from popularity.predict.predict import N_FEATURES, Predictor, Project
from popularity.predict.requests import Request, make_posts

REPEATS = 5  # of a single post; the median counts


def task_predict(root: Path, count: str) -> dict[str, Any]:
    """Posts of the test part as if they were new: one, answered again and again, and a file of `count`."""
    with chdir(root), tempfile.TemporaryDirectory() as name, redirect_stderr(StringIO()):
        start = Clock()
        predictor = Predictor(Project.at(Path()))
        rows = _requests(predictor.known, int(count), Path(name))

        def answer(given: list[dict[str, str]]) -> dict[str, float]:
            clock = Clock()
            new = make_posts([Request(row, fields) for row, fields in enumerate(given)], predictor.known, Path(name))
            predictor.predict(new, N_FEATURES)
            return clock.read()

        answer(rows[:1])
        loaded = start.read()
        single = [answer([rows[index % len(rows)]]) for index in range(1, REPEATS + 1)]
        one = {each: statistics.median(cost[each] for cost in single) for each in single[0]}
        return {"load": loaded, "one": one, "file": answer(rows), "rows": len(rows)}


def _requests(known: pl.DataFrame, count: int, folder: Path) -> list[dict[str, str]]:
    """Fields of `count` posts, those of the test part first, repeated where there are fewer; images in `folder`."""
    images = read_table(Path(paths.IMAGES), IMAGES).select("pid", "shard", "offset", "bytes", "status")
    posts = known.sort(pl.col("split") == "train", "pid").head(count).join(images, on="pid", how="left")
    reader, found = ImageReader(Path(read_yaml(Path(paths.PARAMS))["dataset"]["root"])), []
    for post in posts.iter_rows(named=True):
        fields = {"title": post["title"], "tags": post["tags"], "user": post["uid"]}
        fields["date"] = post["posted_at"].isoformat()
        names = class_names(post["concept"])
        fields |= dict(zip(("category", "subcategory", "concept"), names, strict=False))
        if post["status"] == "ok":
            fields["image"] = f"{post['pid']}.jpg"
            (folder / fields["image"]).write_bytes(reader.read(post["shard"], post["offset"], post["bytes"]))
        found.append(fields)
    return [found[index % len(found)] for index in range(count)]


TASKS: dict[str, Task] = {"predict": task_predict}

if __name__ == "__main__":
    run_task(TASKS, sys.argv[1:])
