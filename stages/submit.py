r"""Writes the submission in both official forms, validates it and prints its path.

Reads data/interim/posts.parquet, data/ensemble/predictions.parquet and reports/metrics.json; writes submissions/
(submission.json and submission.csv, or NO_SUBMISSION.txt for a data set without a test part; manifest.json, which holds
the scores in `holdout`).

    python -m stages.submit --posts data/interim/posts.parquet --predictions data/ensemble/predictions.parquet \
        --metrics reports/metrics.json --out submissions --resources reports/resources/submit.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from popularity.core.atomic import atomic_directory, read_json
from popularity.core.config import PARAMS_FILE, load_params, read_yaml
from popularity.core.contracts import HOLDOUT, MAIN_MODEL, POSTS, PREDICTIONS, read_table
from popularity.core.manifest import write_manifest
from popularity.core.stage import record_resources, run
from popularity.encoders.names import models_in_use
from popularity.submission.write import NO_SUBMISSION, SubmitConfig, submit

ENCODERS = "{encoders}"  # in submit.external_data


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("posts", "predictions", "metrics"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="input")
    parser.add_argument("--out", type=Path, required=True, help="folder, replaced as a whole")
    parser.add_argument("--resources", type=Path, required=True, help="output")
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    args = parser.parse_args(argv)
    config = load_params("submit", SubmitConfig, args.params)
    if ENCODERS in config.external_data:
        models = " and ".join(models_in_use(read_yaml(args.params)))
        config = replace(config, external_data=config.external_data.replace(ENCODERS, models))
    with record_resources("submit", args.resources), atomic_directory(args.out) as out:
        files = submit(read_table(args.posts, POSTS), read_table(args.predictions, PREDICTIONS), config, out)
        write_manifest(
            out,
            params={"submit": asdict(config)},
            inputs={"posts": args.posts, "predictions": args.predictions},
            metrics={HOLDOUT: read_json(args.metrics)[HOLDOUT][MAIN_MODEL]},
        )
    written = (f"valid submission: {args.out / file.name}" for file in files)
    print("\n".join(written) or f"no submission: see {args.out / NO_SUBMISSION}")


if __name__ == "__main__":
    run(main)
