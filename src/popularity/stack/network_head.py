"""A popularity head on the network, trained per fold beside the network's own losses; out of fold on the fit rows.

Multi-task training minimises L_g + L_o + L_c + the head's loss. With frozen towers the prompts, which alone L_g and L_o
train, share no parameter with the attention, which L_c trains (tests/training/test_loop.py): whoever trains the
attention and the head on L_c + the head's loss trains all of it. That needs cached vectors only. The prototypes do not
look at the posts here (`SharedAttention`); with the whole Eq 6 a step would cost a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from popularity.config import Section
from popularity.errors import ConfigError
from popularity.network.losses import class_loss
from popularity.network.shared import ATTENTION_FILE, SharedAttention, read_tensors, write_tensors
from popularity.stack.blocks import Blocks, dense_rows, part_rows
from popularity.stack.heads import Array, FloatArray, user_folds
from popularity.stack.parallel import torch_threads

NAME = "network_head"  # of the column
ASKED = 512  # posts of a forward pass
Rate = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class NetworkHeadParams(Section):
    """How the head is trained; the attention starts from the trained network.

    Args:
        steps: of AdamW, at rates that fall from the first step on as half a cosine.
        batch_size: posts of a step.
        hidden: width of the head's one hidden layer.
        dropout: share, before both of its layers.
        lr: of the head.
        lr_attention: of projections and attention; 0 leaves the network as it was.
        weight_decay: of the head's matrices.
        class_weight: of L_c beside the head's loss; 0 = off.
    """

    steps: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    hidden: Annotated[int, Field(ge=1)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    lr: Rate
    lr_attention: Rate
    weight_decay: Rate
    class_weight: Rate


@dataclass(frozen=True)
class Posts:
    """What the head reads of n posts.

    Args:
        image: (n, d_I), L2-normalised; zeros without a picture, as in the network.
        text: (n, d) vectors of title and tags side by side; NaN without one.
    """

    image: FloatArray
    text: FloatArray

    @classmethod
    def read(cls, blocks: Blocks, pids: Sequence[str]) -> Posts:
        """Of `pids`."""
        image = np.nan_to_num(dense_rows(blocks, "image", pids))
        length = np.linalg.norm(image, axis=1, keepdims=True)
        return cls(image / np.maximum(length, np.finfo(np.float32).tiny), part_rows(blocks, "text", pids))

    def of(self, rows: npt.NDArray[np.int64]) -> Posts:
        """Some of them."""
        return Posts(self.image[rows], self.text[rows])


class NetworkHead(nn.Module):
    """From a post's picture and text to its label: a layer over x~ of its own attention and the vectors of the text.

    Args:
        attention: trained here.
        text_width: d of title and tags side by side.
        hidden: width of the layer.
        dropout: share, before it and after it.
    """

    def __init__(self, attention: SharedAttention, text_width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.readout = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(attention.params.dim + text_width, hidden), nn.GELU(),
            nn.Dropout(dropout), nn.Linear(hidden, 1),
        )  # fmt: skip
        for name, shape in {"mean": (text_width,), "scale": (text_width,), "label_mean": (), "label_scale": ()}.items():
            self.register_buffer(name, torch.ones(shape))

    def standardise(self, text: FloatArray, label: Array) -> None:
        """Takes means and scales from the text vectors (n, d) and labels (n,) that it is to be fitted on."""
        known = text[~np.isnan(text).any(axis=1)].astype(np.float64)
        for name, values in (("", known), ("label_", label)):
            if len(values):
                self.get_buffer(f"{name}mean").copy_(torch.from_numpy(np.asarray(values.mean(axis=0))))
                scale = np.maximum(values.std(axis=0), 1e-6)
                self.get_buffer(f"{name}scale").copy_(torch.from_numpy(np.asarray(scale)))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised labels (b,) and q (b, K) of posts; a missing text is the mean one."""
        attended, logits = self.attention(image)
        standard = ((text - self.get_buffer("mean")) / self.get_buffer("scale")).nan_to_num(0.0)
        standardised: Tensor = self.readout(torch.cat([attended, standard], dim=1))[:, 0]
        return standardised, logits

    @torch.inference_mode()
    def predict(self, posts: Posts) -> FloatArray:
        """(n,) labels, in evaluation mode."""
        with torch_threads(1):
            parts = [
                self(torch.tensor(posts.image[rows]), torch.tensor(posts.text[rows]))[0]  # aligned copies
                for rows in (slice(start, start + ASKED) for start in range(0, len(posts.image), ASKED))
            ]
        standardised = torch.cat([torch.empty(0), *parts])
        labels: FloatArray = (standardised * self.get_buffer("label_scale") + self.get_buffer("label_mean")).numpy()
        return labels

    def save(self, path: Path) -> None:
        """Writes one safetensors file: the same fit, the same bytes."""
        write_tensors(self.state_dict(), self.attention.about(), path)

    @classmethod
    def load(cls, path: Path) -> NetworkHead:
        """The head that `save` wrote, in evaluation mode."""
        tensors, about = read_tensors(path)
        own = {
            name.removeprefix("attention."): values for name, values in tensors.items() if name.startswith("attention.")
        }
        attention = SharedAttention.from_tensors(about, own, path)
        head = cls(attention, len(tensors["mean"]), len(tensors["readout.1.bias"]), dropout=0.0)
        head.load_state_dict(tensors)
        return head.eval()


