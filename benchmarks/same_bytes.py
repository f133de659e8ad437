"""Compares the outputs of the whole graph at two commits, file by file.

Both commits are cloned (without uncommitted changes) and `dvc repro` runs in each, on the demo data of a profile. The
file benchmarks/renamed.yaml lists files, columns, keys and values that have a new name. Every difference is a line: for
a table, the number of values that differ in each column and the largest difference. The exit status is 1 if outputs
differ. The code's revision, parameters, measured costs and pages for people are not compared.

    python -m benchmarks.same_bytes --before HEAD~3 --profile tiny
    python -m benchmarks.same_bytes --before 4ce4abb --profile demo --keep /tmp/runs
    python -m benchmarks.same_bytes --before 4ce4abb --stages ingest split featurize
    python -m benchmarks.same_bytes --before HEAD --environment ATEN_CPU_CAPABILITY=avx2 OPENBLAS_CORETYPE=Haswell

The last command compares two CPUs: the second run uses the instructions of an older CPU.
"""

from __future__ import annotations

import argparse
import fnmatch
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from benchmarks.graph import expanded
from benchmarks.measuring import REPOSITORY, execute
from popularity.core.atomic import read_json
from popularity.core.config import PARAMS_FILE, read_yaml
from popularity.core.stage import run

NAMES = Path(__file__).with_name("renamed.yaml")
DONE = ".git/run-is-complete"
PAGES = {".html", ".md", ".png"}  # for people; their numbers stand in the tables


@dataclass(frozen=True)
class Renamed:
    """Names that changed, and outputs that are not compared. All patterns are regular expressions.

    Args:
        files: pairs (pattern in an old path, replacement).
        names: pairs (pattern of a whole column, key or tensor name, replacement).
        names_in_file: the same by shell pattern of a path, for names that changed in some files alone.
        values: column or key -> pairs of old and new values; of a key `names`, values are names.
        left_out_files: shell patterns of paths, under their new names, that are not compared.
        left_out_names: shell patterns of new names of columns and keys that are not compared.
        left_out_names_in_file: the same by shell pattern of a path.
    """

    files: Sequence[tuple[str, str]]
    names: Sequence[tuple[str, str]]
    names_in_file: Mapping[str, Mapping[str, str]]
    values: Mapping[str, Mapping[str, str] | str]
    left_out_files: Sequence[str]
    left_out_names: Sequence[str]
    left_out_names_in_file: Mapping[str, Sequence[str]]

    @classmethod
    def read(cls, file: Path) -> Renamed:
        content = YAML(typ="safe").load(file.read_text(encoding="utf-8"))
        files, names = (list(content[kind].items()) for kind in ("files", "names"))
        return cls(
            files,
            names,
            content["names_in_file"],
            content["values"],
            content["left_out_files"],
            content["left_out_names"],
            content["left_out_names_in_file"],
        )

    def file(self, path: str) -> str:
        for old, new in self.files:
            path = re.sub(old, new, path)
        return path

    def of_file(self, path: str) -> Renamed:
        """What counts for the file of that new path."""
        own = [pairs.items() for pattern, pairs in self.names_in_file.items() if fnmatch.fnmatch(path, pattern)]
        left_out = [
            name
            for pattern, names in self.left_out_names_in_file.items()
            if fnmatch.fnmatch(path, pattern)
            for name in names
        ]
        return replace(
            self,
            names=[*self.names, *(pair for pairs in own for pair in pairs)],
            left_out_names=[*self.left_out_names, *left_out],
        )

    def name(self, text: str) -> str:
        """The new name of a column, key or tensor."""
        for old, new in self.names:
            text = re.sub(rf"^(?:{old})$", new, text)
        return text

    def value(self, key: str, text: str) -> str:
        """The new form of a text that stands in the column or under the key."""
        known = self.values.get(key, {})
        return self.name(text) if isinstance(known, str) else known.get(text, text)

    def leaves_out_file(self, path: str) -> bool:
        return Path(path).suffix in PAGES or any(fnmatch.fnmatch(path, pattern) for pattern in self.left_out_files)

    def leaves_out(self, name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in self.left_out_names)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="the other commit")
    parser.add_argument("--after", default="HEAD", help="the commit that is compared with it")
    parser.add_argument("--profile", default="tiny", help="of configs/profiles, for both")
    parser.add_argument("--stages", nargs="*", default=[], help="of dvc.yaml; none: all")
    parser.add_argument("--patch-before", type=Path, help="YAML of values for params.yaml of the first run")
    parser.add_argument("--patch-after", type=Path, help="the same for the second run")
    parser.add_argument("--environment", nargs="*", default=[], help="variables of the second run, NAME=VALUE")
    parser.add_argument("--keep", type=Path, help="folder of the finished runs, which later calls reuse")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        runs = (args.keep or Path(name)).resolve()
        graphs = (
            Graph(args.before, args.profile, args.stages, args.patch_before),
            Graph(args.after, args.profile, args.stages, args.patch_after, args.environment),
        )
        before, after = (graph.run(runs) for graph in graphs)
        found = list(differences(before, after, Renamed.read(NAMES)))
    print("\n".join(found) if found else "the same outputs")
    sys.exit(1 if found else 0)


