"""Generates the demo data set and its truth.

Reads:  section `demo` of params.yaml
Writes: --root (data set in the official layout), --truth (effects, test labels, best reachable scores)

    python -m stages.demo_data --root data/demo --truth data/demo_truth --resources reports/resources/demo_data.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from popularity.core.atomic import atomic_directory
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.stage import record_resources, run
from popularity.demo import DemoParams, generate


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--resources", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load_params("demo", DemoParams, args.params)
    with (
        record_resources("demo_data", args.resources),
        atomic_directory(args.root) as root,
        atomic_directory(args.truth) as truth,
    ):
        generate(params, root, truth)


if __name__ == "__main__":
    run(main)