def fit_network_head(
    blocks: Blocks,
    features: pl.DataFrame,
    label: Array,
    params: NetworkHeadParams,
    *,
    folds: int,
    seed: int,
) -> tuple[NetworkHead, FloatArray]:
    """The head fitted on all rows, and its out-of-fold predictions (n,) of those same rows.

    Args:
        blocks: with the trained attention.
        features: (pid, uid, subcategory, ...) of the fit rows.
        label: (n,).
        params: see NetworkHeadParams.
        folds: by user, as in `fit_head`; fewer when there are fewer users.
        seed: of folds, first weights, dropout and the order of rows.

    Raises:
        ConfigError: the stage embed_posts has left no attention.
    """
    if blocks.attention is None:
        raise ConfigError(
            f"stack.columns.heads: network needs data/embeddings/prototype/{ATTENTION_FILE}, which is not there; "
            "run `dvc repro embed_posts`"
        )
    posts = Posts.read(blocks, features["pid"].to_list())
    classes = features["subcategory"].replace_strict(dict(blocks.attention.classes), default=-1, return_dtype=pl.Int64)
    target = classes.fill_null(-1).to_numpy().astype(np.int64)
    out_of_fold = np.full(len(label), label.mean(), dtype=np.float32)  # of one user alone
    for rows, own in user_folds(features["uid"].to_numpy(), folds, seed):
        head = _train(blocks.attention, posts.of(rows), target[rows], label[rows], params, seed)
        out_of_fold[own] = head.predict(posts.of(own))
    return _train(blocks.attention, posts, target, label, params, seed), out_of_fold


def _train(
    attention: SharedAttention,
    posts: Posts,
    target: npt.NDArray[np.int64],
    label: Array,
    params: NetworkHeadParams,
    seed: int,
) -> NetworkHead:
    """A head trained on `posts` of the classes (n,), -1 for one that the network does not know."""
    with torch_threads(1), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = NetworkHead(deepcopy(attention), posts.text.shape[1], params.hidden, params.dropout)
        head.standardise(posts.text, label)
        rates = (params.lr, params.lr_attention)
        optimizer = torch.optim.AdamW(
            [
                {"params": list(part.parameters()), "lr": rate, "weight_decay": decay}
                for part, rate, decay in zip(
                    (head.readout, head.attention), rates, (params.weight_decay, 0.0), strict=True
                )
            ]
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, params.steps)
        standardised = (torch.tensor(label) - head.get_buffer("label_mean")) / head.get_buffer("label_scale")
        images, texts, classes = (torch.tensor(values) for values in (posts.image, posts.text, target))
        classes = torch.where(images.any(dim=1), classes, -1)  # L_c is of posts with a picture
        for rows in _batches(len(label), params.steps, params.batch_size, seed):
            predicted, logits = head(images[rows], texts[rows])
            own = classes[rows]
            loss = functional.smooth_l1_loss(predicted, standardised[rows].float())
            if params.class_weight:
                loss = loss + params.class_weight * class_loss(logits, own).sum() / (own >= 0).sum().clamp(min=1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for part in (head.readout, head.attention):
                nn.utils.clip_grad_norm_(part.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return head.eval()


def _batches(posts: int, steps: int, size: int, seed: int) -> Iterator[Tensor]:
    """The rows of each step: one order of all posts after the other."""
    draw = np.random.default_rng(seed)
    waiting = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        while len(waiting) < min(size, posts):
            waiting = np.append(waiting, draw.permutation(posts))
        rows, waiting = waiting[:size], waiting[size:]
        yield torch.from_numpy(rows)
