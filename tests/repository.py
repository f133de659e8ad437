"""The repository as the tests see it: where it is, its parameters on a profile, and the flags of its stages."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.graph import expanded
from popularity.core.config import Key, read_yaml
from popularity.core.params_text import edited
from popularity.profile import read_profiles

REPOSITORY = Path(__file__).resolve().parents[1]
PROFILES = REPOSITORY / "configs" / "profiles"
OVERLAYS = REPOSITORY / "configs" / "overlays"
GENERATED = "data/demo"  # the data set of a clean clone
_GRAPH = read_yaml(REPOSITORY / "dvc.yaml")
_ENCODERS = read_yaml(PROFILES / "demo.yaml")["encoders"]["network"]  # the same in every profile without an overlay
PAIR = {kind: _ENCODERS[kind] for kind in ("image", "text")}
LOADERS = {kind: _ENCODERS[f"{kind}_loader"] for kind in ("image", "text")}
_VALUES = {
    "dataset": {"root": "${dataset.root}", "table": "", "test_table": ""},
    "encoders": {"network": _ENCODERS, "stack": PAIR},
    **{f"embed_{kind}": {PAIR[kind]: {"loader": LOADERS[kind]}} for kind in PAIR},
}
_EXPANDED = expanded(_GRAPH, _VALUES)
# By name what dvc.yaml says of a stage, the embed stages under the name of the group.
TEMPLATES: dict[str, dict[str, Any]] = {name: stage.get("do", stage) for name, stage in _GRAPH["stages"].items()}
STAGES: dict[str, dict[str, Any]] = {name.partition("@")[0]: stage for name, stage in _EXPANDED.items()}
DVC_NAMES = dict(zip(STAGES, _EXPANDED, strict=True))  # group@entry for the embed stages
# They read no encoder: a change of encoders runs none of them.
BEFORE_ENCODERS = ("demo_data", "ingest", "index_images", "split", "featurize")
NAMES = ("encoder",)  # flags whose value is no path
LAUNCHER = "popularity.launch"


def profile_text(profile: str = "demo") -> str:
    """The text of params.yaml on a profile and on the generated data, whatever the working file is set to.

    `make dataset` and `python -m popularity.profile` edit the working file; no test may depend on what they wrote.
    """
    return _on_profile((REPOSITORY / "params.yaml").read_text(encoding="utf-8"), profile)


@cache
def _on_profile(text: str, profile: str) -> str:
    # A data set of the official layout: no table.
    values: dict[Key, Any] = {("dataset", name): "" for name in ("table", "test_table", "test_from")}
    values["dataset", "follow_links"] = False
    values |= {("profile",): profile, ("dataset", "root"): GENERATED, **read_profiles(PROFILES)[profile]}
    return edited(text, values, f"profile '{profile}'")


def write_profile(folder: Path, profile: str = "demo") -> Path:
    """Writes that text to `folder`/params.yaml and returns the path."""
    path = folder / "params.yaml"
    path.write_text(profile_text(profile), encoding="utf-8")
    return path


def outs_of(stage: str, *kinds: str) -> list[str]:
    """The paths that a stage declares in dvc.yaml under `kinds`: outs, metrics and plots, unless others are named."""
    entries = [entry for kind in kinds or ("outs", "metrics", "plots") for entry in STAGES[stage].get(kind, [])]
    return [str(next(iter(entry)) if isinstance(entry, dict) else entry) for entry in entries]


def stage_command(stage: str) -> list[str]:
    """The words of the command in dvc.yaml: the module, then its flags; without Python and the launcher."""
    words = shlex.split(STAGES[stage]["cmd"].replace("${dataset.root}", GENERATED))
    python, option, *command = words
    assert (python, option) == ("python", "-m"), words
    return command[1:] if command[0] == LAUNCHER else command


def stage_flags(stage: str, folder: Path, **changed: str | Path | None) -> list[str]:
    """The flags of a stage's command in dvc.yaml, all its paths below `folder`, as is params.yaml.

    Args:
        stage: name in dvc.yaml.
        folder: stands for the repository's root.
        changed: by flag, paths (relative to `folder`, or absolute) instead of those in dvc.yaml; None leaves it out.
    """
    words = stage_command(stage)[1:]
    reads_params = "params" in STAGES[stage] and "--folder" not in words  # a project folder holds its own params.yaml
    values: dict[str, list[str | Path]] = {"params": ["params.yaml"]} if reads_params else {}
    flag = ""
    for word in words:
        if word.startswith("--"):
            flag = word[2:]
            values[flag] = []
        else:
            values[flag].append(word)
    for name, path in changed.items():
        values[name] = [] if path is None else [path]
    given = {
        name: [str(path if name in NAMES else folder / path) for path in paths]
        for name, paths in values.items()
        if paths
    }
    return [part for name, paths in given.items() for part in (f"--{name}", *paths)]
