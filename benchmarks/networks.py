"""Class accuracy and retrieval of the network, before and after each of its parts, on held-out posts.

For each part: recall of a post's own text by its image, class accuracy (top-1, top-5, mean over classes), silhouette of
the classes. Frozen encoders of different models share no space, so image and text are compared in the space of the
classes: as the K cosines to the prototypes (before), p (prompts) and q (attention). Then the accuracy of class names
alone (the same text encoder without context vectors) and of logistic regressions on the same frozen vectors, with a
penalty chosen on folds by user inside the train rows. A number is the mean over the seeds.

    python -m benchmarks.networks                                # 3 seeds, as params.yaml trains
    python -m benchmarks.networks --seeds 0 --steps 100 --csv networks.csv

Needs `dvc repro embed_image embed_text`. Benchmarks that train several networks make each part once and cache it:

    bench = Bench.here()
    network = bench.network(replace(bench.train, seed=1))     # folder like models/network
    vectors, explain = bench.embed(network)                   # folders like data/embeddings/prototype and data/explain
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import silhouette_score
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.tables import add_csv_flag, text_table, write_csv
from popularity.core import paths
from popularity.core.arrays import BoolArray, Float64Array, Int64Array, normalize_rows
from popularity.core.atomic import atomic_directory, fingerprint
from popularity.core.config import PARAMS_FILE, load_params, read_yaml
from popularity.core.contracts import IMAGES, POSTS, read_table
from popularity.core.resume import STATE_ROOT, code_fingerprint, resume_state
from popularity.core.stage import run
from popularity.core.vectors import read_block
from popularity.encoders.sources import Precision
from popularity.inference.embed import EmbedPostsParams, Folders, NetworkInputs, embed_posts
from popularity.network.accelerator import make_accelerator
from popularity.network.build import build_network, load_network, save_network, trained_params
from popularity.network.dataset import PostReader
from popularity.network.heads import head_log_probabilities
from popularity.network.inputs import (
    EncoderOutputs,
    EncoderPair,
    NetworkData,
    post_reader,
    read_network_data,
    training_rows,
)
from popularity.network.losses import cosines, global_logits
from popularity.network.model import PrototypeNetwork
from popularity.network.params import CLASS_LEVEL, TrainParams
from popularity.prototypes.build import PrototypesParams, build_prototypes, write_prototypes
from popularity.training.batches import TrainingPosts, load_batches
from popularity.training.loop import train_network

logger = logging.getLogger(__name__)

CODE = ("encoders", "network", "inference", "prototypes", "training")  # subpackages that make a network
Vectors = npt.NDArray[np.floating[Any]]

INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regressions
PROBE_FOLDS = 3
TIE = 1e-6  # similarities closer than this are equal: equal vectors may differ by that much after a matrix product
CHUNK_ROWS = 2048  # of a similarity matrix in memory
MAX_SILHOUETTE_POSTS = 2000


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="project folder with data and params.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="training steps; replaces train.epochs")
    parser.add_argument("--precision", choices=get_args(Precision), help="of the networks; replaces train.precision")
    add_csv_flag(parser)
    args = parser.parse_args(argv)
    bench = Bench.here(args.folder)
    found = []
    for seed in args.seeds:
        params = trained_as(replace(bench.train, seed=seed), args.steps, args.precision)
        found += class_table(bench, bench.network(params), seed)
    rows = pl.DataFrame(found).group_by("part", maintain_order=True).mean().to_dicts()
    print(text_table(rows))
    write_csv(rows, args.csv)


def trained_as(params: TrainParams, steps: int | None, precision: Precision | None) -> TrainParams:
    """Section train with the number of steps and the precision, if they are not None."""
    params = params if steps is None else replace(params, epochs=1, min_steps=steps)
    return params if precision is None else replace(params, precision=precision)


@dataclass(frozen=True)
class Bench:
    """A project folder in which the graph ran up to the embed stages.

    Args:
        root: of the data set.
        data: the folder data.
        params: file of parameters.
        cache: folder of finished parts, each named by a fingerprint of everything it depends on.
    """

    root: Path
    data: Path
    params: Path
    cache: Path

    @classmethod
    def here(cls, folder: Path = Path()) -> Bench:
        """The project in `folder`."""
        params = folder / PARAMS_FILE
        root = folder / read_yaml(params)["dataset"]["root"]
        return cls(root, folder / "data", params, folder / STATE_ROOT / "benchmarks")

    @cached_property
    def posts(self) -> pl.DataFrame:
        return read_table(self.data / "interim/posts.parquet", POSTS)

    @cached_property
    def images(self) -> pl.DataFrame:
        return read_table(self.data / "interim/images.parquet", IMAGES)

    @property
    def train(self) -> TrainParams:
        return load_params("train", TrainParams, self.params)

    @property
    def encoders(self) -> EncoderPair:
        return EncoderPair.load(self.params)

    @cached_property
    def vectors(self) -> tuple[Path, Path]:
        """The folders of the network's vectors of images and texts."""
        params = read_yaml(self.params)
        image, text = (paths.resolved(name, params) for name in (paths.IMAGE_EMBEDDINGS, paths.TEXT_EMBEDDINGS))
        return self.data.parent / image, self.data.parent / text

    @property
    def blocks(self) -> EncoderOutputs:
        return EncoderOutputs.read(*self.vectors)

    def prototypes(self, transductive: bool) -> Path:
        """A folder like models/prototypes."""
        params = load_params("prototypes", PrototypesParams, self.params)

        def make(out: Path) -> None:
            image, text = read_block(self.vectors[0], "pooled"), read_block(self.vectors[1], "post")
            write_prototypes(build_prototypes(self.posts, image, text, params, transductive=transductive), out)

        return self._once("prototypes", make, asdict(params), transductive, self._inputs)

    def inputs(self, prototypes: Path, params: TrainParams) -> NetworkData:
        return read_network_data(self.posts, self.blocks, prototypes, params)

    def network(self, params: TrainParams, prompts: Path | None = None) -> Path:
        """A folder like models/network, trained by `params`.

        Args:
            params: section train.
            prompts: folder of a network whose prompts are copied; then only the attention is trained. The two share no
                loss, so the result is the same as of training both.
        """
        prototypes = self.prototypes(params.transductive)

        def make(out: Path) -> None:
            weights = params.network.weights
            if prompts is not None:
                weights = replace(weights, global_prompt=0.0, local_prompt=0.0)
            trained = replace(params, network=replace(params.network, weights=weights))
            inputs = self.inputs(prototypes, params)
            network = build_network(trained, inputs, self.encoders)
            rows, held_out = training_rows(self.posts, inputs.vectors, params)
            accelerator = fresh_accelerator(params.precision)
            key = fingerprint(asdict(trained), asdict(self.encoders), prototypes, self._inputs)
            with resume_state("benchmark_train", key, self.cache) as state:
                reader = post_reader(network, inputs, self.posts, self.images, self.root, self.encoders)
                history = train_network(
                    network, TrainingPosts(reader, rows, held_out), trained, accelerator, state=state
                )
            if prompts is not None:
                take_prompts(network, prompts)
            save_network(network, params, history, out)

        return self._once("network", make, asdict(params), prototypes, prompts or "", self._inputs)

    def embed(self, network: Path) -> tuple[Path, Path]:
        """Folders like data/embeddings/prototype and data/explain."""
        params = load_params("embed_posts", EmbedPostsParams, self.params)
        prototypes = self.prototypes(trained_params(network).transductive)
        folders = Folders(self.root, *self.vectors, prototypes, network)

        def make(out: Path) -> None:
            accelerator = fresh_accelerator(trained_params(network).precision)
            key = fingerprint(asdict(params), network, prototypes, self._inputs)
            with resume_state("benchmark_embed", key, self.cache) as state:
                inputs = NetworkInputs(self.posts, self.images, folders, self.encoders, params, accelerator)
                embed_posts(inputs, state=state, out=out / "vectors", explain=out / "explain")

        folder = self._once("embed", make, asdict(params), network, prototypes, self._inputs)
        return folder / "vectors", folder / "explain"

    def load(self, network: Path) -> tuple[PrototypeNetwork, PostReader, NetworkData]:
        """The network in evaluation mode, and how it reads the posts."""
        params = trained_params(network)
        inputs = self.inputs(self.prototypes(params.transductive), params)
        loaded, _ = load_network(network, inputs, self.encoders)
        return loaded, post_reader(loaded, inputs, self.posts, self.images, self.root, self.encoders), inputs

    @cached_property
    def _inputs(self) -> str:
        """The fingerprint of everything that the network reads, and of its code."""
        tables = [self.data / "interim" / name for name in ("posts.parquet", "images.parquet")]
        return fingerprint(asdict(self.encoders), code_fingerprint(*CODE), *tables, *self.vectors)

    def _once(self, kind: str, make: Callable[[Path], None], *key: object) -> Path:
        folder = self.cache / kind / fingerprint(*key)
        if not folder.exists():
            logger.info("%s: %s", kind, folder)
            with atomic_directory(folder) as partial:
                make(partial)
        return folder


