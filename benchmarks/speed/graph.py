"""The cost of DVC: the tasks of `python -m benchmarks.speed dvc` and `change`, each in a clone of the repository."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.graph import change_params, expanded
from benchmarks.measuring import REPOSITORY, Task, execute, measure, run_task
from popularity.core.config import PARAMS_FILE, read_yaml
from popularity.dataset.preparation import set_root


def task_nothing_to_do(folder: Path, root: str) -> dict[str, Any]:
    """`dvc repro` in a clone whose outputs are placeholders, committed with `dvc commit`.

    Raises:
        RuntimeError: a stage ran.
    """
    clone = folder / f"clone-{Path(root).name}"
    make_clone(clone)
    stand_in(clone, Path(root) / "data")
    execute(clone, "dvc", "commit", "--force")
    execute(clone, "dvc", "repro", "--quiet")
    cost = measure("speed.graph", "repro", clone)
    if cost["ran"]:
        raise RuntimeError(f"dvc repro ran {cost['ran']} stages that had nothing to do")
    return cost


def task_change(folder: Path, posts: str) -> dict[str, Any]:
    """The whole graph on a demo of the profile tiny, then once more after a change of the stack's parameters."""
    clone = folder / f"run-{posts}"
    make_clone(clone)
    execute(clone, sys.executable, "-m", "popularity.profile", "tiny")
    change_params(clone / PARAMS_FILE, lambda params: params["demo"].update(posts=int(posts), users=int(posts) // 4))
    whole = measure("speed.graph", "repro", clone)
    change_params(clone / PARAMS_FILE, lambda params: params["stack"].update(seed=1))
    return {"whole": whole, "changed": measure("speed.graph", "repro", clone)}


def task_repro(clone: Path, jobs: str = "1") -> dict[str, Any]:
    """`dvc repro` in a clone of the repository, or `make repro JOBS=...`: the stages that it ran."""
    beside = [sys.executable, "-m", "popularity.repro", "--jobs", jobs]
    printed = execute(clone, *(["dvc", "repro"] if jobs == "1" else beside))
    stages = [line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage")]
    return {"ran": len(stages), "stages": stages}


def make_clone(clone: Path) -> None:
    shutil.rmtree(clone, ignore_errors=True)
    execute(REPOSITORY, "git", "clone", "--quiet", "--no-hardlinks", str(REPOSITORY), str(clone))


def stand_in(clone: Path, root: Path) -> None:
    """Writes a small file for every output of the graph of `clone`, and sets `root` as its data set."""
    set_root(clone / PARAMS_FILE, root)
    stages = expanded(read_yaml(clone / "dvc.yaml"), read_yaml(clone / PARAMS_FILE))
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


TASKS: dict[str, Task] = {"nothing_to_do": task_nothing_to_do, "change": task_change, "repro": task_repro}

if __name__ == "__main__":
    run_task(TASKS, sys.argv[1:])
