r"""Runs the trained network on every post: vectors, class logits and losses, and what explains them.

Reads:  data/interim/posts.parquet and images.parquet, the blocks of both encoders, models/prototypes, models/network;
        of a network with unfrozen encoders images below the root of the data set.
Writes: data/embeddings/prototype/ with the vectors of Eq 11, logits and scalars.parquet, all of them also as
        `masked_...` for posts whose class is masked; f_I(x) and f_T(t) of adapted encoders; classes.parquet;
        losses.parquet, which row selection alone reads; data/explain/ with the nearest prototypes of each post and what
        its image attends to.

    python -m popularity.launch stages.embed_posts --root data/demo --posts data/interim/posts.parquet \
        --images data/interim/images.parquet --image data/embeddings/image/efficientnet_lite0 \
        --text data/embeddings/text/minilm --prototypes models/prototypes --network models/network \
        --out data/embeddings/prototype --explain data/explain --resources reports/resources/embed_posts.json

A killed run resumes at its last finished shard. POPULARITY_TOPOLOGY picks a file of configs/accelerate.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from popularity.core.atomic import fingerprint
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import IMAGES, POSTS, read_table
from popularity.core.resume import STATE_ROOT, resume_state
from popularity.core.stage import record_resources, run
from popularity.inference.embed import EmbedPostsParams, Folders, NetworkInputs, embed_posts
from popularity.network.accelerator import make_accelerator
from popularity.network.build import trained_params
from popularity.network.inputs import EncoderPair


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    inputs = ("root", "posts", "images", "image", "text", "prototypes", "network")
    for name in (*inputs, "out", "explain", "resources"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=STATE_ROOT)
    args = parser.parse_args(argv)
    params = load_params("embed_posts", EmbedPostsParams, args.params)
    encoders = EncoderPair.load(args.params)
    folders = Folders(args.root, args.image, args.text, args.prototypes, args.network)
    accelerator = make_accelerator(trained_params(args.network).precision)
    inputs_read = (args.posts, args.images, args.image, args.text, args.prototypes, args.network)
    key = fingerprint(asdict(params), asdict(encoders), accelerator.mixed_precision, *inputs_read)
    with record_resources("embed_posts", args.resources), resume_state("embed_posts", key, args.state) as state:
        posts, images = read_table(args.posts, POSTS), read_table(args.images, IMAGES)
        network_inputs = NetworkInputs(posts, images, folders, encoders, params, accelerator)
        embed_posts(network_inputs, state=state, out=args.out, explain=args.explain)


if __name__ == "__main__":
    run(main)
