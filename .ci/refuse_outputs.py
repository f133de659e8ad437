"""Refuses files that do not belong into git: python .ci/refuse_outputs.py FILE...

Outs of stages and data are versioned by DVC; whoever forces them into git (`git add -f`) makes every clone carry them.
Prints each such file and why, and exits 1. A hook of .pre-commit-config.yaml gives it the files of a commit.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from popularity.core.config import read_yaml

GRAPH = Path("dvc.yaml")
FOLDERS = ("data", "models", "submissions")  # of DVC alone, but for what says so there
NOTES = (".gitignore", "README.md")
MAX_BYTES = 1_000_000


def cached_outs(stages: Mapping[str, Any]) -> set[PurePosixPath]:
    """The outs of the stages that DVC keeps, so that git must not."""
    outs = set()
    for named in stages.values():
        stage = named.get("do", named)  # of a stage for each entry of a map
        for entry in [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]:
            path, options = next(iter(entry.items())) if isinstance(entry, Mapping) else (entry, {})
            if options.get("cache", True):
                outs.add(PurePosixPath(path.replace("${key}", "*")))
    return outs


def reason(file: PurePosixPath, outs: set[PurePosixPath]) -> str | None:
    """Why git must not have `file`; None if it may."""
    if any(one.match(str(out)) for out in outs for one in (file, *file.parents)):
        return "is an out of a stage in dvc.yaml"
    if file.parts[0] in FOLDERS and file.name not in NOTES:
        return f"lies below {file.parts[0]}/, which DVC versions"
    if Path(file).is_file() and Path(file).stat().st_size > MAX_BYTES:
        return f"has more than {MAX_BYTES:,} bytes"
    return None


def main(files: Sequence[str]) -> int:
    """Prints the refused files; 1 if there are any, else 0."""
    outs = cached_outs(read_yaml(GRAPH)["stages"])
    refused = {name: why for name in files if (why := reason(PurePosixPath(name), outs))}
    for name, why in refused.items():
        print(f"{name} {why}; to take it out of the commit: git rm --cached {name}")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
