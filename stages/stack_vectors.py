r"""Gathers the vectors that the stack reads: those of the encoders that encoders.stack names.

Reads data/embeddings/image and data/embeddings/text; writes data/embeddings/stack.

    python -m stages.stack_vectors --image data/embeddings/image --text data/embeddings/text \
        --out data/embeddings/stack --resources reports/resources/stack_vectors.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from popularity.core.atomic import atomic_directory
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.stage import record_resources, run
from popularity.encoders.names import StackEncoders
from popularity.encoders.stack_vectors import gather_vectors


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    for name in ("image", "text"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="folder with a folder of each encoder")
    parser.add_argument("--out", type=Path, required=True, help="folder, replaced as a whole")
    parser.add_argument("--resources", type=Path, required=True, help="output")
    args = parser.parse_args(argv)
    used = load_params("encoders.stack", StackEncoders, args.params)
    with record_resources("stack_vectors", args.resources), atomic_directory(args.out) as out:
        gather_vectors({"image": args.image, "text": args.text}, used, out)


if __name__ == "__main__":
    run(main)
