r"""Class prototypes: the mean image and text vector of the representatives of each class, on three taxonomy levels.

Reads:  data/interim/posts.parquet, the blocks `pooled` and `post` of the network's encoders; section `prototypes` and
        `train.transductive` of params.yaml.
Writes: models/prototypes/ with classes.parquet, members.parquet, prototypes.safetensors, metadata.json and
        manifest.json; a summary.

    python -m stages.prototypes --posts data/interim/posts.parquet --image data/embeddings/image/efficientnet_lite0 \
        --text data/embeddings/text/minilm --out models/prototypes --summary reports/prototypes.json \
        --resources reports/resources/prototypes.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import StrictBool

from popularity.core.atomic import atomic_directory, write_json
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import POSTS, read_table
from popularity.core.manifest import write_manifest
from popularity.core.stage import record_resources, run
from popularity.core.vectors import read_block
from popularity.prototypes.build import PrototypesParams, build_prototypes, write_prototypes


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    for name in ("posts", "image", "text"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="input")
    for name in ("out", "summary", "resources"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="output")
    args = parser.parse_args(argv)
    params = load_params("prototypes", PrototypesParams, args.params)
    transductive = load_params("train.transductive", StrictBool, args.params)
    with record_resources("prototypes", args.resources), atomic_directory(args.out) as out:
        blocks = (read_block(args.image, "pooled"), read_block(args.text, "post"))
        built = build_prototypes(read_table(args.posts, POSTS), *blocks, params, transductive=transductive)
        write_prototypes(built, out)
        write_manifest(
            out,
            params={"prototypes": asdict(params), "train": {"transductive": transductive}},
            inputs={name: vars(args)[name] for name in ("posts", "image", "text")},
            metrics={
                "representatives": {
                    level: counts["representatives"] for level, counts in built.summary["levels"].items()
                }
            },
        )
        write_json(args.summary, dict(built.summary))


if __name__ == "__main__":
    run(main)
