"""The text model: a text encoder whose last layers are trained on the label, with a linear head.

The head reads the pooled vector and the numeric features of the post, and starts at the ridge of the label on them
(LP-FT, Kumar et al. 2022, https://arxiv.org/abs/2202.10054). The model is the mean of this start and of where training
leads from it (WiSE-FT, Wortsman et al. 2022, https://arxiv.org/abs/2109.01903), which holds better for later posts. It
learns the detrended label (`popularity.target.trend`), so that it orders posts of any date. A text is read and pooled
as its encoder does it: with its full length where the tower attends to padding (SigLIP). The pooled vector is
normalised, because those of CLIP and SigLIP have any length, and the rate of the head is made for values of about 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
import polars.selectors as cs
import torch
import transformers
from pydantic import Field
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn
from torch.nn import functional

from popularity.core.arrays import Float32Array, Float64Array, Int64Array
from popularity.core.config import Section
from popularity.core.errors import DataError
from popularity.core.tensors import read_tensors, write_tensors
from popularity.encoders.precision import resolve_precision
from popularity.encoders.prompting import unfreeze_last
from popularity.encoders.text import EmbedTextParams, TextBatch, load_text_encoder, load_tokenizer
from popularity.features import CATEGORIES, TEXT, FeatureColumn
from popularity.target.collection_order import along
from popularity.target.trend import Detrend, Trend
from popularity.text_model.frozen import FrozenStates, LastLayers, computing
from popularity.validation.folds import Fold

MAX_ABS_Z = 5.0  # standard deviations to which a numeric feature is clipped
POOL_BATCHES = 16  # texts are sorted by length inside so many batches: little padding, and still a random order
PREDICT_BATCH_SIZE = 256
SMOOTH_L1_BETA = 0.3  # standard deviations of the label; the loss of smaller errors is quadratic
MAX_GRADIENT_NORM = 1.0
MAX_HEAD_POSTS = 32_768  # that the head starts from; of more every second one, or third, in the order of their lengths
RIDGE_ALPHAS = tuple(10.0**power for power in range(1, 7))  # of the head's start; the least leave-one-out error chooses
CPU = torch.device("cpu")
Rate = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class TextModelParams(Section):
    """Section text_model: how the encoder, an entry of embed_text, is fine-tuned.

    Args:
        seed: of the order of posts.
        schemes: those of `stack.schemes` in which it is fitted, besides refit; in the others the stack is alone.
        epochs: over the train rows; 0: no text model.
        max_train_posts: of a fold, the latest; 0: all.
        unfreeze_layers: number of the last layers of the encoder that are trained.
        cache_gib: of the outputs of the other layers, kept on disk for all folds; more: every step computes them.
        batch_size: posts of a step.
        lr: peak learning rate of the layers.
        lr_head: peak learning rate of the head.
        weight_decay: of layers and head.
        start_weight: of the start in the mean of start and end that becomes the model; 0: the end.
        warmup_fraction: of the steps, in which the rates rise; then they fall linearly to 0.
        detrend: what the label is less of, see `popularity.target.trend`.
        num_threads: of a fit on a CPU; part of the result: another number may change the last bits.
        parallel_folds: fits at the same time on a machine, no part of the result; one a process on an accelerator.
    """

    seed: int
    schemes: tuple[Literal["holdout", "forward", "group", "random"], ...]
    epochs: Annotated[int, Field(ge=0)]
    max_train_posts: Annotated[int, Field(ge=0)]
    unfreeze_layers: Annotated[int, Field(ge=1)]
    cache_gib: Annotated[float, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=1)]
    lr: Rate
    lr_head: Rate
    weight_decay: Rate
    start_weight: Annotated[float, Field(ge=0, le=1)]
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)]
    detrend: Detrend
    num_threads: Annotated[int, Field(ge=1)]
    parallel_folds: Annotated[int, Field(ge=1)]


def sentences(features: pl.DataFrame) -> list[str]:
    """The texts that the model reads: subcategory, concept, title and tags of posts (pid, features)."""
    own = [pl.col(level).fill_null("").str.split("/").list.last() for level in ("subcategory", "concept")]
    return features.select(pl.concat_str([*own, pl.col(TEXT).fill_null("")], separator=". ")).to_series().to_list()


@dataclass(frozen=True)
class NumericFeatures:
    """The numeric features that the head reads, standardised by train rows.

    Counts and lengths have long tails, so signed logarithms are taken first.

    Args:
        names: of k columns.
        mean: (k,) of the logarithms.
        scale: (k,) standard deviations of the logarithms.
    """

    names: tuple[str, ...]
    mean: Float64Array
    scale: Float64Array

    @classmethod
    def fit(cls, features: pl.DataFrame) -> NumericFeatures:
        """The numeric features of train rows, without constant columns and without columns of feature groups."""
        numeric = features.select(cs.numeric() | cs.boolean()).columns
        names = [name for name in numeric if name not in CATEGORIES and FeatureColumn.named(name).group is None]
        values = _logarithms(features, names)
        known = np.isfinite(values)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, values, 0).sum(axis=0) / count
        scale = np.sqrt(np.where(known, (values - mean) ** 2, 0).sum(axis=0) / count)
        varies = scale > 0
        return cls(tuple(name for name, own in zip(names, varies, strict=True) if own), mean[varies], scale[varies])

    def apply(self, features: pl.DataFrame) -> Float32Array:
        """(n, k) standardised values of posts (pid, features); 0 where a value is missing."""
        scaled = (_logarithms(features, self.names) - self.mean) / self.scale
        standardised: Float32Array = np.nan_to_num(np.clip(scaled, -MAX_ABS_Z, MAX_ABS_Z), nan=0.0).astype(np.float32)
        return standardised


def _logarithms(features: pl.DataFrame, names: Sequence[str]) -> Float64Array:
    values = features.select(pl.col(names).cast(pl.Float64)).fill_null(float("nan")).to_numpy()
    logarithms: Float64Array = np.sign(values) * np.log1p(np.abs(values))
    return logarithms


class TextModel(nn.Module):
    """From the text, classes and numeric features of a post to its label.

    Args:
        encoder: an entry of embed_text, which is loaded.
        unfreeze_layers: number of its last layers that are trained.
        numeric: features that the head reads with the pooled vector.
        trend: of the labels in time.
    """

    def __init__(self, encoder: EmbedTextParams, unfreeze_layers: int, numeric: NumericFeatures, trend: Trend) -> None:
        super().__init__()
        self.encoder, self.unfreeze_layers, self.numeric, self.trend = encoder, unfreeze_layers, numeric, trend
        self.tokenizer = load_tokenizer(encoder)
        self.tower = load_text_encoder(encoder)
        unfreeze_last(self.tower, unfreeze_layers)
        self.head = nn.Linear(self.tower.out_features + len(numeric.names), 1)
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    @cached_property
    def last_layers(self) -> LastLayers:
        """The trained layers on stored outputs of the others; no part of the state dict. Not before `to`."""
        return LastLayers(self.tower, self.unfreeze_layers)

    def forward(self, texts: TextBatch, numeric: Tensor, hidden: Tensor | None = None) -> Tensor:
        """(n,) standardised detrended labels.

        Only training uses half precision, if the encoder's `precision` says so. So the prediction of a post is the same
        to the sixth digit in any batch.

        Args:
            texts: tokens of n posts.
            numeric: (n, k) of NumericFeatures.
            hidden: (n, tokens, d) outputs of the frozen layers, as wide as the texts; None: they are computed.
        """
        standardised: Tensor = self.head(self.joined(texts, numeric, hidden))[:, 0]
        return standardised

    def joined(self, texts: TextBatch, numeric: Tensor, hidden: Tensor | None = None) -> Tensor:
        """(n, d + k) what the head reads: the direction of the pooled vector, and the numbers; see `forward`."""
        device = self.head.weight.device
        ids, mask = (tokens.to(device) for tokens in (texts.input_ids, texts.attention_mask))
        with computing(device, self.encoder.precision) if torch.is_grad_enabled() else nullcontext():
            pooled = (self.tower(ids, mask) if hidden is None else self.last_layers(hidden.to(device), ids, mask))[0]
        direction = functional.normalize(pooled.float(), dim=1) * self.tower.out_features**0.5  # values of about 1
        return torch.cat([direction, numeric.to(device)], dim=1)

    @torch.inference_mode()
    def predict(
        self,
        features: pl.DataFrame,
        posted_at: Int64Array,
        days_after: Float64Array | None = None,
        states: FrozenStates | None = None,
    ) -> Float64Array:
        """(n,) predicted labels.

        Args:
            features: (pid, features) of n posts.
            posted_at: (n,) microseconds.
            days_after: (n,) days from the post until its count is read; None or nan: until the collection.
            states: stored outputs of the frozen layers, which are used if they have all of the posts.
        """
        if features.is_empty():
            return np.empty(0)
        inputs = _Inputs(self, features, states)
        outputs = []
        for start in range(0, len(inputs.order), PREDICT_BATCH_SIZE):
            rows = inputs.order[start : start + PREDICT_BATCH_SIZE]
            outputs.append(self(*inputs.batch(rows)).double().cpu().numpy())
        predicted = np.empty(len(inputs.order))
        predicted[inputs.order] = np.concatenate(outputs)
        detrended = predicted * float(self.get_buffer("spread")) + float(self.get_buffer("centre"))
        return self.trend.retrend(detrended, along(self.trend.kind, features["pid"], posted_at), days_after)

    def save(self, path: Path) -> None:
        """Writes the trained parameters, one safetensors file; the frozen layers are in their own package or folder."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = {name: values for name, values in self.state_dict().items() if name in trained}
        state |= {name: self.get_buffer(name) for name in ("centre", "spread")}
        state |= {"mean": torch.from_numpy(self.numeric.mean), "scale": torch.from_numpy(self.numeric.scale)}
        metadata = {
            "unfreeze_layers": self.unfreeze_layers,
            "numeric": list(self.numeric.names),
            "trend": self.trend.to_json(),
        }
        write_tensors(state, metadata, path)

    @classmethod
    def load(cls, path: Path, encoder: EmbedTextParams) -> TextModel:
        """The model that `save` wrote, on the encoder of an entry of embed_text."""
        state, metadata = read_tensors(path)
        mean, scale = (state.pop(name).numpy() for name in ("mean", "scale"))
        numeric = NumericFeatures(tuple(metadata["numeric"]), mean, scale)
        model = cls(encoder, metadata["unfreeze_layers"], numeric, Trend.from_json(metadata["trend"]))
        model.load_state_dict(state, strict=False)
        return model


