"""Random cached vectors of a few classes, a tiny text tower, and short training runs over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from popularity.core.arrays import Int64Array, normalize_rows
from popularity.core.config import parse_section
from popularity.encoders.prompting import PromptTower, load_prompt_tower, unfreeze_last
from popularity.network.dataset import Batch, PostReader, PostVectors, draw_folds
from popularity.network.model import PrototypeNetwork, TaxonomyLevel
from popularity.network.params import TrainParams
from popularity.prototypes.vectors import ClassPrototypes, ClassSums, prototypes
from popularity.training.batches import TrainingPosts
from popularity.training.loop import Epoch, no_op, train_network
from tests.encoders.tiny_encoders import WORDS, text_params
from tests.network.small_network import IMAGE_WIDTH, NAMES, SIZES, TEXT_WIDTH, VALUES, changed

POSTS = 68
FOLDS: int = VALUES["prototypes"]["folds"]
WIDTHS = {"visual": IMAGE_WIDTH, "text": TEXT_WIDTH}
TRAIN: dict[str, Any] = {
    "transductive": True,
    "seed": 0,
    "valid_fraction": 0.25,
    "epochs": 3,
    "min_steps": 0,
    "max_steps": 0,
    "patience": 0,
    "batch_size": 20,
    "micro_batch": 64,
    "lr_prompt": 1e-2,
    "lr_attention": 3e-3,
    "lr_temperature": 1e-3,
    "lr_tower": 1e-3,
    "weight_decay": 1e-2,
    "schedule": "cosine",
    "warmup_fraction": 0.1,
    "clip_norm": 1.0,
    "precision": "fp32",
    "unfreeze_layers": 0,
    "compile": False,
    "checkpoint_minutes": 0.0,
}


def train_params(**changes: Any) -> TrainParams:
    """Changes of the network are named by their dotted path, `weights.contrastive` say."""
    own = {name: value for name, value in changes.items() if name in TRAIN}
    network = changed(VALUES, {name: value for name, value in changes.items() if name not in TRAIN})
    return parse_section("train", {**TRAIN, **own, "network": network}, TrainParams)


def random_vectors(levels: Sequence[str] = ("subcategory",), posts: int = POSTS, seed: int = 0) -> PostVectors:
    """Vectors near the centre of their class. Post 0 has no image, post 1 no token, post 2 neither, post 3 a class
    that training does not know. All of them represent their classes."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(SIZES["subcategory"], size=posts)
    classes[3] = -1
    # Class i of a level hangs below class i modulo the number above, as in `small_levels`.
    of_level = {
        "category": np.where(classes >= 0, classes % SIZES["category"], -1),
        "subcategory": classes,
        "concept": np.where(classes >= 0, (classes + 5 * rng.integers(2, size=posts)) % SIZES["concept"], -1),
    }
    centres = {kind: rng.normal(size=(SIZES["subcategory"], width)) for kind, width in WIDTHS.items()}
    values = {
        kind: (centres[kind][classes] + rng.normal(size=(posts, WIDTHS[kind]))).astype(np.float16) for kind in WIDTHS
    }
    image_row = np.arange(posts)
    image_row[[0, 2]] = -1
    lengths = rng.integers(1, 6, posts)
    lengths[[1, 2]] = 0
    tokens = np.repeat(values["text"], lengths, axis=0) + rng.normal(size=(lengths.sum(), TEXT_WIDTH))
    return PostVectors(
        pids=[str(index) for index in range(posts)],
        image=values["visual"],
        image_row=image_row,
        pooled=values["text"],
        pooled_row=np.arange(posts),
        tokens=tokens.astype(np.float16),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        target=np.stack([of_level[name] for name in levels], axis=1),
        levels=tuple(levels),
        fold=draw_folds(classes, FOLDS, seed),
        prototypes=class_prototypes({name: of_level[name] for name in levels}, values),
    )


