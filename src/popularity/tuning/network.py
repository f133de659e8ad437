r"""The search over the network's own parameters: python -m popularity.tuning.network [--trials N] [--folder PROJECT].

    python -m popularity.tuning.network --trials 20
    python -m popularity.profile --patch models/network_search/best_params.yaml --show
    python -m popularity.profile --patch models/network_search/best_params.yaml

Needs `dvc repro featurize prototypes`. A trial trains the network with other values of section `train` and is judged
first by how many classes of the validation posts it names (top-1 of the mean head), then by what its vectors are worth
to the stack on the scheme `matched`: its value is MAE over that of the fit rows' median, minus SRC, minus the accuracy.
The labels of the posts that `report` scores are read nowhere in it. The space is section `tune_network` of params.yaml.

Writes best_params.yaml, a patch of section train that the second and third command show and apply, trials.csv and
study.json. A killed search goes on with the same command: after its last finished trial, in a trial after the last
epoch. POPULARITY_TUNE_WORKERS starts several processes.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from popularity.config import PARAMS_FILE, load_params, read_yaml
from popularity.errors import ConfigError
from popularity.evaluation.metrics import error_over_median, mean_absolute_error, spearman
from popularity.files import STATE_ROOT, atomic_directory, code_fingerprint, fingerprint, resume_state
from popularity.post_features.embed import EmbedPostsParams, Folders, embed_posts
from popularity.schema import FOLDS, IMAGES, POSTS, read_table
from popularity.splits import rows_of
from popularity.stack import StackParams, read_blocks
from popularity.stack.fit import Fold, fit_and_predict, load_fold
from popularity.stage import run
from popularity.training.assembly import EncoderPair, build_network, posts_for, save_network
from popularity.training.loop import DivergenceError, make_accelerator, train_network
from popularity.training.params import TrainParams
from popularity.training.reading import TowerOutputs, read_inputs, training_rows
from popularity.tuning.results import write_results
from popularity.tuning.space import Space, Values
from popularity.tuning.stack import StackInputs
from popularity.tuning.study import Budget, Search, Step, run_search, workers_here

logger = logging.getLogger(__name__)

ACCURACY = "validation/top1/mean"
SCHEME = "matched"
PROTOTYPE_FILES = ("about.json", "classes.parquet", "members.parquet", "prototypes.safetensors")
FIXED = ("rows", "seed", "validation_share")  # prototypes are made for rows; the others choose who is measured


@dataclass(frozen=True)
class NetworkSearchParams(Budget):
    """Section tune_network of params.yaml; `space` is of section train."""

    space: dict[str, Any]


@dataclass(frozen=True)
class Project:
    """The folder of a project in which the graph ran up to `prototypes` and `featurize`."""

    folder: Path

    @property
    def params(self) -> Path:
        return self.folder / PARAMS_FILE

    @property
    def images(self) -> Path:
        return self.folder / "data/interim/images.parquet"

    @property
    def prototypes(self) -> Path:
        return self.folder / "models/prototypes"

    @property
    def inputs(self) -> StackInputs:
        """Of the stack; there is no block `prototype` before a trial has made it."""
        return StackInputs.below(self.folder)


@dataclass(frozen=True)
class Settings:
    """What all trials share, read once: params.yaml may change while they run.

    Args:
        root: of the data set.
        towers: which encoders, and how.
        embed_posts: section of params.yaml.
        stack: section of params.yaml, with one booster a fold, whatever the stage fits.
    """

    root: Path
    towers: EncoderPair
    embed_posts: EmbedPostsParams
    stack: StackParams

    @classmethod
    def load(cls, project: Project) -> Settings:
        stack = load_params("stack", StackParams, project.params)
        return cls(
            project.folder / str(read_yaml(project.params)["dataset"]["root"]),
            EncoderPair.load(project.params),
            load_params("embed_posts", EmbedPostsParams, project.params),
            replace(stack, seeds=1, learners=("lightgbm",)),
        )


def network_search(
    params: NetworkSearchParams, project: Project, settings: Settings
) -> tuple[Search, Space[TrainParams]]:
    """What is searched in `project`.

    Raises:
        ConfigError: the space is none, or there is nothing to judge trials by.
    """
    train = load_params("train", TrainParams, project.params)
    if fixed := [key for key in params.space if key in FIXED]:
        raise ConfigError(f"tune_network.space.{fixed[0]}: trials that differ in it cannot be compared; leave it out")
    if train.validation_share == 0:
        raise ConfigError("train.validation_share is 0: the search needs validation posts to judge trials by")
    space = Space.parse("tune_network.space", params.space, "train", train)
    inputs = project.inputs
    sections = [asdict(section) for section in (train, settings.towers, settings.stack, settings.embed_posts)]
    key = fingerprint(
        code_fingerprint(), sections, params.space, params.seed,
        inputs.posts, inputs.splits, inputs.features, inputs.image, inputs.text, project.images,
        *(project.prototypes / name for name in PROTOTYPE_FILES),
    )  # fmt: skip
    return Search(f"network-{key}", space, Budget(params.seed, params.trials, params.hours, params.storage)), space


class NetworkObjective:
    """Two steps: minus the accuracy of the trained network, then the stack's value on `matched` added to it."""

    steps = 2

    def __init__(self, project: Project, settings: Settings, space: Space[TrainParams], state: Path) -> None:
        self.project, self.settings, self.space, self.state = project, settings, space, state

    @cached_property
    def posts(self) -> pl.DataFrame:
        return read_table(self.project.inputs.posts, POSTS)

    @cached_property
    def images(self) -> pl.DataFrame:
        return read_table(self.project.images, IMAGES)

    @cached_property
    def folds(self) -> list[Fold]:
        rows = rows_of(read_table(self.project.inputs.splits, FOLDS), [SCHEME])
        return [load_fold(key, own, self.posts, self.project.inputs.features) for key, own in rows]

    def __call__(self, values: Values) -> Iterator[Step]:
        params = self.space.apply(values)
        folder = self.state / "trials" / fingerprint(asdict(params))  # a trial that is run again finds its epochs there
        try:
            accuracy = self._train(params, folder)
            yield Step(-accuracy, {"top1": accuracy})
            mae, src = self._fit_stack(self._embed(params, folder))
            yield Step(mae - src - accuracy, {"top1": accuracy, "mae_of_constant": mae, "src": src})
        except (DivergenceError, torch.cuda.OutOfMemoryError) as error:  # would end every further run in the same place
            logger.warning("%s: it counts as a constant. %s", json.dumps(values), error)
            yield Step(0.0, {"top1": 0.0})
            yield Step(1.0, {"top1": 0.0, "mae_of_constant": 1.0, "src": 0.0})
        except GeneratorExit:  # pruned
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)

    def _train(self, params: TrainParams, folder: Path) -> float:
        """Top-1 of the validation posts after the last epoch; the network is in `folder`/network."""
        inputs = self.project.inputs
        read = read_inputs(self.posts, TowerOutputs.read(inputs.image, inputs.text), self.project.prototypes, params)
        network = build_network(params, read, self.settings.towers)
        rows, held_out = training_rows(self.posts, read.vectors, params.rows, params.validation_share, params.seed)
        reader = posts_for(network, read, self.posts, self.images, self.settings.root, self.settings.towers)
        (folder / "training").mkdir(parents=True, exist_ok=True)
        accelerator = make_accelerator(params.precision)
        history = train_network(network, reader, rows, held_out, params, accelerator, state=folder / "training")
        with atomic_directory(folder / "network") as out:
            save_network(network, params, history, out)
        return history[-1][ACCURACY]

    def _embed(self, params: TrainParams, folder: Path) -> Path:
        """A folder like data/embeddings/prototype."""
        inputs = self.project.inputs
        folders = Folders(self.settings.root, inputs.image, inputs.text, self.project.prototypes, folder / "network")
        (folder / "parts").mkdir(exist_ok=True)
        embed_posts(
            self.posts, self.images, folders, self.settings.towers, self.settings.embed_posts,
            make_accelerator(params.precision),
            state=folder / "parts", out=folder / "vectors", explain=folder / "explain",
        )  # fmt: skip
        return folder / "vectors"

    def _fit_stack(self, vectors: Path) -> tuple[float, float]:
        """MAE over that of the fit rows' median, and SRC, of the scored rows; mean over the folds of `matched`."""
        inputs, known = self.project.inputs, self.posts.select("pid", "label")
        blocks, found = read_blocks(inputs.image, inputs.text, vectors), []
        for fold in self.folds:
            predicted = fit_and_predict(fold, blocks, self.settings.stack)
            both = predicted.join(known, on="pid", how="left", validate="1:1", maintain_order="left")
            label, prediction = both["label"].to_numpy(), both["prediction"].to_numpy()
            error = error_over_median(mean_absolute_error(label, prediction), label, fold.label)
            found.append((error, spearman(label, prediction) or 0.0))
        mae, src = np.mean(found, axis=0).tolist()
        return mae, src


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m popularity.tuning.network",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path(), help="project with params.yaml, data and models")
    parser.add_argument("--trials", type=int, help="instead of tune_network.trials")
    parser.add_argument("--out", type=Path, help="folder of the result; models/network_search of the project")
    args = parser.parse_args(argv)
    project = Project(args.folder)
    params = load_params("tune_network", NetworkSearchParams, project.params)
    params = params if args.trials is None else replace(params, trials=args.trials)
    settings = Settings.load(project)
    search, space = network_search(params, project, settings)
    with resume_state("tune_network", search.name, args.folder / STATE_ROOT) as state:
        objective = partial(NetworkObjective, project, settings, space, state)
        trials = run_search(search, objective, state=state, workers=workers_here())
        out: Path = args.out or args.folder / "models/network_search"
        with atomic_directory(out) as partial_out:
            write_results(trials, search, partial_out)
    patch = out / "best_params.yaml"
    print(patch.read_text(encoding="utf-8"), end="")
    print(f"to see what it changes: python -m popularity.profile --patch {patch} --show; to apply it, without --show")


if __name__ == "__main__":
    run(main)