class _Inputs:
    """Tokens and numeric features of posts, and the outputs of the frozen layers if `states` has all of them."""

    def __init__(self, model: TextModel, features: pl.DataFrame, states: FrozenStates | None) -> None:
        self.texts, self.fixed_length = model.tokenizer(sentences(features)), model.tokenizer.fixed_length
        self.numeric = torch.from_numpy(model.numeric.apply(features))
        self.lengths = self.texts.attention_mask.sum(dim=1).numpy()
        self.order: Int64Array = np.argsort(self.lengths, kind="stable")
        self.states = states
        self.rows = None if states is None else states.rows(features["pid"].to_list())

    def batch(self, rows: Int64Array) -> tuple[TextBatch, Tensor, Tensor | None]:
        """What the model reads; padding beyond the longest text is left out where the tower does not read it."""
        width = self.texts.input_ids.shape[1] if self.fixed_length else int(self.lengths[rows].max())
        hidden = None
        if self.states is not None and self.rows is not None:
            hidden = self.states.padded(self.rows[rows], width)
        return TextBatch(*(tokens[rows, :width] for tokens in self.texts)), self.numeric[rows], hidden


@dataclass(frozen=True)
class Labels:
    """Labels of n posts and what their trend is fitted on.

    Args:
        label: (n,).
        posted_at: (n,) microseconds.
        collected_at: days since 1970 on which the counts were read.
    """

    label: Float64Array
    posted_at: Int64Array
    collected_at: float

    @classmethod
    def of(cls, fold: Fold) -> Labels:
        """Those of the train rows."""
        return cls(fold.label, fold.posted_at, fold.collected_at)

    def take(self, rows: Int64Array) -> Labels:
        """Those of some rows."""
        return Labels(self.label[rows], self.posted_at[rows], self.collected_at)


