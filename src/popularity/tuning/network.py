"""Searches the parameters of section `train`: python -m popularity.tuning.network [--n-trials N] [--folder PROJECT].

    python -m popularity.tuning.network --n-trials 20
    python -m popularity.profile --patch models/network_search/best_params.yaml --show
    python -m popularity.profile --patch models/network_search/best_params.yaml

Needs `dvc repro prototypes`. Each trial trains the network; its score is the class accuracy on held-out posts: top-1 of
the mean head on the valid posts after the epoch whose weights are kept, as training measures it. The labels are not
read. The space is section `tune_network` of params.yaml.

Writes best_params.yaml (a patch of section train; the second command shows its changes and the third applies them),
trials.csv and study.json. The same command resumes a killed search, after the last epoch of the trial that was running.
POPULARITY_TUNE_WORKERS starts several processes.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from popularity.core import paths
from popularity.core.atomic import atomic_directory, fingerprint
from popularity.core.config import PARAMS_FILE, load_params, read_yaml
from popularity.core.contracts import IMAGES, POSTS, read_table
from popularity.core.errors import ConfigError
from popularity.core.resume import STATE_ROOT, code_fingerprint, resume_state
from popularity.core.stage import run
from popularity.network.accelerator import make_accelerator
from popularity.network.build import build_network
from popularity.network.inputs import EncoderOutputs, EncoderPair, post_reader, read_network_data, training_rows
from popularity.network.params import TrainParams
from popularity.training.batches import TrainingPosts
from popularity.training.loop import DivergenceError, train_network
from popularity.training.stopping import ACCURACY, kept_epoch
from popularity.tuning.results import write_patch, write_results
from popularity.tuning.space import Space, Values
from popularity.tuning.study import Budget, Search, Step, run_search, workers_here

logger = logging.getLogger(__name__)

INPUTS = (paths.POSTS, paths.IMAGES, paths.IMAGE_EMBEDDINGS, paths.TEXT_EMBEDDINGS)
# Prototypes are made for the first key; the others choose the valid posts.
FIXED_KEYS = ("transductive", "seed", "valid_fraction")


@dataclass(frozen=True)
class NetworkSearchParams(Budget):
    """Section tune_network of params.yaml.

    Args:
        space: axes by dotted key of section train.
    """

    space: dict[str, Any]


def network_search(params: NetworkSearchParams, folder: Path) -> Search:
    """The search over section train.

    Args:
        params: section tune_network.
        folder: of the project.

    Raises:
        ConfigError: the space is not valid, or there are no valid posts to score trials on.
    """
    train, encoders = load_params("train", TrainParams, folder / PARAMS_FILE), EncoderPair.load(folder / PARAMS_FILE)
    if fixed := [key for key in params.space if key in FIXED_KEYS]:
        raise ConfigError(f"tune_network.space.{fixed[0]}: trials with other values cannot be compared; leave it out")
    if train.valid_fraction == 0:
        raise ConfigError("train.valid_fraction is 0: the search needs valid posts to score trials on")
    space = Space.parse("tune_network.space", params.space, "train", train)
    inputs = _inputs(folder)
    key = fingerprint(
        code_fingerprint(), asdict(train), asdict(encoders), params.space, params.seed, *inputs,
        folder / paths.PROTOTYPES,
    )  # fmt: skip
    return Search(f"network-{key}", space, Budget(params.seed, params.n_trials, params.timeout_hours, params.storage))


def _inputs(folder: Path) -> list[Path]:
    params = read_yaml(folder / PARAMS_FILE)
    return [folder / paths.resolved(name, params) for name in INPUTS]


class NetworkObjective:
    """The objective of the search, with one step: minus the accuracy of the trained network on the valid posts.

    Args:
        folder: of the project.
        space: of section train.
        state: folder where an interrupted trial keeps its epochs.
    """

    steps = 1

    def __init__(self, folder: Path, space: Space[TrainParams], state: Path) -> None:
        self.space, self.state, self.prototypes = space, state, folder / paths.PROTOTYPES
        posts, images, *embeddings = _inputs(folder)
        self.posts, self.images = read_table(posts, POSTS).drop("label"), read_table(images, IMAGES)
        self.outputs, self.encoders = EncoderOutputs.read(*embeddings), EncoderPair.load(folder / PARAMS_FILE)
        self.root = folder / str(read_yaml(folder / PARAMS_FILE)["dataset"]["root"])

    def __call__(self, values: Values) -> Iterator[Step]:
        params = self.space.apply(values)
        folder = self.state / "trials" / fingerprint(asdict(params))  # its epochs are kept there for another run
        folder.mkdir(parents=True, exist_ok=True)
        try:
            accuracy = self._accuracy(params, folder)
        except (DivergenceError, torch.cuda.OutOfMemoryError) as error:  # another run would end in the same way
            logger.warning("%s: its accuracy counts as 0. %s", json.dumps(values), error)
            accuracy = 0.0
        shutil.rmtree(folder, ignore_errors=True)
        yield Step(-accuracy, {"top1": accuracy})

    def _accuracy(self, params: TrainParams, folder: Path) -> float:
        inputs = read_network_data(self.posts, self.outputs, self.prototypes, params)
        network = build_network(params, inputs, self.encoders)
        rows, held_out = training_rows(self.posts, inputs.vectors, params)
        reader = post_reader(network, inputs, self.posts, self.images, self.root, self.encoders)
        accelerator = make_accelerator(params.precision)
        history = train_network(network, TrainingPosts(reader, rows, held_out), params, accelerator, state=folder)
        return history[kept_epoch(history, params.patience)][ACCURACY]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m popularity.tuning.network",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path(), help="project with params.yaml, data and models")
    parser.add_argument("--n-trials", type=int, help="instead of tune_network.n_trials")
    parser.add_argument("--out", type=Path, help="folder of the result; models/network_search of the project")
    args = parser.parse_args(argv)
    params = load_params("tune_network", NetworkSearchParams, args.folder / PARAMS_FILE)
    search = network_search(params if args.n_trials is None else replace(params, n_trials=args.n_trials), args.folder)
    out: Path = args.out or args.folder / "models/network_search"
    with resume_state("tune_network", search.name, args.folder / STATE_ROOT) as state:
        objective = partial(NetworkObjective, args.folder, search.space, state)
        trials = run_search(search, objective, state=state, workers=workers_here())
        with atomic_directory(out) as partial_out:
            write_results(trials, search, partial_out)
            write_patch(trials, search, partial_out / "best_params.yaml")
    patch = out / "best_params.yaml"
    print(patch.read_text(encoding="utf-8"), end="")
    print(f"to see what it changes: python -m popularity.profile --patch {patch} --show; to apply it, without --show")


if __name__ == "__main__":
    run(main)
