"""What the stage embed_posts computes: every post through the trained network, in parts, into blocks and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor

from popularity.arrays import normalize_rows
from popularity.config import Section
from popularity.encoders.prompting import is_aligned
from popularity.encoders.sharding import (
    Arrays,
    ShardPlan,
    as_float16,
    encode_shards,
    gather,
    read_shards,
    start_processes,
)
from popularity.encoders.sources import weights_identity
from popularity.files import atomic_directory
from popularity.network.model import CLASS_LEVEL, Batch, PrototypeNetwork
from popularity.network.shared import ATTENTION_FILE, SharedAttention
from popularity.post_features.agreement import linear_agreement
from popularity.post_features.outputs import (
    HEADS,
    MASSES,
    NEAREST_HEADS,
    SCALARS,
    class_probabilities,
    describe_posts,
)
from popularity.schema import (
    ATTENTION,
    ATTENTION_MASS,
    CLASSES,
    MODALITIES,
    NEAREST,
    PROTOTYPE_SCALARS,
    Block,
    Contract,
    read_table,
    write_block,
    write_table,
)
from popularity.training.assembly import EncoderPair, load_network, posts_for, trained_params
from popularity.training.data import PostVectors, to_device
from popularity.training.params import TrainParams
from popularity.training.reading import Inputs, TowerOutputs, read_inputs

Array = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

VECTORS = {
    "global_prompt": "G_y",
    "local_prompt": "L_y",
    "attended_image": "x~",
    "attended_visual": "V~_y",
    "attended_text": "T~_y",
    "logits": "p, p', q",
}


@dataclass(frozen=True)
class EmbedPostsParams(Section):
    """Section embed_posts.

    Args:
        batch_size: posts per forward pass.
        shard_rows: posts per resumable part.
        nearest: classes that are listed for a post's explanation.
        shrinkage: of the linear map behind agreement.linear: see `linear_agreement`.
    """

    batch_size: Annotated[int, Field(ge=1)]
    shard_rows: Annotated[int, Field(ge=1)]
    nearest: Annotated[int, Field(ge=1)]
    shrinkage: Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Folders:
    """What the stage reads beside the tables."""

    root: Path
    image: Path
    text: Path
    prototypes: Path
    network: Path


@dataclass(frozen=True)
class EmbeddedPosts:
    """Posts (contract POSTS) and the outputs of the frozen towers for them."""

    posts: pl.DataFrame
    blocks: TowerOutputs


def embed_posts(
    posts: pl.DataFrame,
    images: pl.DataFrame,
    folders: Folders,
    towers: EncoderPair,
    params: EmbedPostsParams,
    accelerator: Accelerator,
    *,
    state: Path,
    out: Path,
    explain: Path,
    known: EmbeddedPosts | None = None,
) -> None:
    """Writes the block `prototype` into `out` and what explains it into `explain`; no popularity label is read.

    Args:
        posts: contract POSTS, of both parts.
        images: contract IMAGES.
        folders: of the stages before.
        towers: encoders behind the cached vectors.
        params: section embed_posts.
        accelerator: of this process, with the precision of the training.
        state: folder of finished parts, shared by all processes.
        out: replaced as a whole: the vectors of VECTORS, scalars.parquet and the attention itself.
        explain: likewise: nearest.parquet, attention.parquet and attention_mass.parquet.
        known: posts of an earlier run that `posts` come to; agreement.linear is fitted on them too.

    Raises:
        ContractError: the network was trained with other classes or encoders, or gives values beyond float16.
    """
    posts = posts.drop("label")
    blocks = TowerOutputs.read(folders.image, folders.text)
    loaded = _Loaded.load(posts, images, blocks, folders, towers, accelerator)
    network, trained, inputs = loaded.network, loaded.trained, loaded.inputs

    def encode(batch: Batch) -> Arrays:
        batch = to_device(batch, accelerator.device)
        found = describe_posts(network, loaded.prompts, batch, params.nearest, accelerator.autocast())
        return {
            name: as_float16(values, "prototype network") if name in VECTORS else values.cpu().numpy()
            for name, values in found.items()
        }

    cut = ShardPlan(posts.height, params.shard_rows, params.batch_size)
    processes = start_processes()
    encode_shards(state, cut, _Batches(loaded.read), encode, processes, "embed_posts")
    if processes.is_main_process:
        keys = read_table(folders.prototypes / "classes.parquet", CLASSES).filter(level=CLASS_LEVEL)["key"]
        with atomic_directory(out) as partial:
            _write_vectors(state, cut, inputs.vectors, network, folders.network, keys, partial)
            embedded = [EmbeddedPosts(posts, blocks), *([] if known is None else [known])]
            agreement = _linear_agreement(embedded, trained, params.shrinkage)
            scalars = np.concatenate(list(read_shards(state, cut, "scalars")))
            table = {"agreement.linear": agreement} | dict(zip(SCALARS, scalars.T, strict=True))
            names = written_scalars(trained, aligned=is_aligned(towers.image, towers.text))
            frame = pl.DataFrame({"pid": posts["pid"]} | {name: table[name].astype(np.float32) for name in names})
            frame = frame.with_columns(pl.col(pl.Float32).fill_nan(None))
            write_table(frame, partial / "scalars.parquet", PROTOTYPE_SCALARS)
            _shared_attention(network, posts, inputs.vectors).save(partial / ATTENTION_FILE)
        with atomic_directory(explain) as partial:
            _write_explanation(state, cut, posts["pid"], network, keys, partial)
    processes.wait_for_everyone()


def probable_classes(
    posts: pl.DataFrame,
    images: pl.DataFrame,
    folders: Folders,
    towers: EncoderPair,
    params: EmbedPostsParams,
    accelerator: Accelerator,
) -> Float32Array:
    """(n, K) probabilities of the classes by the mean head, for posts without a class; arguments as in `embed_posts`.

    The prototypes of a post's own class leave it out, so a post of a known class would be told from the others by it.
    """
    posts = posts.drop("label")
    blocks = TowerOutputs.read(folders.image, folders.text)
    loaded = _Loaded.load(posts, images, blocks, folders, towers, accelerator)
    cut = ShardPlan(posts.height, posts.height, params.batch_size)
    found = []
    for rows in cut.batches(range(posts.height)):
        batch = to_device(_Batches(loaded.read)(rows), accelerator.device)
        found.append(class_probabilities(loaded.network, loaded.prompts, batch, accelerator.autocast()).cpu().numpy())
    return np.concatenate(found)


@dataclass(frozen=True)
class _Loaded:
    """The trained network, on the accelerator, and how it reads the posts."""

    network: PrototypeNetwork
    trained: TrainParams
    inputs: Inputs
    prompts: tuple[Tensor, Tensor]
    read: Callable[[Int64Array], Batch]

    @classmethod
    def load(
        cls,
        posts: pl.DataFrame,
        images: pl.DataFrame,
        blocks: TowerOutputs,
        folders: Folders,
        towers: EncoderPair,
        accelerator: Accelerator,
    ) -> _Loaded:
        inputs = read_inputs(posts, blocks, folders.prototypes, trained_params(folders.network))
        network, trained = load_network(folders.network, inputs, towers)
        read = posts_for(network, inputs, posts, images, folders.root, towers).read
        network.to(accelerator.device)
        network.text_tower.to(accelerator.device)
        with torch.inference_mode(), accelerator.autocast():
            prompts = network.class_prompts()
        return cls(network, trained, inputs, prompts, read)


@dataclass(frozen=True)
class _Batches:
    """Rows -> Batch, in loader processes too."""

    read: Callable[[Int64Array], Batch]

    def __call__(self, rows: range) -> Batch:
        return self.read(np.array(rows, dtype=np.int64))


def written_scalars(trained: TrainParams, *, aligned: bool) -> tuple[str, ...]:
    """The columns of scalars.parquet after pid.

    Losses only of terms that were trained, and only where training and test posts were both trained on: else they
    would tell the parts apart (method.md, "Two traps").
    """
    trained_heads = [head for head, term in HEADS.items() if getattr(trained.network.weights, term)]
    left_out = {f"losses.{head}" for head in HEADS if trained.rows != "all" or head not in trained_heads}
    left_out |= set() if aligned else {"agreement.aligned"}
    return tuple(name for name in ("agreement.linear", *SCALARS) if name not in left_out)


def _write_vectors(
    state: Path,
    cut: ShardPlan,
    vectors: PostVectors,
    network: PrototypeNetwork,
    folder: Path,
    keys: pl.Series,
    out: Path,
) -> None:
    """The blocks of VECTORS; a post without a picture is absent from the attended ones."""
    kinds = network.params.attention.prototypes
    pictured = np.flatnonzero(vectors.image_row >= 0)
    identity = weights_identity(folder)
    for name, symbol in VECTORS.items():
        attended = name.startswith("attended_")
        if attended and name not in ("attended_image", *(f"attended_{kind}" for kind in kinds)):
            continue
        rows = pictured if attended else np.arange(len(vectors.pids))
        if name == "logits":
            columns = [f"{head}.{key}" for head in ("p", "p_local", "q") for key in keys]
        else:
            width = network.params.attention.width if attended else network.text_tower.spec.width
            columns = [f"{name}_{number:04d}" for number in range(width)]
        values = gather(read_shards(state, cut, name), rows, state / f"{name}.npy", len(columns))
        about = {
            "encoder": "prototype network",
            "weights": identity,
            "preprocessing": {},
            "pooling": symbol,
            "columns": columns,
        }
        write_block(Block(values, [vectors.pids[row] for row in rows.tolist()], about), out, name)


def _shared_attention(network: PrototypeNetwork, posts: pl.DataFrame, vectors: PostVectors) -> SharedAttention:
    """The trained attention over the whole prototypes of the classes, for those who train it further."""
    number = network.level_names.index(CLASS_LEVEL)
    rows = dict(zip(posts[CLASS_LEVEL], vectors.target[:, number].tolist(), strict=True))
    shared = SharedAttention(
        network.params.attention,
        {kind: network.get_buffer(f"{CLASS_LEVEL}_{kind}").cpu() for kind in MODALITIES},
        {kind: float(network.temperature(kind)) for kind in MODALITIES},
        {key: row for key, row in rows.items() if row >= 0},
    )
    shared.attention.load_state_dict(network.attention.state_dict())
    return shared


def _linear_agreement(embedded: Sequence[EmbeddedPosts], trained: TrainParams, shrinkage: float) -> Float32Array:
    """agreement.linear of the first of `embedded`, (n,); NaN without picture or text.

    Its map is fitted on the posts that the network was shown, of all of `embedded`.
    """
    everyone = pl.concat(
        [
            each.posts.select("pid", "uid", "split", source=pl.lit(number), **_pair_rows(each))
            for number, each in enumerate(embedded)
        ]
    ).sort("pid")
    source, image, text = (everyone[name].to_numpy() for name in ("source", "image", "text"))
    both = (image >= 0) & (text >= 0)
    shown = both & ((everyone["split"] == "train").to_numpy() if trained.rows == "train" else True)
    fitted, others = np.flatnonzero(shown), np.flatnonzero(both & ~shown)
    users = everyone["uid"].rank("dense").to_numpy().astype(np.int64)

    def read(rows: Int64Array) -> tuple[Float32Array, Float32Array]:
        pictures, texts = ([getattr(each.blocks, name).values for each in embedded] for name in ("image", "text"))
        return _unit_rows(pictures, source[rows], image[rows]), _unit_rows(texts, source[rows], text[rows])

    rows = np.concatenate([fitted, others])
    agreement = np.full(everyone.height, np.nan, np.float32)
    agreement[rows] = linear_agreement(read, fitted, others, users[fitted], shrinkage, source[rows] == 0)
    of_first: Float32Array = agreement[source == 0]
    return of_first


def _unit_rows(values: Sequence[Array], source: Array, row: Array) -> Float32Array:
    """(b, d) row `row` (b,) of the one of `values` that `source` (b,) numbers, L2-normalised."""
    found = np.empty((len(row), values[0].shape[1]), np.float32)
    for number, each in enumerate(values):
        own = source == number
        found[own] = normalize_rows(each[row[own]], dtype=np.float32)
    return found


def _pair_rows(embedded: EmbeddedPosts) -> dict[str, pl.Series]:
    """Row of each post's vectors in the blocks `image` and `text`; -1 without a picture, or without a token."""
    pids, blocks = embedded.posts["pid"].to_list(), embedded.blocks
    empty = {pid for pid, length in zip(blocks.tokens.pids, np.diff(blocks.tokens.offsets), strict=True) if not length}
    text = [-1 if pid in empty else row for pid, row in zip(pids, blocks.text.rows(pids), strict=True)]
    return {"image": pl.Series(blocks.image.rows(pids)), "text": pl.Series(text, dtype=pl.Int64)}