def fit(
    features: pl.DataFrame,
    labels: Labels,
    encoder: EmbedTextParams,
    params: TextModelParams,
    device: torch.device = CPU,
    states: FrozenStates | None = None,
) -> TextModel:
    """The text model fitted on n posts.

    Args:
        features: (pid, features).
        labels: of the same posts.
        encoder: an entry of embed_text.
        params: section text_model.
        device: on which it is fitted, and stays.
        states: stored outputs of the frozen layers, which are used if they have all of the posts.

    Raises:
        DataError: the loss is not finite.
    """
    latest = latest_rows(labels.posted_at, params)
    features, labels = features[latest], labels.take(latest)
    axis = along(params.detrend, features["pid"], labels.posted_at)
    trend = Trend.fit(axis, labels.label, params.detrend, labels.collected_at)
    detrended = trend.detrend(labels.label, axis)
    model = TextModel(encoder, params.unfreeze_layers, NumericFeatures.fit(features), trend)
    model.get_buffer("centre").fill_(float(np.median(detrended)))
    model.get_buffer("spread").fill_(float(detrended.std()) or 1.0)
    model.to(device)
    inputs = _Inputs(model, features, states)
    target = torch.from_numpy(detrended).to(model.head.weight) - model.get_buffer("centre")
    target = target / model.get_buffer("spread")
    start_head(model, inputs, target)
    trained = [parameter for parameter in model.tower.parameters() if parameter.requires_grad]
    learned = [*trained, *model.head.parameters()]
    start = [parameter.detach().clone() for parameter in learned]
    half = resolve_precision(encoder.precision, device) == "fp16"
    optimizer = torch.optim.AdamW(
        [{"params": trained, "lr": params.lr}, {"params": model.head.parameters(), "lr": params.lr_head}],
        weight_decay=params.weight_decay,
        fused=device.type == "cpu" and not half,  # which skips no step that overflows in fp16
    )
    steps = params.epochs * -(-len(detrended) // params.batch_size)
    schedule = transformers.get_scheduler(
        "linear", optimizer, num_warmup_steps=round(params.warmup_fraction * steps), num_training_steps=steps
    )
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    for rows in batches(inputs.lengths, params):
        loss = functional.smooth_l1_loss(model(*inputs.batch(rows)), target[rows], beta=SMOOTH_L1_BETA)
        if not bool(torch.isfinite(loss)):
            raise DataError("the loss of the text model is not finite", fix="lower text_model.lr in params.yaml")
        optimizer.zero_grad()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(learned, MAX_GRADIENT_NORM)
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() >= scale:  # a step whose gradients overflow in fp16 is skipped, and moves no schedule
            schedule.step()
    with torch.no_grad():
        for parameter, before in zip(learned, start, strict=True):
            parameter.lerp_(before, params.start_weight)
    return model


@torch.no_grad()
def start_head(model: TextModel, inputs: _Inputs, target: Tensor) -> None:
    """Sets the head to the ridge of the target on what it reads of the untouched encoder.

    A head that starts at random first bends the layers to itself, and with the few steps of a small data set it ends
    far behind the ridge.

    Args:
        model: not trained yet.
        inputs: of the train rows.
        target: (n,) standardised detrended labels.
    """
    model.eval()
    chosen = inputs.order[:: -(-len(target) // MAX_HEAD_POSTS)]
    parts = [chosen[start : start + PREDICT_BATCH_SIZE] for start in range(0, len(chosen), PREDICT_BATCH_SIZE)]
    joined = np.concatenate([model.joined(*inputs.batch(rows)).double().cpu().numpy() for rows in parts])
    ridge = RidgeCV(RIDGE_ALPHAS).fit(joined, target.cpu().numpy()[chosen])
    model.head.weight.copy_(torch.from_numpy(ridge.coef_)[None])
    model.head.bias.fill_(float(ridge.intercept_))
    model.train()


def latest_rows(posted_at: Int64Array, params: TextModelParams) -> Int64Array:
    """The train rows that a fold is fitted on, in order: the latest `max_train_posts`; all of them where it is 0.

    Args:
        posted_at: (n,) microseconds.
        params: section text_model.
    """
    latest: Int64Array = np.sort(np.argsort(posted_at, kind="stable")[-params.max_train_posts :])
    return latest


def batches(lengths: Int64Array, params: TextModelParams) -> Iterator[Int64Array]:
    """The rows of every step: in each epoch all rows in a random order, sorted by length inside POOL_BATCHES batches.

    Args:
        lengths: (n,) tokens.
        params: section text_model.
    """
    rng = np.random.default_rng(params.seed)
    for _ in range(params.epochs):
        order = rng.permutation(len(lengths))
        for start in range(0, len(order), params.batch_size * POOL_BATCHES):
            pool = order[start : start + params.batch_size * POOL_BATCHES]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            for index in rng.permutation(-(-len(pool) // params.batch_size)):
                yield pool[index * params.batch_size : (index + 1) * params.batch_size]
