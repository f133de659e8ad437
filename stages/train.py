r"""Trains the prototype network: prompts, projections and attention, by the posts' classes and never by popularity.

Reads:  data/interim/posts.parquet and images.parquet, the blocks of both encoders, models/prototypes; with
        train.unfreeze_blocks pictures below the root of the data set.
Writes: models/network/ with network.safetensors, network.json and manifest.json; curves and the last epoch's values by
        DVCLive.

    python -m popularity.launch stages.train --root data/demo --posts data/interim/posts.parquet \
        --images data/interim/images.parquet --image data/embeddings/image --text data/embeddings/text \
        --prototypes models/prototypes --out models/network --live reports/training \
        --resources reports/resources/train.json

A killed run goes on after its last finished epoch. POPULARITY_TOPOLOGY picks a file of configs/accelerate.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from popularity.config import PARAMS_FILE, load_params
from popularity.files import STATE_ROOT, atomic_directory, fingerprint, resume_state
from popularity.manifest import write_manifest
from popularity.schema import IMAGES, POSTS, read_table
from popularity.stage import measured, run
from popularity.training.assembly import EncoderPair, build_network, posts_for, save_network
from popularity.training.curves import curves
from popularity.training.loop import make_accelerator, train_network
from popularity.training.params import TrainParams
from popularity.training.reading import TowerOutputs, read_inputs, training_rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    inputs = ("root", "posts", "images", "image", "text", "prototypes")
    for name in (*inputs, "out", "live", "resources"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=STATE_ROOT)
    args = parser.parse_args(argv)
    params = load_params("train", TrainParams, args.params)
    towers = EncoderPair.load(args.params)
    posts, images = read_table(args.posts, POSTS), read_table(args.images, IMAGES)
    blocks = TowerOutputs.read(args.image, args.text)
    key = fingerprint(asdict(params), asdict(towers), args.posts, args.image, args.text, args.prototypes)
    accelerator = make_accelerator(params.precision)
    with measured("train", args.resources), resume_state("train", key, args.state) as state:
        read = read_inputs(posts, blocks, args.prototypes, params)
        network = build_network(params, read, towers)
        rows, held_out = training_rows(posts, read.vectors, params.rows, params.validation_share, params.seed)
        reader = posts_for(network, read, posts, images, args.root, towers)
        with curves(args.live, writes=accelerator.is_main_process) as tell:
            history = train_network(network, reader, rows, held_out, params, accelerator, state=state, on_epoch=tell)
        if accelerator.is_main_process:
            with atomic_directory(args.out) as out:
                save_network(network, params, history, out)
                write_manifest(
                    out,
                    params={
                        "train": asdict(params),
                        "embed_image": asdict(towers.image),
                        "embed_text": asdict(towers.text),
                    },
                    inputs={name: vars(args)[name] for name in inputs if name != "root"},
                    metrics={name: value for name, value in history[-1].items() if name.startswith("validation/")},
                )
        accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(main)
