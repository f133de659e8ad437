"""Outputs of the encoder's frozen layers, computed once for all folds and epochs.

The embeddings and the first layers of the encoder are trained in no fold, so what they make of a text is the same in
every fold and step. It is computed once, for the labelled posts, and lies in files in the stage's state folder; the
folds run the trained layers alone. No layer has dropout, frozen or trained (`TextEncoder.train`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from popularity.core.arrays import BoolArray, Float16Array, Int64Array
from popularity.core.atomic import atomic_path
from popularity.encoders.precision import resolve_precision
from popularity.encoders.prompting import unfreeze_last
from popularity.encoders.sharding import ShardPlan, as_float16, autocast, missing_files
from popularity.encoders.sources import Precision
from popularity.encoders.text import EmbedTextParams, TextBatch, TextEncoder, load_text_encoder, load_tokenizer

logger = logging.getLogger(__name__)

BATCH_SIZE = 64
SHARD_ROWS = 2048


@contextmanager
def computing(device: torch.device, precision: Precision) -> Iterator[None]:
    """How the encoder computes in training: in `precision`, and on a CPU in bf16 with plain attention.

    Texts are short: on a CPU the fused attention is slower for them in bf16, and its gradient by far.
    """
    plain = device.type == "cpu" and resolve_precision(precision, device) == "bf16"
    with autocast(device, precision), sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
        yield


def frozen_layers(encoder: TextEncoder, unfreeze_layers: int) -> int:
    """Number of layers before the trained ones; 0 where a tower does not keep its layers in a list.

    Args:
        encoder: a text tower, whose last layers get gradients.
        unfreeze_layers: number of layers that are trained.
    """
    unfreeze_last(encoder, unfreeze_layers)
    layers = _layers(encoder)
    return 0 if layers is None else len(layers) - unfreeze_layers


def _layers(encoder: nn.Module) -> nn.ModuleList | None:
    """The layers of a tower: the outermost list of modules some of which are trained."""
    lists = (module for module in encoder.modules() if isinstance(module, nn.ModuleList))
    return next((own for own in lists if any(parameter.requires_grad for parameter in own.parameters())), None)


class LastLayers(nn.Module):
    """The trained layers of a tower and what follows them, with the tower's own parameters.

    The tower's code runs as it is, so that masks, position biases and pooling are its own, over a list of layers
    without the frozen ones. The first of those left gets the stored outputs in place of its input.

    Args:
        encoder: whose last layers are trained; its parameters are shared, and must stay on their device.
        unfreeze_layers: number of layers that are trained.
    """

    def __init__(self, encoder: TextEncoder, unfreeze_layers: int) -> None:
        super().__init__()
        shared: dict[int, Any] = {id(own): own for own in (*encoder.parameters(), *encoder.buffers())}
        self.encoder = deepcopy(encoder, shared)
        layers = _layers(self.encoder)
        assert layers is not None, "frozen_layers found them"
        del layers[: len(layers) - unfreeze_layers]
        self._hidden: Tensor | None = None
        layers[0].register_forward_pre_hook(lambda _, inputs: (self._hidden, *inputs[1:]))

    def forward(self, hidden: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """As `TextEncoder.forward`.

        Args:
            hidden: (n, l, d) outputs of the frozen layers.
            input_ids: (n, l) int64, whose embeddings are not used.
            attention_mask: (n, l), 0 on padding.
        """
        self._hidden = hidden
        try:
            outputs: tuple[Tensor, Tensor] = self.encoder(input_ids, attention_mask)
        finally:
            self._hidden = None
        return outputs


class FirstLayers:
    """The frozen layers of a tower.

    Args:
        encoder: is cut behind the first trained layer, which is needed to stop at.
        unfreeze_layers: number of layers that are trained.

    Attributes:
        width: d, of the outputs.
    """

    def __init__(self, encoder: TextEncoder, unfreeze_layers: int) -> None:
        self.encoder = encoder
        layers = _layers(encoder)
        assert layers is not None, "frozen_layers found them"
        if unfreeze_layers > 1:
            del layers[len(layers) - unfreeze_layers + 1 :]
        layers[-1].register_forward_pre_hook(self._keep)
        one = torch.ones(1, min(3, encoder.longest), dtype=torch.int64, device=next(encoder.parameters()).device)
        with torch.inference_mode():
            self.width = self(one, one).shape[2]

    def _keep(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._found: Tensor = inputs[0]

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(n, l, d) outputs of the frozen layers."""
        self.encoder(input_ids, attention_mask)
        return self._found