@dataclass(frozen=True)
class Graph:
    """A run of the graph.

    Args:
        commit: whose code runs.
        profile: of configs/profiles.
        stages: of dvc.yaml; none: all.
        patch: YAML of values for params.yaml, set after the profile.
        environment: NAME=VALUE.
    """

    commit: str
    profile: str
    stages: Sequence[str]
    patch: Path | None
    environment: Sequence[str] = ()

    def run(self, folder: Path) -> Path:
        """The clone below `folder` in which the stages have run; a finished clone is used again."""
        revision = execute(REPOSITORY, "git", "rev-parse", self.commit).strip()
        patches = [self.patch.stem] if self.patch else []
        clone = folder / "-".join([revision[:12], self.profile, *patches, *self.environment])
        if not clone.exists():
            execute(REPOSITORY, "git", "clone", "--quiet", str(REPOSITORY), str(clone))
            execute(clone, "git", "checkout", "--quiet", revision)
        if not (clone / DONE).exists():
            execute(clone, sys.executable, "-m", "popularity.profile", self.profile)
            if self.patch:
                execute(clone, sys.executable, "-m", "popularity.profile", "--patch", str(self.patch.resolve()))
            execute(clone, "env", *self.environment, sys.executable, "-m", "dvc", "repro", *self.stages)
            (clone / DONE).touch()
        return clone


def differences(before: Path, after: Path, renamed: Renamed) -> Iterator[str]:
    """A line for every output that is not the same in both."""
    new = {name: after / name for name in outputs(after)}
    old = {name if name in new else renamed.file(name): before / name for name in outputs(before)}
    for name in sorted(old.keys() | new.keys()):
        if renamed.leaves_out_file(name):
            continue
        if name not in old or name not in new:
            yield f"{name}: only {'after' if name in new else 'before'}"
        elif old[name].read_bytes() != new[name].read_bytes():
            yield from (f"{name}: {difference}" for difference in compare(old[name], new[name], renamed.of_file(name)))


def outputs(clone: Path) -> list[str]:
    """Paths of all files that the graph wrote."""
    graph = expanded(read_yaml(clone / "dvc.yaml"), read_yaml(clone / PARAMS_FILE))
    tops = [
        next(iter(out)) if isinstance(out, dict) else out
        for stage in graph.values()
        for out in [*stage.get("outs", []), *stage.get("metrics", [])]
    ]
    files = [clone / top for top in tops if (clone / top).is_file()]
    files += [file for top in tops for file in (clone / top).rglob("*") if file.is_file()]
    return [str(file.relative_to(clone)) for file in files]


def compare(old: Path, new: Path, renamed: Renamed) -> Iterator[str]:
    """The differences of two files, after names in the old one are replaced by new names."""
    if new.suffix == ".parquet":
        yield from compare_tables(pl.read_parquet(old), pl.read_parquet(new), renamed)
    elif new.suffix in (".csv", ".tsv"):
        yield from compare_tables(_words(old), _words(new), renamed)
    elif new.suffix in (".json", ".yaml"):
        yield from compare_trees(_tree(old), _tree(new), renamed)
    elif new.suffix == ".npy":
        yield from compare_arrays("array", np.load(old), np.load(new))
    elif new.suffix in (".safetensors", ".npz"):
        first, second = (
            load_file(file) if new.suffix == ".safetensors" else dict(np.load(file)) for file in (old, new)
        )
        first = {renamed.name(name): values for name, values in first.items()}
        for name in sorted(first.keys() | second.keys()):
            if name not in first or name not in second:
                yield f"tensor {name} only {'after' if name in second else 'before'}"
            else:
                yield from compare_arrays(f"tensor {name}", first[name], second[name])
    else:
        before, after = (file.read_text(encoding="utf-8", errors="replace").splitlines() for file in (old, new))
        if [_line(line, renamed) for line in before] != [_line(line, None) for line in after]:
            yield "other bytes"