def fresh_accelerator(precision: Precision) -> Accelerator:
    """A new accelerator in a process that had others, possibly of another precision."""
    AcceleratorState._reset_state()
    PartialState._reset_state()
    return make_accelerator(precision)


def take_prompts(network: PrototypeNetwork, folder: Path) -> None:
    """Replaces the network's prompts by those of a trained network."""
    tensors = load_file(folder / "network.safetensors")
    own = {name: values for name, values in tensors.items() if name.split(".")[0] in ("global_prompt", "local_prompt")}
    network.load_state_dict(own, strict=False)


@torch.inference_mode()
def class_table(bench: Bench, network_folder: Path, seed: int) -> list[dict[str, Any]]:
    """A row a part of the network, then one for class names and for each regression, as in the module's docstring."""
    network, posts, inputs = bench.load(network_folder)
    params = trained_params(network_folder)
    fit, held_out = (with_both(posts, rows) for rows in training_rows(bench.posts, inputs.vectors, params))
    arrays = outputs_of(network, posts, held_out)
    y = arrays.pop("y").astype(np.int64)
    table: list[dict[str, Any]] = []
    for part, image, text, logits, vectors in (
        ("before: images and V", "near V", "near T", "near V", "image"),
        ("before: texts and T", "near V", "near T", "near T", "text"),
        ("after global prompts", "attention", "global_prompt", "global_prompt", "global_prompt"),
        ("after local prompts", "attention", "local_prompt", "local_prompt", "local_prompt"),
        ("after attention", "P_I x", "P_T h", "attention", "x~"),
        ("mean of the heads", "attention", "global_prompt", "mean", "mean"),
    ):
        ranks = retrieval(_centred(arrays[image]), _centred(arrays[text]))
        table.append({"part": part, **ranks, **class_scores(arrays[logits], y)})
        table[-1]["silhouette"] = silhouette(arrays[vectors], y, seed=seed)
    names = global_logits(torch.from_numpy(arrays["text"]), network.text_tower(None, network.names).pooled)
    table.append({"part": "bare class names", **class_scores(names.float().numpy(), y)})
    target = inputs.vectors.target[:, network.level_names.index(CLASS_LEVEL)]
    fit = fit[target[fit] >= 0]
    users = bench.posts["uid"].to_numpy()[fit]
    images, texts = inputs.vectors.images(fit), inputs.vectors.texts(fit)
    for name, features, new in (
        ("image", images, arrays["image"]),
        ("text", texts, arrays["text"]),
        ("image + text", np.hstack([images, texts]), np.hstack([arrays["image"], arrays["text"]])),
    ):
        logits_of_probe = linear_probe(features, target[fit], new, users, len(inputs.names))
        table.append({"part": f"logistic regression of {name}", **class_scores(logits_of_probe, y)})
    return table