def class_prototypes(classes: Mapping[str, Int64Array], values: Mapping[str, Any]) -> ClassPrototypes:
    """Every post of a class represents it."""
    sums, above = {}, 0
    for level, own in classes.items():
        size = SIZES[level]
        parent = np.arange(size) % above if above else np.full(size, -1)
        for kind, vectors in values.items():
            total = np.zeros((size, vectors.shape[1]), np.float32)
            np.add.at(total, own[own >= 0], normalize_rows(vectors[own >= 0], dtype=np.float32))
            sums[level, kind] = ClassSums(total, np.bincount(own[own >= 0], minlength=size), parent)
        above = size
    return ClassPrototypes(tuple(classes), sums, classes, {key: classes[key[0]] for key in sums})


def stored_levels(vectors: PostVectors, folds: int) -> dict[str, TaxonomyLevel]:
    result: dict[str, TaxonomyLevel] = {}
    given, read = vectors.prototypes, {"visual": vectors.images, "text": vectors.texts}
    for depth, level in enumerate(given.levels):
        above = given.levels[: depth + 1]
        visual, text = (
            torch.from_numpy(prototypes([given.sums[name, kind] for name in above]).astype(np.float32))
            for kind in WIDTHS
        )
        parent = torch.from_numpy(given.sums[level, "visual"].parent)
        of_folds = [
            torch.from_numpy(given.without_folds(level, kind, vectors.fold, folds, read[kind])) for kind in WIDTHS
        ]
        result[level] = (
            TaxonomyLevel(visual, text, parent, *of_folds) if folds > 1 else TaxonomyLevel(visual, text, parent)
        )
    return result


def small_tower(folder: Path) -> PromptTower:
    """The tower that `save_bert` wrote to `folder`."""
    return load_prompt_tower(text_params(weights=f"path:{folder}", max_tokens=12))


def small_network(params: TrainParams, vectors: PostVectors, tower: PromptTower) -> PrototypeNetwork:
    torch.manual_seed(params.seed)
    unfreeze_last(tower, params.unfreeze_layers)
    return PrototypeNetwork(
        params.network, stored_levels(vectors, params.network.prototypes.folds), tower, tower.tokenize(NAMES, 12)
    )


def reader(vectors: PostVectors, tower: PromptTower) -> PostReader:
    """With the posts' own tokens, as unfrozen encoders and instance prompts need them; filler has those of post 0."""
    texts = [" ".join(WORDS[(row + position) % 4] for position in range(vectors.lengths[row])) for row in range(POSTS)]

    def read(rows: Int64Array) -> Batch:
        own = tower.tokenize([texts[row] for row in np.maximum(rows, 0)], 12)
        return vectors.batch(rows)._replace(texts=own)

    return PostReader(read, vectors.metadata)


def rows_of(vectors: PostVectors) -> tuple[Int64Array, Int64Array]:
    """51 rows to train on and 17 that are held out; the awkward posts are among the first."""
    return np.arange(51), np.arange(51, len(vectors.pids))


def single_accelerator(precision: str = "no") -> Accelerator:
    """Of this process alone; the precision of an earlier one does not stay."""
    AcceleratorState._reset_state()
    return Accelerator(cpu=True, mixed_precision=precision)


def small_run(
    params: TrainParams,
    folder: Path,
    state: Path,
    accelerator: Accelerator | None = None,
    on_epoch: Callable[[int, Epoch], None] = no_op,
    held_out: bool = True,
) -> tuple[list[Epoch], dict[str, Tensor]]:
    """The history of a run over the random vectors, and the weights that it ends with."""
    vectors, tower = random_vectors(params.network.prototypes.levels), small_tower(folder)
    network = small_network(params, vectors, tower)
    live = params.unfreeze_layers or params.network.prompts.instance_length
    posts = reader(vectors, tower) if live else vectors.reader
    rows, measured = rows_of(vectors)
    accelerator = accelerator or single_accelerator()
    state.mkdir(parents=True, exist_ok=True)
    training = TrainingPosts(posts, rows, measured if held_out else measured[:0])
    history = train_network(network, training, params, accelerator, state=state, on_epoch=on_epoch)
    return history, {name: values.detach().clone() for name, values in network.state_dict().items()}
