"""Runs every post through the trained network, shard by shard, and writes blocks and tables (Eq 11)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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

from popularity.core.arrays import Float32Array, Int64Array
from popularity.core.atomic import atomic_directory, read_json
from popularity.core.config import Section
from popularity.core.contracts import (
    ATTENTION,
    ATTENTION_MASS,
    CLASS_LOSSES,
    CLASSES,
    MODALITIES,
    NEAREST,
    POST_CLASSES,
    PROTOTYPE_SCALARS,
    Contract,
    read_table,
    write_table,
)
from popularity.core.vectors import ADAPTED_FROM, Block, write_block
from popularity.encoders.prompting import is_aligned
from popularity.encoders.sharding import (
    Arrays,
    ShardPlan,
    as_float16,
    encode_shards,
    gather,
    read_shards,
    start_copy,
    start_processes,
)
from popularity.encoders.sources import weights_identity
from popularity.inference.outputs import (
    HEADS,
    MASKED,
    MASSES,
    NEAREST_HEADS,
    SCALARS,
    class_probabilities,
    describe_posts,
)
from popularity.network.build import load_network, trained_params
from popularity.network.dataset import Batch, PostVectors, to_device
from popularity.network.inputs import EncoderOutputs, EncoderPair, NetworkData, post_reader, read_network_data
from popularity.network.model import COMPUTING_TYPES, PrototypeNetwork
from popularity.network.params import CLASS_LEVEL, TrainParams
from popularity.prototypes.classes import level_keys, with_clusters

OF_CLASS = {
    "global_prompt": "G_y",
    "local_prompt": "L_y",
    "attended_visual": "V~_y",
    "attended_text": "T~_y",
    "logits": "p, p', q",
}
VECTORS = {
    **OF_CLASS,
    "attended_image": "x~",
    "adapted_image": "f_I(x)",  # where the image encoder trained
    "adapted_text": "f_T(t)",  # where the text encoder trained or instance prompts precede the text
    **{f"{MASKED}{name}": f"{symbol}, the class masked" for name, symbol in OF_CLASS.items()},
}


@dataclass(frozen=True)
class EmbedPostsParams(Section):
    """Section embed_posts.

    Args:
        batch_size: posts per forward pass.
        shard_rows: posts per resumable shard.
        nearest: number of classes in a post's explanation.
    """

    batch_size: Annotated[int, Field(ge=1)]
    shard_rows: Annotated[int, Field(ge=1)]
    nearest: Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Folders:
    """Folders of the network's inputs.

    Args:
        root: of the data set; unfrozen encoders read its images.
        image: of the network's image encoder in data/embeddings/image.
        text: of its text encoder in data/embeddings/text.
        prototypes: models/prototypes.
        network: models/network.
    """

    root: Path
    image: Path
    text: Path
    prototypes: Path
    network: Path


@dataclass(frozen=True)
class NetworkInputs:
    """Posts, and the inputs of the trained network for them.

    Args:
        posts: contract POSTS.
        images: contract IMAGES.
        folders: of the earlier stages.
        encoders: behind the cached vectors.
        params: section embed_posts.
        accelerator: of this process, with the precision of the training.
        network: where it is loaded already; only for posts that represent no class.
    """

    posts: pl.DataFrame
    images: pl.DataFrame
    folders: Folders
    encoders: EncoderPair
    params: EmbedPostsParams
    accelerator: Accelerator
    network: LoadedNetwork | None = None


def embed_posts(inputs: NetworkInputs, *, state: Path, out: Path, explain: Path) -> None:
    """Writes the block `prototype` into `out` and its explanation into `explain`; reads no popularity label.

    Source: Eq 11.

    Args:
        inputs: posts of both splits, and the network.
        state: folder of finished shards, shared by all processes.
        out: replaced as a whole: the vectors of VECTORS, scalars.parquet, masked_scalars.parquet, losses.parquet and
            classes.parquet.
        explain: likewise: nearest.parquet, attention.parquet and attention_mass.parquet.

    Raises:
        ContractError: the network was trained with other classes or encoders, or gives values beyond float16.
    """
    reader, params, accelerator = _NetworkReader.load(inputs), inputs.params, inputs.accelerator

    def encode(batch: Batch) -> Callable[[], Arrays]:
        batch = to_device(batch, accelerator.device)
        found = describe_posts(reader.network, reader.prompts, batch, params.nearest, accelerator.autocast())
        return packed_arrays(found)

    plan = ShardPlan(inputs.posts.height, params.shard_rows, params.batch_size)
    processes = start_processes()
    encode_shards(state, plan, _Batches(reader.read), encode, processes, "embed_posts")
    if processes.is_main_process:
        keys = read_table(inputs.folders.prototypes / "classes.parquet", CLASSES).filter(level=CLASS_LEVEL)["key"]
        shards = _Shards(state, plan, keys)
        aligned = is_aligned(inputs.encoders.image, inputs.encoders.text)
        with atomic_directory(out) as partial:
            shards.write_vectors(reader, weights_identity(inputs.folders.network), partial)
            names = written_scalars(reader.trained, aligned=aligned)
            for array in ("scalars", f"{MASKED}scalars"):
                shards.write_scalars(array, inputs.posts["pid"], names, partial)
            shards.write_losses(inputs.posts["pid"], trained_heads(reader.trained), partial)
            write_table(_post_classes(inputs), partial / "classes.parquet", POST_CLASSES)
        with atomic_directory(explain) as partial:
            shards.write_explanation(inputs.posts["pid"], reader.network, partial)
    processes.wait_for_everyone()


def _post_classes(inputs: NetworkInputs) -> pl.DataFrame:
    """The class of each post (contract POST_CLASSES)."""
    class_name_format = read_json(inputs.folders.prototypes / "metadata.json")["class_name_format"]
    posts = with_clusters(inputs.posts, inputs.folders.prototypes)
    keys = level_keys(posts, class_name_format)[CLASS_LEVEL]
    return pl.DataFrame({"pid": inputs.posts["pid"], "class": keys})


def packed_arrays(found: Mapping[str, Tensor]) -> Callable[[], Arrays]:
    """Starts the copy of the outputs of `describe_posts` to the CPU; the result waits for it and returns them.

    The vectors are float16. There is one copy from the device for each type.
    """
    kinds: dict[torch.dtype, list[str]] = {}
    values = {name: value.to(torch.float16) if name in VECTORS else value for name, value in found.items()}
    for name, value in values.items():
        kinds.setdefault(value.dtype, []).append(name)
    copies = [start_copy(torch.cat([values[name].flatten() for name in names])) for names in kinds.values()]

    def arrays() -> Arrays:
        parts: dict[str, Tensor] = {}
        for names, copy in zip(kinds.values(), copies, strict=True):
            split = torch.split(copy(), [values[name].numel() for name in names])
            parts |= {name: part.view(values[name].shape) for name, part in zip(names, split, strict=True)}
        return {
            name: as_float16(parts[name], "prototype network") if name in VECTORS else parts[name].numpy()
            for name in found
        }

    return arrays


def probable_classes(inputs: NetworkInputs) -> Float32Array:
    """(n, K) probabilities of the classes by the mean head, for the n posts of `inputs`, which have no class.

    The posts must have no class: the prototypes of a post's own class leave the post out, which would reveal the class.

    Args:
        inputs: posts without a class, and the network.

    Raises:
        ContractError: the network was trained with other classes or encoders.
    """
    reader, accelerator, rows = _NetworkReader.load(inputs), inputs.accelerator, inputs.posts.height
    found = []
    for span in ShardPlan(rows, rows, inputs.params.batch_size).batches(range(rows)):
        batch = to_device(_Batches(reader.read)(span), accelerator.device)
        found.append(class_probabilities(reader.network, reader.prompts, batch, accelerator.autocast()).cpu().numpy())
    return np.concatenate(found)


def written_scalars(trained: TrainParams, *, aligned: bool) -> tuple[str, ...]:
    """The columns of scalars.parquet after pid.

    Losses only of terms that were trained, and only if the network was trained on the posts of both splits: otherwise
    they would separate training from test posts (method.md, "Two traps").

    Args:
        trained: section train, as the network was trained.
        aligned: image and text encoder share a space.
    """
    heads = trained_heads(trained) if trained.transductive else ()
    left_out = {f"losses.{head}" for head in HEADS if head not in heads}
    left_out |= set() if aligned else {"distance.image_text"}
    return tuple(name for name in SCALARS if name not in left_out)


def trained_heads(trained: TrainParams) -> tuple[str, ...]:
    """The heads whose term of the objective was trained.

    Args:
        trained: section train, as the network was trained.
    """
    return tuple(head for head, term in HEADS.items() if getattr(trained.network.weights, term))


@dataclass(frozen=True)
class LoadedNetwork:
    """The trained network on the accelerator.

    Args:
        network: in evaluation mode.
        trained: section train, as it was trained.
        prompts: G and L.
    """

    network: PrototypeNetwork
    trained: TrainParams
    prompts: tuple[Tensor, Tensor]

    @classmethod
    def load(cls, inputs: NetworkInputs) -> LoadedNetwork:
        """The network of models/network, for the posts of `inputs`."""
        return cls._for(inputs, _read_data(inputs)[1])

    @classmethod
    def _for(cls, inputs: NetworkInputs, data: NetworkData) -> LoadedNetwork:
        network, trained = load_network(inputs.folders.network, data, inputs.encoders)
        network.to(inputs.accelerator.device)
        network.text_tower.to(inputs.accelerator.device)
        network.hold_in(COMPUTING_TYPES.get(inputs.accelerator.mixed_precision))
        with torch.inference_mode(), inputs.accelerator.autocast():
            prompts = network.class_prompts()
        return cls(network, trained, prompts)


def _read_data(inputs: NetworkInputs) -> tuple[EncoderOutputs, NetworkData]:
    """The vectors of the posts, and posts and classes as the network reads them."""
    folders = inputs.folders
    outputs = EncoderOutputs.read(folders.image, folders.text)
    trained = trained_params(folders.network)
    return outputs, read_network_data(inputs.posts.drop("label"), outputs, folders.prototypes, trained)


@dataclass(frozen=True)
class _NetworkReader:
    """The trained network, and the reader of its posts.

    Args:
        network: in evaluation mode.
        trained: section train, as it was trained.
        vectors: of the posts.
        prompts: G and L.
        read: rows (b,) -> Batch.
        adapted_from: for adapted_image and adapted_text, the weights of the encoder before the network adapted it.
    """

    network: PrototypeNetwork
    trained: TrainParams
    vectors: PostVectors
    prompts: tuple[Tensor, Tensor]
    read: Callable[[Int64Array], Batch]
    adapted_from: Mapping[str, Mapping[str, str]]

    @classmethod
    def load(cls, inputs: NetworkInputs) -> _NetworkReader:
        outputs, data = _read_data(inputs)
        loaded = inputs.network or LoadedNetwork._for(inputs, data)
        posts, root = inputs.posts.drop("label"), inputs.folders.root
        read = post_reader(loaded.network, data, posts, inputs.images, root, inputs.encoders).read
        blocks = {"adapted_image": outputs.image, "adapted_text": outputs.text}
        adapted_from = {name: {ADAPTED_FROM: block.metadata["weights"]} for name, block in blocks.items()}
        return cls(loaded.network, loaded.trained, data.vectors, loaded.prompts, read, adapted_from)


@dataclass(frozen=True)
class _Batches:
    """Rows -> Batch, in loader processes too."""

    read: Callable[[Int64Array], Batch]

    def __call__(self, rows: range) -> Batch:
        return self.read(np.array(rows, dtype=np.int64))


@dataclass(frozen=True)
class _Shards:
    """The finished shards of all posts, from which the outputs are written.

    Args:
        state: folder of the shards.
        plan: shards of the posts.
        keys: (K,) of the classes.
    """

    state: Path
    plan: ShardPlan
    keys: pl.Series

    def write_vectors(self, reader: _NetworkReader, identity: str, out: Path) -> None:
        """The blocks of VECTORS; a post without an image is absent from those of images."""
        network, vectors = reader.network, reader.vectors
        kinds = network.params.attention.prototypes
        left_out = {f"attended_{kind}" for kind in MODALITIES if kind not in kinds}
        left_out |= {f"adapted_{name}" for name, adapted in network.adapted.items() if not adapted}
        with_image = np.flatnonzero(vectors.image_row >= 0)
        for name, symbol in VECTORS.items():
            array = name.removeprefix(MASKED)
            if array in left_out:
                continue
            dim = network.text_tower.spec.width
            if array.startswith("attended_"):
                dim = network.params.attention.dim
            elif array == "adapted_image":
                dim = vectors.image.shape[1]
            of_image = array.startswith("attended_") or array == "adapted_image"
            rows = with_image if of_image else np.arange(len(vectors.pids))
            columns = [f"{array}_{index:04d}" for index in range(dim)]
            if array == "logits":
                columns = [f"{head}.{key}" for head in ("p", "p_local", "q") for key in self.keys]
            values = gather(read_shards(self.state, self.plan, name), rows, self.state / f"{name}.npy", len(columns))
            metadata = {
                "encoder": "prototype network",
                "weights": identity,
                "preprocessing": reader.adapted_from.get(array, {}),
                "pooling": symbol,
                "columns": columns,
            }
            write_block(Block(values, [vectors.pids[row] for row in rows.tolist()], metadata), out, name)

    def write_scalars(self, array: str, pids: pl.Series, names: Sequence[str], out: Path) -> None:
        """<array>.parquet with the columns `names` of SCALARS."""
        columns = dict(zip(SCALARS, self._whole(array).T, strict=True))
        frame = pl.DataFrame({"pid": pids} | {name: columns[name].astype(np.float32) for name in names})
        frame = frame.with_columns(pl.col(pl.Float32).fill_nan(None))
        write_table(frame, out / f"{array}.parquet", PROTOTYPE_SCALARS)

    def write_losses(self, pids: pl.Series, heads: Sequence[str], out: Path) -> None:
        """losses.parquet with the losses of `heads`, whatever the network was trained on; those of others are null."""
        columns = dict(zip(SCALARS, self._whole("scalars").T, strict=True))
        nothing = np.full(len(pids), np.nan)
        values = {head: columns[f"losses.{head}"] if head in heads else nothing for head in HEADS}
        frame = pl.DataFrame({"pid": pids} | {head: found.astype(np.float32) for head, found in values.items()})
        write_table(frame.with_columns(pl.col(pl.Float32).fill_nan(None)), out / "losses.parquet", CLASS_LOSSES)

    def write_explanation(self, pids: pl.Series, network: PrototypeNetwork, out: Path) -> None:
        """nearest.parquet, attention.parquet and attention_mass.parquet: see their contracts."""
        kinds = [kind for kind in MODALITIES if kind in network.params.attention.prototypes]
        self._write_ranked(_Ranked(NEAREST, "head", NEAREST_HEADS, "nearest_class", "nearest_value"), pids, out)
        self._write_ranked(_Ranked(ATTENTION, "modality", kinds, "attention_class", "attention_weight"), pids, out)
        frame = pl.DataFrame({"pid": pids} | dict(zip(MASSES, self._whole("attention_mass").T, strict=True)))
        frame = frame.filter(pl.col("image").is_not_nan())
        write_table(frame, out / "attention_mass.parquet", ATTENTION_MASS)

    def _write_ranked(self, ranked: _Ranked, pids: pl.Series, out: Path) -> None:
        classes, values = (read_shards(self.state, self.plan, name) for name in (ranked.classes, ranked.values))
        tables = [
            ranked.table(pids[rows.start : rows.stop], self.keys, *arrays)
            for rows, *arrays in zip(self.plan.shards(), classes, values, strict=True)
        ]
        write_table(pl.concat(tables), out / f"{ranked.contract.name}.parquet", ranked.contract)

    def _whole(self, name: str) -> npt.NDArray[Any]:
        return np.concatenate(list(read_shards(self.state, self.plan, name)))


@dataclass(frozen=True)
class _Ranked:
    """A table with the first m classes of each post in several rankings.

    Args:
        contract: of the table; its last column holds the values.
        group: its column that names the ranking.
        names: of the rankings.
        classes: array (b, len(names), m) of class indices.
        values: array (b, len(names), m); rows of NaN are left out.
    """

    contract: Contract
    group: str
    names: Sequence[str]
    classes: str
    values: str

    def table(
        self, pids: pl.Series, keys: pl.Series, classes: npt.NDArray[Any], values: npt.NDArray[Any]
    ) -> pl.DataFrame:
        """One row for each post of `pids` (b,), ranking and rank."""
        rows, which, rank = (axis.ravel() for axis in np.indices(classes.shape))
        index = pl.Series(classes.ravel())
        columns = self.contract.columns
        frame = pl.DataFrame(
            {
                "pid": pids.gather(rows),
                self.group: pl.Series(self.names, dtype=pl.String).gather(which),
                "rank": rank,
                "index": index,
                "key": keys.gather(index),
                list(columns)[-1]: values.ravel(),
            }
        )
        frame = frame.filter(pl.last().is_not_nan())
        return frame.select(pl.col(name).cast(rule.dtype) for name, rule in columns.items())