def with_both(posts: PostReader, rows: Int64Array) -> Int64Array:
    """The rows of posts that have an image and a text."""
    metadata = posts.metadata(rows)
    both: BoolArray = (metadata.has_image & metadata.has_token).numpy()
    return rows[both]


def outputs_of(network: PrototypeNetwork, posts: PostReader, rows: Int64Array) -> dict[str, Vectors]:
    """Outputs of the network for the rows by name, each (n, width), and their class `y` (n,)."""
    parts: dict[str, list[torch.Tensor]] = {}
    prompts = network.class_prompts()
    passes = [rows[start : start + 256] for start in range(0, len(rows), 256)]
    for batch in load_batches(posts.read, passes, torch.device("cpu"), 0):
        out = network(batch, prompts)
        found = {
            "image": batch.image,
            "text": batch.pooled,
            "near V": cosines(batch.image, network.get_buffer(f"{CLASS_LEVEL}_visual")),
            "near T": cosines(batch.pooled, network.get_buffer(f"{CLASS_LEVEL}_text")),
            "x~": out.attended,
            "P_I x": out.projected_image,
            "P_T h": out.projected_text,
            "y": batch.target[:, network.level_names.index(CLASS_LEVEL)],
            **head_log_probabilities(network, out),
        }
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    return {name: torch.cat(values).float().numpy() for name, values in parts.items()}


