"""Networks and what they say of the posts, for benchmarks that train several: each part is made once and cached.

bench = Bench.here()
network = bench.network(replace(bench.train, seed=1))     # folder like models/network
vectors, explain = bench.embed(network)                   # folders like data/embeddings/prototype and data/explain
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import polars as pl
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file

from popularity.config import PARAMS_FILE, load_params, read_yaml
from popularity.files import STATE_ROOT, atomic_directory, code_fingerprint, fingerprint, resume_state
from popularity.network.model import PrototypeNetwork
from popularity.post_features.embed import EmbedPostsParams, Folders, embed_posts
from popularity.prototypes.build import PrototypesParams, build_prototypes, write_prototypes
from popularity.schema import IMAGES, POSTS, read_block, read_table
from popularity.training.assembly import (
    EncoderPair,
    build_network,
    load_network,
    posts_for,
    save_network,
    trained_params,
)
from popularity.training.loop import Posts, make_accelerator, train_network
from popularity.training.params import TrainParams
from popularity.training.reading import Inputs, TowerOutputs, read_inputs, training_rows

logger = logging.getLogger(__name__)

CODE = ("encoders", "network", "post_features", "prototypes", "training")  # subpackages that make a network


@dataclass(frozen=True)
class Bench:
    """A project folder in which the graph ran up to the embed stages.

    Args:
        root: of the data set.
        data: the folder data.
        params: file of parameters.
        cache: finished parts, by what they depend on.
    """

    root: Path
    data: Path
    params: Path
    cache: Path

    @classmethod
    def here(cls, folder: Path = Path()) -> Bench:
        """The project in `folder`."""
        params = folder / PARAMS_FILE
        root = folder / read_yaml(params)["dataset"]["root"]
        return cls(root, folder / "data", params, folder / STATE_ROOT / "benchmarks")

    @cached_property
    def posts(self) -> pl.DataFrame:
        return read_table(self.data / "interim/posts.parquet", POSTS)

    @cached_property
    def images(self) -> pl.DataFrame:
        return read_table(self.data / "interim/images.parquet", IMAGES)

    @property
    def train(self) -> TrainParams:
        return load_params("train", TrainParams, self.params)

    @property
    def towers(self) -> EncoderPair:
        return EncoderPair.load(self.params)

    @property
    def blocks(self) -> TowerOutputs:
        return TowerOutputs.read(self.data / "embeddings/image", self.data / "embeddings/text")

    def prototypes(self, rows: str, without: pl.Series | None = None) -> Path:
        """A folder like models/prototypes; none of the posts `without` (pids) is a representative."""
        params = load_params("prototypes", PrototypesParams, self.params)
        left_out = [] if without is None else without.sort().to_list()

        def make(out: Path) -> None:
            image, text = (
                read_block(self.data / "embeddings/image", "pooled"),
                read_block(self.data / "embeddings/text", "post"),
            )
            kept = self.posts.filter(~pl.col("pid").is_in(left_out))
            write_prototypes(build_prototypes(kept, image, text, params, rows), out)  # type: ignore[arg-type]

        return self._once("prototypes", make, asdict(params), rows, left_out, self._inputs)

    def inputs(self, prototypes: Path, params: TrainParams) -> Inputs:
        return read_inputs(self.posts, self.blocks, prototypes, params)

    def network(self, params: TrainParams, prompts: Path | None = None, without: pl.Series | None = None) -> Path:
        """A folder like models/network, trained by `params`.

        Args:
            params: section train.
            prompts: folder of a network whose prompts are taken over; only the attention is then trained. The parts
                share no loss, so the result is that of training all.
            without: pids that are neither trained on nor representatives.
        """
        prototypes = self.prototypes(params.rows, without)
        left_out = [] if without is None else without.sort().to_list()

        def make(out: Path) -> None:
            weights = params.network.weights
            if prompts is not None:
                weights = replace(weights, global_prompt=0.0, local_prompt=0.0)
            trained = replace(params, network=replace(params.network, weights=weights))
            inputs = self.inputs(prototypes, params)
            network = build_network(trained, inputs, self.towers)
            rows, held_out = training_rows(
                self.posts, inputs.vectors, params.rows, params.validation_share, params.seed
            )
            if left_out:
                excluded = self.posts["pid"].is_in(left_out).to_numpy()
                rows, held_out = rows[~excluded[rows]], held_out[~excluded[held_out]]
            accelerator = fresh_accelerator(params.precision)
            key = fingerprint(asdict(trained), asdict(self.towers), left_out, prototypes, self._inputs)
            with resume_state("benchmark_train", key, self.cache) as state:
                reader = posts_for(network, inputs, self.posts, self.images, self.root, self.towers)
                history = train_network(network, reader, rows, held_out, trained, accelerator, state=state)
            if prompts is not None:
                take_prompts(network, prompts)
            save_network(network, params, history, out)

        return self._once("network", make, asdict(params), left_out, prototypes, prompts or "", self._inputs)

    def embed(self, network: Path, without: pl.Series | None = None) -> tuple[Path, Path]:
        """Folders like data/embeddings/prototype and data/explain."""
        params = load_params("embed_posts", EmbedPostsParams, self.params)
        prototypes = self.prototypes(trained_params(network).rows, without)
        folders = Folders(self.root, self.data / "embeddings/image", self.data / "embeddings/text", prototypes, network)

        def make(out: Path) -> None:
            accelerator = fresh_accelerator(trained_params(network).precision)
            key = fingerprint(asdict(params), network, prototypes, self._inputs)
            with resume_state("benchmark_embed", key, self.cache) as state:
                embed_posts(
                    self.posts, self.images, folders, self.towers, params, accelerator,
                    state=state, out=out / "vectors", explain=out / "explain",
                )  # fmt: skip

        folder = self._once("embed", make, asdict(params), network, prototypes, self._inputs)
        return folder / "vectors", folder / "explain"

    def load(self, network: Path, without: pl.Series | None = None) -> tuple[PrototypeNetwork, Posts, Inputs]:
        """The network in evaluation mode, and how it reads the posts."""
        params = trained_params(network)
        inputs = self.inputs(self.prototypes(params.rows, without), params)
        loaded, _ = load_network(network, inputs, self.towers)
        return loaded, posts_for(loaded, inputs, self.posts, self.images, self.root, self.towers), inputs

    @cached_property
    def _inputs(self) -> str:
        """Of everything that stands before the network."""
        tables = [self.data / "interim" / name for name in ("posts.parquet", "images.parquet")]
        embeddings = [self.data / "embeddings" / name for name in ("image", "text")]
        return fingerprint(asdict(self.towers), code_fingerprint(*CODE), *tables, *embeddings)

    def _once(self, kind: str, make: Callable[[Path], None], *key: object) -> Path:
        folder = self.cache / kind / fingerprint(*key)
        if not folder.exists():
            logger.info("%s: %s", kind, folder)
            with atomic_directory(folder) as partial:
                make(partial)
        return folder


def fresh_accelerator(precision: str) -> Accelerator:
    """Of a process that has had others, possibly of another precision."""
    AcceleratorState._reset_state()
    PartialState._reset_state()
    return make_accelerator(precision)


def take_prompts(network: PrototypeNetwork, folder: Path) -> None:
    """Puts the prompts of a trained network in the place of the network's own."""
    tensors = load_file(folder / "network.safetensors")
    own = {name: values for name, values in tensors.items() if name.split(".")[0] in ("global_prompt", "local_prompt")}
    network.load_state_dict(own, strict=False)
