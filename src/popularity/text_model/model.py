"""A text tower whose last blocks are trained on the label, with a linear head that also sees the post's numbers.

It learns what the label is above its level in time (`popularity.target.trend`), so that it orders the posts of
any date. Mean pooling and normalisation are the tower's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import polars as pl
import polars.selectors as cs
import torch
import transformers
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from popularity.core.config import Section
from popularity.core.errors import DataError
from popularity.core.tensors import read_tensors, write_tensors
from popularity.encoders.prompting import unfreeze_last
from popularity.encoders.text import EmbedTextParams, TextBatch, load_text_encoder, load_tokenizer
from popularity.features import CATEGORIES, TEXT, FeatureColumn
from popularity.target.trend import Trend

Array = npt.NDArray[np.float64]
FloatArray = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
MAX_ABS_Z = 5.0  # standard deviations at which a number ends
POOL = 16  # batches among which texts are sorted by length: little padding, and still a random order
ASKED = 256  # posts of a forward pass
BETA = 0.3  # standard deviations of the label below which the absolute loss becomes a square
CLIP = 1.0  # norm of a gradient
Rate = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class TextModelParams(Section):
    """How the tower of section embed_text is fine-tuned.

    Args:
        seed: of the head's first weights and the order of posts.
        epochs: over the fit rows; 0: no such model.
        max_train_posts: at most so many, the latest; 0: all.
        unfreeze_layers: last ones of the tower that are trained.
        batch_size: posts of a step.
        lr: of the blocks, at its height.
        lr_head: of the head.
        weight_decay: of both.
        warmup_fraction: of the steps, on which rates rise; then they fall to 0 on a line.
        num_threads: of a fit on a CPU; part of the result: others may change the last bits.
        parallel_folds: fits beside each other, no part of the result; one on an accelerator.
    """

    seed: int
    epochs: Annotated[int, Field(ge=0)]
    max_train_posts: Annotated[int, Field(ge=0)]
    unfreeze_layers: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    lr: Rate
    lr_head: Rate
    weight_decay: Rate
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)]
    num_threads: Annotated[int, Field(ge=1)]
    parallel_folds: Annotated[int, Field(ge=1)]


def sentences(features: pl.DataFrame) -> list[str]:
    """The classes' own names, title and tags of posts (pid, features)."""
    own = [pl.col(level).fill_null("").str.split("/").list.last() for level in ("subcategory", "concept")]
    return features.select(pl.concat_str([*own, pl.col(TEXT).fill_null("")], separator=". ")).to_series().to_list()


@dataclass(frozen=True)
class Numbers:
    """Which columns of the features are read, and their means and scales.

    Counts and lengths have long tails: of a size the logarithm is taken first.
    """

    names: tuple[str, ...]
    mean: Array
    scale: Array

    @classmethod
    def fit(cls, features: pl.DataFrame) -> Numbers:
        """Of fit rows; a column without two values is left out, and so are feature_groups, which the stack switches."""
        numeric = features.select(cs.numeric() | cs.boolean()).columns
        names = [name for name in numeric if name not in CATEGORIES and FeatureColumn.named(name).group is None]
        values = _logarithms(features, names)
        known = np.isfinite(values)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, values, 0).sum(axis=0) / count
        scale = np.sqrt(np.where(known, (values - mean) ** 2, 0).sum(axis=0) / count)
        kept = scale > 0
        return cls(tuple(name for name, own in zip(names, kept, strict=True) if own), mean[kept], scale[kept])

    def apply(self, features: pl.DataFrame) -> FloatArray:
        """(n, k) standardised; 0 where the number is missing."""
        scaled = (_logarithms(features, self.names) - self.mean) / self.scale
        numbers: FloatArray = np.nan_to_num(np.clip(scaled, -MAX_ABS_Z, MAX_ABS_Z), nan=0.0).astype(np.float32)
        return numbers


def _logarithms(features: pl.DataFrame, names: Sequence[str]) -> Array:
    values = features.select(pl.col(names).cast(pl.Float64)).fill_null(float("nan")).to_numpy()
    logarithms: Array = np.sign(values) * np.log1p(np.abs(values))
    return logarithms


