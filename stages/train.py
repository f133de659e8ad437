r"""Trains the prototype network (prompts, projections, attention) on the posts' classes, never on popularity.

Reads:  data/interim/posts.parquet and images.parquet, the blocks of both encoders, models/prototypes; with
        train.unfreeze_layers images below the root of the data set.
Writes: models/network/ with network.safetensors, network.json and manifest.json; curves and the last epoch's values by
        DVCLive. A training that stopped early (train.patience) writes the weights and the manifest's values of
        its best epoch.

    python -m popularity.launch stages.train --root data/demo --posts data/interim/posts.parquet \
        --images data/interim/images.parquet --image data/embeddings/image/efficientnet_lite0 \
        --text data/embeddings/text/minilm --prototypes models/prototypes --out models/network \
        --live reports/training --resources reports/resources/train.json

A killed run goes on at its last checkpoint. POPULARITY_TOPOLOGY picks a file of configs/accelerate.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from popularity.core.atomic import atomic_directory, fingerprint
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import IMAGES, POSTS, read_table
from popularity.core.manifest import write_manifest
from popularity.core.resume import STATE_ROOT, resume_state
from popularity.core.stage import record_resources, run
from popularity.network.accelerator import make_accelerator
from popularity.network.build import build_network, save_network
from popularity.network.inputs import EncoderOutputs, EncoderPair, post_reader, read_network_data, training_rows
from popularity.network.params import TrainParams
from popularity.training.batches import TrainingPosts
from popularity.training.curves import curves
from popularity.training.loop import train_network
from popularity.training.stopping import kept_epoch


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    inputs = ("root", "posts", "images", "image", "text", "prototypes")
    for name in (*inputs, "out", "live", "resources"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=STATE_ROOT)
    args = parser.parse_args(argv)
    params = load_params("train", TrainParams, args.params)
    encoders = EncoderPair.load(args.params)
    posts, images = read_table(args.posts, POSTS), read_table(args.images, IMAGES)
    outputs = EncoderOutputs.read(args.image, args.text)
    key = fingerprint(asdict(params), asdict(encoders), args.posts, args.image, args.text, args.prototypes)
    accelerator = make_accelerator(params.precision)
    with record_resources("train", args.resources), resume_state("train", key, args.state) as state:
        data = read_network_data(posts, outputs, args.prototypes, params)
        network = build_network(params, data, encoders)
        reader = post_reader(network, data, posts, images, args.root, encoders)
        rows = TrainingPosts(reader, *training_rows(posts, data.vectors, params))
        with curves(args.live, writes=accelerator.is_main_process) as on_epoch:
            history = train_network(network, rows, params, accelerator, state=state, on_epoch=on_epoch)
        if accelerator.is_main_process:
            kept = history[kept_epoch(history, params.patience)]
            with atomic_directory(args.out) as out:
                save_network(network, params, history, out)
                write_manifest(
                    out,
                    params={
                        "train": asdict(params),
                        "embed_image": asdict(encoders.image),
                        "embed_text": asdict(encoders.text),
                    },
                    inputs={name: vars(args)[name] for name in inputs if name != "root"},
                    metrics={name: value for name, value in kept.items() if name.startswith("validation/")},
                )
        accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(main)