def _write_explanation(
    state: Path, cut: ShardPlan, pids: pl.Series, network: PrototypeNetwork, keys: pl.Series, out: Path
) -> None:
    """nearest.parquet, attention.parquet and attention_mass.parquet: see their contracts."""
    kinds = [kind for kind in MODALITIES if kind in network.params.attention.prototypes]
    for contract, group, names, column, values in (
        (NEAREST, "head", NEAREST_HEADS, "nearest_class", "nearest_value"),
        (ATTENTION, "modality", kinds, "attention_class", "attention_weight"),
    ):
        tables = [
            _listed(pids[rows.start : rows.stop], group, names, classes, found, keys, contract)
            for rows, classes, found in zip(
                cut.shards(), read_shards(state, cut, column), read_shards(state, cut, values), strict=True
            )
        ]
        write_table(pl.concat(tables), out / f"{contract.name}.parquet", contract)
    masses = np.concatenate(list(read_shards(state, cut, "attention_mass")))
    frame = pl.DataFrame({"pid": pids} | dict(zip(MASSES, masses.T, strict=True)))
    frame = frame.filter(pl.col("image").is_not_nan())
    write_table(frame, out / "attention_mass.parquet", ATTENTION_MASS)


def _listed(
    pids: pl.Series,
    group: str,
    names: Sequence[str],
    classes: Array,
    values: Array,
    keys: pl.Series,
    contract: Contract,
) -> pl.DataFrame:
    """One row for each post, of `names` and rank, of classes and values (b, len(names), m); NaN is left out."""
    rows, which, rank = (part.ravel() for part in np.indices(classes.shape))
    index = pl.Series(classes.ravel())
    frame = pl.DataFrame(
        {
            "pid": pids.gather(rows),
            group: pl.Series(names, dtype=pl.String).gather(which),
            "rank": rank,
            "index": index,
            "key": keys.gather(index),
            list(contract.columns)[-1]: values.ravel(),
        }
    )
    frame = frame.filter(pl.last().is_not_nan())
    return frame.select(pl.col(name).cast(rule.dtype) for name, rule in contract.columns.items())