def compare_tables(old: pl.DataFrame, new: pl.DataFrame, renamed: Renamed) -> Iterator[str]:
    """The differences of two tables; where a renamed value may have moved rows, both are sorted first."""
    old = old.rename({name: renamed.name(name) for name in old.columns})
    old, new = (table.drop([name for name in table.columns if renamed.leaves_out(name)]) for table in (old, new))
    text = [name for name in old.columns if old[name].dtype == pl.String]
    old = old.with_columns(
        pl.col(name).replace({value: renamed.value(name, value) for value in old[name].unique().drop_nulls()})
        for name in text
        if name in renamed.values
    )
    if set(old.columns) != set(new.columns):
        yield f"columns: {sorted(set(old.columns) ^ set(new.columns))} are not in both"
    shared = [name for name in new.columns if name in old.columns]
    old, new = old.select(shared), new.select(shared)
    if old.schema != new.schema or old.height != new.height:
        yield f"another shape: {old.shape} and {new.shape}"
        return
    moved = any(name in renamed.values for name in text)
    order = (
        []
        if not moved
        else [name for name in shared if not (old[name].dtype.is_float() or old[name].dtype.is_nested())]
    )
    old, new = (table.sort(order, maintain_order=True, nulls_last=True) if order else table for table in (old, new))
    for column, other in zip(old, new, strict=True):
        if not column.equals(other):
            count = (~column.eq_missing(other)).sum()
            numbers = [side.cast(pl.Float64).to_numpy() for side in (column, other) if side.dtype.is_numeric()]
            largest = f", by {np.nanmax(np.abs(numbers[0] - numbers[1]))} at most" if numbers else ""
            yield f"{column.name} in {count} rows{largest}"


def compare_trees(old: Any, new: Any, renamed: Renamed, at: str = "") -> Iterator[str]:
    """JSON or YAML content: the paths whose values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        old = {renamed.name(str(key)): value for key, value in old.items()}
        for key in sorted(old.keys() | new.keys()):
            where = f"{at}.{key}".lstrip(".")
            if renamed.leaves_out(key):
                continue
            if key not in old or key not in new:
                yield f"{where} only {'after' if key in new else 'before'}"
            else:
                yield from compare_trees(old[key], new[key], renamed, where)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        if all(
            isinstance(each, dict) and "scheme" in each for each in [*old, *new]
        ):  # a renamed scheme sorts elsewhere
            old = sorted(old, key=lambda each: (renamed.value("scheme", each["scheme"]), each.get("fold")))
            new = sorted(new, key=lambda each: (each["scheme"], each.get("fold")))
        for index, (first, second) in enumerate(zip(old, new, strict=True)):
            yield from compare_trees(first, second, renamed, f"{at}[{index}]")
    else:
        key = re.sub(r"(\[\d+\])+$", "", at).rpartition(".")[2]
        old = renamed.value(key, old) if isinstance(old, str) else old
        if old != new:
            yield f"{at}: {old!r} and {new!r}"


def compare_arrays(what: str, old: np.ndarray[Any, Any], new: np.ndarray[Any, Any]) -> Iterator[str]:
    if old.shape != new.shape or old.dtype != new.dtype:
        yield f"{what}: {old.shape} {old.dtype} and {new.shape} {new.dtype}"
    elif not np.array_equal(old, new, equal_nan=old.dtype.kind == "f"):
        size = np.nanmax(np.abs(old.astype(np.float64) - new.astype(np.float64)))
        yield f"{what}: {np.sum(old != new)} values, by {size} at most"


def _tree(file: Path) -> Any:
    return read_json(file) if file.suffix == ".json" else YAML(typ="safe").load(file.read_text(encoding="utf-8"))


def _words(file: Path) -> pl.DataFrame:
    """The cells of a .csv or .tsv as text."""
    return pl.read_csv(file, separator="\t" if file.suffix == ".tsv" else ",", infer_schema=False)


def _line(line: str, renamed: Renamed | None) -> str:
    """A line of a LightGBM model: feature names under their new names, without what depends on the length of names."""
    if line.startswith("feature_names=") and renamed is not None:
        return "feature_names=" + " ".join(map(renamed.name, line.removeprefix("feature_names=").split()))
    return re.sub(r"^tree_sizes=.*", "", re.sub(r"^([^ =]+)=(\d+(\.\d+)?)$", lambda m: _importance(m, renamed), line))


def _importance(found: re.Match[str], renamed: Renamed | None) -> str:
    return f"{renamed.name(found[1]) if renamed else found[1]}={found[2]}"


if __name__ == "__main__":
    run(main)