@dataclass(frozen=True)
class FrozenStates:
    """Outputs of the frozen layers for the tokens of n texts, without padding, in files that each process maps.

    Args:
        folder: with a file (tokens of its texts, d) float16 for every SHARD_ROWS texts.
        offsets: (n + 1,) where each text begins among all tokens, and the end.
        row_of: of each post that is kept, by pid.
    """

    folder: Path
    offsets: Int64Array
    row_of: dict[str, int]

    def rows(self, pids: Sequence[str]) -> Int64Array | None:
        """The texts of posts; None if one of them is not kept."""
        found = [self.row_of.get(pid, -1) for pid in pids]
        return None if -1 in found else np.array(found, np.int64)

    def padded(self, rows: Int64Array, width: int) -> Tensor:
        """(rows, width, d) float32, 0 on padding.

        Args:
            rows: texts.
            width: tokens of the longest, or more.
        """
        padded = np.zeros((len(rows), width, self._shards[0].shape[1]), np.float32)
        for index, row in enumerate(rows):
            shard = int(row) // SHARD_ROWS
            start, end = self.offsets[row : row + 2] - self.offsets[shard * SHARD_ROWS]
            padded[index, : end - start] = self._shards[shard][start:end]
        return torch.from_numpy(padded)

    @cached_property
    def _shards(self) -> list[Float16Array]:
        files = range(-(-(len(self.offsets) - 1) // SHARD_ROWS))
        return [np.load(self.folder / _file_name(index), mmap_mode="r", allow_pickle=False) for index in files]

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory maps, of which another process would be sent copies."""
        return {name: value for name, value in self.__dict__.items() if name != "_shards"}


@dataclass(frozen=True)
class Texts:
    """Texts of n posts.

    Args:
        pids: of the posts.
        tokens: of the texts, padded to one length.
        lengths: (n,) tokens that the tower reads.
        needed: (n,) posts that are kept if there is no room for all of them.
    """

    pids: list[str]
    tokens: TextBatch
    lengths: Int64Array
    needed: BoolArray

    @classmethod
    def of(cls, posts: Mapping[str, str], needed: Set[str], encoder: EmbedTextParams) -> Texts:
        """Tokenised texts.

        Args:
            posts: text by pid.
            needed: pids.
            encoder: an entry of embed_text.
        """
        tokenizer = load_tokenizer(encoder)
        tokens = tokenizer(list(posts.values()))
        lengths: Int64Array = tokens.attention_mask.sum(dim=1).numpy()
        if tokenizer.fixed_length:
            lengths = np.full_like(lengths, tokens.input_ids.shape[1])
        return cls(list(posts), tokens, lengths, np.array([pid in needed for pid in posts], bool))

    def kept(self, max_tokens: float) -> Int64Array:
        """Rows by length: all of them if they have no more tokens; else the needed ones; else none."""
        for chosen in (np.ones(len(self.pids), bool), self.needed):
            if self.lengths[chosen].sum() <= max_tokens:
                rows = np.flatnonzero(chosen)
                return rows[np.argsort(self.lengths[rows], kind="stable")]
        return np.zeros(0, np.int64)


def write_states(
    texts: Texts, encoder: EmbedTextParams, unfreeze_layers: int, max_bytes: float, folder: Path, state: PartialState
) -> FrozenStates | None:
    """The outputs of the frozen layers, which lie in `folder` afterwards; None: every step must compute them.

    The processes divide files of fixed batches, so that the bytes are the same with any number of processes.

    Args:
        texts: of the posts of all folds.
        encoder: an entry of embed_text.
        unfreeze_layers: number of layers that are trained.
        max_bytes: of all files together.
        folder: of finished work, on a disk that all processes share.
        state: of this process.
    """
    tower = load_text_encoder(encoder)
    if not texts.pids or not frozen_layers(tower, unfreeze_layers):
        return None
    first = FirstLayers(tower.to(state.device), unfreeze_layers)
    kept = texts.kept(max_bytes / (np.dtype(np.float16).itemsize * first.width))
    if not len(kept):
        logger.info("no room for the outputs of the frozen layers (text_model.cache_gib): every step computes them")
        return None
    folder.mkdir(exist_ok=True)
    plan = ShardPlan(len(kept), SHARD_ROWS, BATCH_SIZE)
    shards = plan.shards()
    missing = missing_files(folder, [_file_name(index) for index in range(len(shards))], state)
    mine = missing[state.process_index :: state.num_processes]
    for index in tqdm(mine, "frozen layers", unit="file", disable=not state.is_main_process):
        batches = [kept[rows.start : rows.stop] for rows in plan.batches(shards[index])]
        values = np.concatenate([_encode(first, texts, rows, encoder, state.device) for rows in batches])
        with atomic_path(folder / _file_name(index)) as partial, partial.open("wb") as stream:
            np.save(stream, values)
    state.wait_for_everyone()
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(texts.lengths[kept])])
    return FrozenStates(folder, offsets, {texts.pids[row]: index for index, row in enumerate(kept)})


def _encode(
    first: FirstLayers, texts: Texts, rows: Int64Array, encoder: EmbedTextParams, device: torch.device
) -> Float16Array:
    """(tokens of the texts `rows`, d)."""
    width = int(texts.lengths[rows].max())
    ids, mask = (tokens[rows, :width].to(device) for tokens in (texts.tokens.input_ids, texts.tokens.attention_mask))
    used = torch.arange(width) < torch.from_numpy(texts.lengths[rows])[:, None]
    with torch.inference_mode(), computing(device, encoder.precision):
        return as_float16(first(ids, mask)[used.to(device)], encoder.model)


def _file_name(index: int) -> str:
    return f"frozen-{index:06d}.npy"
