"""Does the code at hand write the same bytes as another commit? Stages of both on generated data, file by file.

Both commits are cloned (uncommitted changes are not compared) and run the stages named, by default those before the
network, on a demo of the profile tiny with --posts. What differs is listed with how many values of each column do, and
by how much at most; the exit status is 1.

    python -m benchmarks.same_bytes --before HEAD~3
    python -m benchmarks.same_bytes --before main --posts 3000 --stages demo_data ingest
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
from ruamel.yaml import YAML

from benchmarks.measuring import REPOSITORY, execute
from popularity.files import sha256_of
from popularity.stage import run

STAGES = ("demo_data", "ingest", "index_images", "split", "featurize", "embed_image", "embed_text")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="the other commit")
    parser.add_argument("--posts", type=int, default=300)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / which for which in ("before", "after")]
        for folder, commit in zip(folders, (args.before, "HEAD"), strict=True):
            make_run(folder, commit, args.posts, args.stages)
        found = list(differences(*folders))
    print("\n".join(found) if found else "the same bytes")
    sys.exit(1 if found else 0)


def make_run(folder: Path, commit: str, posts: int, stages: Sequence[str]) -> None:
    """A clone at `commit` in which the stages have run."""
    execute(REPOSITORY, "git", "clone", "--quiet", str(REPOSITORY), str(folder))
    execute(folder, "git", "checkout", "--quiet", execute(REPOSITORY, "git", "rev-parse", commit).strip())
    execute(folder, sys.executable, "-m", "popularity.profile", "tiny")
    yaml, file = YAML(), folder / "params.yaml"
    params = yaml.load(file.read_text(encoding="utf-8"))
    params["demo"] |= {"posts": posts, "users": posts // 4}
    with file.open("w", encoding="utf-8") as stream:
        yaml.dump(params, stream)
    graph = YAML(typ="safe").load((folder / "dvc.yaml").read_text(encoding="utf-8"))
    for stage in stages:
        command = graph["stages"][stage]["cmd"].replace("${dataset.root}", params["dataset"]["root"])
        execute(folder, sys.executable, *command.split()[1:])


def differences(before: Path, after: Path) -> Iterator[str]:
    """A line for every output that is not the same in both; measured costs do not count."""
    names = {
        file.relative_to(folder)
        for folder in (before, after)
        for top in ("data", "reports")
        for file in (folder / top).rglob("*")
        if file.is_file() and "resources" not in file.parts
    }
    for name in sorted(names):
        old, new = before / name, after / name
        if not (old.exists() and new.exists()):
            yield f"{name}: only {'before' if old.exists() else 'after'}"
        elif sha256_of(old) != sha256_of(new):
            yield f"{name}: {_columns(old, new) if name.suffix == '.parquet' else 'other bytes'}"


def _columns(before: Path, after: Path) -> str:
    old, new = pl.read_parquet(before), pl.read_parquet(after)
    if old.schema != new.schema or old.height != new.height:
        return "another shape"
    found = []
    for column in old:
        other = new[column.name]
        if not column.equals(other):
            rows = f"{column.name} in {column.ne_missing(other).sum()} rows"
            largest = (column.cast(pl.Float64) - other.cast(pl.Float64)).abs() if column.dtype.is_numeric() else None
            found.append(rows if largest is None else f"{rows}, by {largest.to_numpy().max(initial=0)} at most")
    return "; ".join(found) or "equal values in other bytes"


if __name__ == "__main__":
    run(main)