class TextModel(nn.Module):
    """From a post's text, classes and numbers to what its label is above the level, and so to its label.

    Args:
        encoder: section embed_text: the tower that is loaded.
        unfreeze_layers: last ones of the tower that are trained.
        numbers: columns of the head beside the pooled vector.
        level: of the labels in time.
    """

    def __init__(self, encoder: EmbedTextParams, blocks: int, numbers: Numbers, level: Trend) -> None:
        super().__init__()
        self.encoder, self.blocks, self.numbers, self.level = encoder, blocks, numbers, level
        self.tokenizer = load_tokenizer(encoder)
        self.tower = load_text_encoder(encoder)
        unfreeze_last(self.tower, blocks)
        self.head = nn.Linear(self.tower.out_features + len(numbers.names), 1)
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def forward(self, texts: TextBatch, numbers: Tensor) -> Tensor:
        """(n,) standardised labels; in half precision, if the tower's is that, in training alone.

        So a post's prediction is the same to the sixth digit, with whatever posts it is asked for.
        """
        device = self.head.weight.device
        longest = int(texts.attention_mask.sum(dim=1).max())
        ids, mask = (part[:, :longest].to(device) for part in (texts.input_ids, texts.attention_mask))
        half = torch.is_grad_enabled() and self.encoder.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            pooled = self.tower(ids, mask)[0]
        joined = torch.cat([pooled.float() * self.tower.out_features**0.5, numbers.to(device)], dim=1)
        standardised: Tensor = self.head(joined)[:, 0]
        return standardised

    @torch.inference_mode()
    def predict(self, features: pl.DataFrame, posted_at: npt.NDArray[np.int64]) -> Array:
        """(n,) labels of posts (pid, features) with the dates (n,), microseconds."""
        if features.is_empty():
            return np.empty(0)
        read = _Read(self, features)
        parts = []
        for start in range(0, len(read.order), ASKED):
            rows = read.order[start : start + ASKED]
            parts.append(self(*read.of(rows)).double().cpu().numpy())
        predicted = np.empty(len(read.order))
        predicted[read.order] = np.concatenate(parts)
        above = predicted * float(self.get_buffer("spread")) + float(self.get_buffer("centre"))
        return self.level.retrend(above, posted_at)

    def save(self, path: Path) -> None:
        """Writes what was trained, one safetensors file; the frozen tower is in its own package or folder."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = {name: values for name, values in self.state_dict().items() if name in trained}
        state |= {name: self.get_buffer(name) for name in ("centre", "spread")}
        state |= {"mean": torch.from_numpy(self.numbers.mean), "scale": torch.from_numpy(self.numbers.scale)}
        about = {"blocks": self.blocks, "numbers": list(self.numbers.names), "level": self.level.to_json()}
        write_tensors(state, about, path)

    @classmethod
    def load(cls, path: Path, encoder: EmbedTextParams) -> TextModel:
        """The model that `save` wrote, on the tower of `encoder`."""
        state, about = read_tensors(path)
        mean, scale = (state.pop(name).numpy() for name in ("mean", "scale"))
        numbers = Numbers(tuple(about["numbers"]), mean, scale)
        model = cls(encoder, about["blocks"], numbers, Trend.from_json(about["level"]))
        model.load_state_dict(state, strict=False)
        return model


class _Read:
    """Posts as the model reads them."""

    def __init__(self, model: TextModel, features: pl.DataFrame) -> None:
        self.texts = model.tokenizer(sentences(features))
        self.numbers = torch.from_numpy(model.numbers.apply(features))
        self.lengths = self.texts.attention_mask.sum(dim=1).numpy()
        self.order: Rows = np.argsort(self.lengths, kind="stable")

    def of(self, rows: Rows) -> tuple[TextBatch, Tensor]:
        return TextBatch(*(part[rows] for part in self.texts)), self.numbers[rows]


def fit(
    features: pl.DataFrame,
    label: Array,
    posted_at: npt.NDArray[np.int64],
    encoder: EmbedTextParams,
    params: TextModelParams,
) -> TextModel:
    """A model of posts (pid, features) with labels (n,) and dates (n,), microseconds.

    Raises:
        DataError: the loss is not finite.
    """
    latest = np.sort(np.argsort(posted_at, kind="stable")[-params.max_train_posts :])
    features, label, posted_at = features[latest], label[latest], posted_at[latest]
    level = Trend.fit(posted_at, label, "linear")
    above = level.detrend(label, posted_at)
    model = TextModel(encoder, params.unfreeze_layers, Numbers.fit(features), level)
    torch.manual_seed(params.seed)  # after the tower, whose loading may draw too
    model.head.reset_parameters()
    model.get_buffer("centre").fill_(float(np.median(above)))
    model.get_buffer("spread").fill_(float(above.std()) or 1.0)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    read = _Read(model, features)
    target = torch.from_numpy(above).to(model.head.weight) - model.get_buffer("centre")
    target = target / model.get_buffer("spread")
    trained = [parameter for parameter in model.tower.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": trained, "lr": params.lr}, {"params": model.head.parameters(), "lr": params.lr_head}],
        weight_decay=params.weight_decay,
    )
    steps = params.epochs * -(-len(above) // params.batch_size)
    schedule = transformers.get_scheduler(
        "linear", optimizer, num_warmup_steps=round(params.warmup_fraction * steps), num_training_steps=steps
    )
    for rows in batches(read.lengths, params):
        loss = functional.smooth_l1_loss(model(*read.of(rows)), target[rows], beta=BETA)
        if not bool(torch.isfinite(loss)):
            raise DataError("the text model's loss is no finite number", fix="lower text_model.lr in params.yaml")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*trained, *model.head.parameters()], CLIP)
        optimizer.step()
        schedule.step()
    return model


def batches(lengths: npt.NDArray[np.int64], params: TextModelParams) -> Iterator[Rows]:
    """Rows of every step: each epoch all of them in a random order, sorted by length among POOL batches."""
    rng = np.random.default_rng(params.seed)
    for _ in range(params.epochs):
        order = rng.permutation(len(lengths))
        for start in range(0, len(order), params.batch_size * POOL):
            pool = order[start : start + params.batch_size * POOL]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            for place in rng.permutation(-(-len(pool) // params.batch_size)):
                yield pool[place * params.batch_size : (place + 1) * params.batch_size]
