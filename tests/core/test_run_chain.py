"""Outputs of different runs side by side: found by dvc.lock, whichever stage of the chain was run alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from popularity.core.errors import ContractError
from popularity.core.run_chain import checksum, refuse_mixed_run

LATER = 4_000_000_000  # a time after that of dvc.lock
# Stage -> what it reads and writes; the values of models/choice.yaml are parameters of the last but one.
STAGES = {
    "ingest": (["raw.csv"], ["posts.parquet"]),
    "train": (["posts.parquet"], ["network"]),
    "choose": (["posts.parquet"], ["choice.yaml"]),
    "fit": (["network/weights.bin"], ["stack"]),
    "evaluate": (["stack"], ["calibration.json", "reports/resources/evaluate.json"]),
}
FILES = {
    "raw.csv": "1",
    "posts.parquet": "2",
    "network/weights.bin": "3",
    "network/manifest.json": "{}",
    "choice.yaml": "a: 1\n",
    "stack/model.bin": "4",
    "calibration.json": "5",
    "reports/resources/evaluate.json": "6",
}


def entry(root: Path, path: str) -> dict[str, object]:
    files = [root / path] if (root / path).is_file() else [file for file in (root / path).rglob("*") if file.is_file()]
    found: dict[str, object] = {"path": path, "md5": checksum(root / path)}
    found["size"] = sum(file.stat().st_size for file in files)
    return found | ({"nfiles": len(files)} if (root / path).is_dir() else {})


def lock(root: Path, *stages: str) -> None:
    """Writes the entries of `stages` into dvc.lock, as if they had finished now."""
    file = root / "dvc.lock"
    content = json.loads(file.read_text()) if file.exists() else {"stages": {}}
    for stage in stages:
        deps, outs = STAGES[stage]
        content["stages"][stage] = {
            "deps": [entry(root, path) for path in deps],
            "outs": [entry(root, path) for path in outs],
            "params": {"choice.yaml": {"a": 1}} if stage == "fit" else {},
        }
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    lock(tmp_path, *STAGES)
    return tmp_path


def change(root: Path, path: str, text: str = "7") -> None:
    (root / path).write_text(text, encoding="utf-8")
    os.utime(root / path, (LATER, LATER))


def test_one_run_is_taken(run: Path) -> None:
    refuse_mixed_run(run, ("stack", "calibration.json"))
    refuse_mixed_run(run / "network", ("stack",))  # no graph of DVC ran there


@pytest.mark.parametrize(
    ("stage", "path", "first"),
    [
        ("ingest", "posts.parquet", "train"),
        ("train", "network/weights.bin", "fit"),
        ("choose", "choice.yaml", "fit"),
        ("fit", "stack/model.bin", "evaluate"),
    ],
)
def test_a_stage_that_ran_alone(run: Path, stage: str, path: str, first: str) -> None:
    """As `dvc repro -s STAGE` with another seed, or a run that ended behind it."""
    change(run, path, "a: 2\n" if path == "choice.yaml" else "7")
    lock(run, stage)
    os.utime(run / path, (0, 0))
    with pytest.raises(ContractError, match=rf"different runs(?s:.*)the first stage to run is {first}\)"):
        refuse_mixed_run(run, ("stack", "calibration.json"))


def test_an_output_of_the_size_that_it_had(run: Path) -> None:
    """A stage that was killed has written an output, and no entry into dvc.lock."""
    change(run, "network/weights.bin")
    with pytest.raises(ContractError, match=r"network is not what stage train wrote(?s:.*)to run is train"):
        refuse_mixed_run(run, ("calibration.json",))


def test_what_does_not_matter(run: Path) -> None:
    change(run, "calibration.json", "5")  # the same bytes at another time
    change(run, "reports/resources/evaluate.json", "time")
    (run / "stack" / ".DS_Store").write_text("")
    (run / "raw.csv").unlink()
    refuse_mixed_run(run, ("stack", "calibration.json"))
    change(run, "calibration.json", "changed")
    refuse_mixed_run(run, ("stack",))  # which does not read it