def _centred(values: Vectors) -> Vectors:
    centred: Vectors = values - values.mean(axis=0)
    return centred


def linear_probe(features: Vectors, y: Int64Array, new: Vectors, users: npt.NDArray[Any], classes: int) -> Vectors:
    """(m, classes) log-probabilities of `new` (m, d) by a logistic regression on `features` (n, d), standardised.

    Args:
        features: of the train rows.
        y: (n,) their classes; a class that does not occur gets the smallest positive probability.
        new: of other rows.
        users: (n,) no user is on both sides of a fold on which the penalty is chosen.
        classes: width of the result.
    """
    folds = list(GroupKFold(PROBE_FOLDS, shuffle=True, random_state=0).split(features, groups=users))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    search = GridSearchCV(model, {"logisticregression__C": INVERSE_PENALTIES}, cv=folds, scoring="accuracy")
    search.fit(features.astype(np.float64), y)
    logger.info("logistic regression: C %s, accuracy %.4f", *search.best_params_.values(), search.best_score_)
    found = np.full((len(new), classes), np.log(np.finfo(np.float64).tiny))
    found[:, search.classes_] = np.maximum(search.predict_log_proba(new.astype(np.float64)), found[:1, :1])
    return found.astype(np.float32)


def retrieval(image: Vectors, text: Vectors) -> dict[str, float]:
    """`recall_1`, `recall_10` and `median_rank` of a post's own text among all texts, by cosine to its image.

    Equal similarities have a random order: a recall is its mean over the orders, a rank the mean rank. Chance is k / n
    and (n + 1) / 2.
    """
    queries, answers = normalize_rows(image, dtype=np.float32), normalize_rows(text, dtype=np.float32)
    above, tied = np.empty(len(queries)), np.empty(len(queries))
    for start in range(0, len(queries), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        similarity = queries[rows] @ answers.T
        own = similarity[np.arange(len(similarity)), np.arange(start, start + len(similarity))]
        above[rows], tied[rows] = _above_and_tied(similarity, own)
    recalls = {f"recall_{k}": float(_hits(above, tied, k).mean()) for k in (1, 10)}
    return recalls | {"median_rank": float(np.median(above + (tied + 1) / 2))}


def class_scores(logits: Vectors, y: Int64Array) -> dict[str, float]:
    """`top_1`, `top_5` and `macro` (top-1 averaged over the classes that occur) of logits (n, classes) for y (n,).

    Equal logits have a random order: constant logits score chance.
    """
    above, tied = _above_and_tied(logits, logits[np.arange(len(y)), y])
    first = _hits(above, tied, 1)
    _, index, posts = np.unique(y, return_inverse=True, return_counts=True)
    return {
        "top_1": float(first.mean()),
        "top_5": float(_hits(above, tied, 5).mean()),
        "macro": float((np.bincount(index, weights=first) / posts).mean()),
    }


def _above_and_tied(values: Vectors, own: Vectors) -> tuple[Float64Array, Float64Array]:
    """For each row of (n, m) values: how many exceed its `own` (n,), and how many equal it (its own too)."""
    above = values > own[:, None] + TIE
    tied = np.abs(values - own[:, None]) <= TIE
    return above.sum(axis=1).astype(np.float64), tied.sum(axis=1).astype(np.float64)


def _hits(above: Float64Array, tied: Float64Array, k: int) -> Float64Array:
    """(n,) chance of being among the first k when equals are ordered at random."""
    return np.clip((k - above) / tied, 0, 1)


def silhouette(features: Vectors, y: Int64Array, *, seed: int) -> float | None:
    """Mean silhouette of the classes by cosine distance, -1 to 1, on at most MAX_SILHOUETTE_POSTS seeded rows.

    None when those rows are all of one class or all of different ones.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(y))[:MAX_SILHOUETTE_POSTS])
    if not 1 < len(np.unique(y[rows])) < len(rows):
        return None
    return float(silhouette_score(normalize_rows(features[rows], dtype=np.float32), y[rows], metric="cosine"))


if __name__ == "__main__":
    run(main)
