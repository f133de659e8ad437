"""The folder in which `dvc repro` finished: what a prediction needs of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popularity.config import PARAMS_FILE, load_params, read_yaml
from popularity.errors import ConfigError, DataError
from popularity.features import FeaturizeParams
from popularity.images import IndexImagesParams
from popularity.post_features.embed import EmbedPostsParams
from popularity.schema import TEXT_FILE
from popularity.training.assembly import EncoderPair

# What a prediction takes from params.yaml. All else is stored with the models.
SECTIONS = ("index_images", "featurize", "embed_image", "embed_text", "embed_posts")


@dataclass(frozen=True)
class Project:
    """Paths below the root, as dvc.yaml has them."""

    root: Path

    @property
    def params(self) -> Path:
        return self.root / PARAMS_FILE

    @property
    def posts(self) -> Path:
        return self.root / "data/interim/posts.parquet"

    @property
    def splits(self) -> Path:
        return self.root / "data/interim/splits.parquet"

    @property
    def features(self) -> Path:
        return self.root / "data/features"

    @property
    def image(self) -> Path:
        return self.root / "data/embeddings/image"

    @property
    def text(self) -> Path:
        return self.root / "data/embeddings/text"

    @property
    def prototypes(self) -> Path:
        return self.root / "models/prototypes"

    @property
    def network(self) -> Path:
        return self.root / "models/network"

    @property
    def stack(self) -> Path:
        return self.root / "models/stack/stack"

    @property
    def merging(self) -> Path:
        return self.root / "models/stack" / TEXT_FILE

    @property
    def text_model(self) -> Path:
        return self.root / "models/text_model/model.safetensors"

    @property
    def calibration(self) -> Path:
        return self.root / "reports/calibration.json"

    def settings(self) -> Settings:
        """The sections of params.yaml that a prediction needs.

        Raises:
            DataError: an output of the graph is missing.
            ConfigError: a section is not what it was when the graph ran.
        """
        needed = [
            *(self.posts, self.splits, self.features / "text_components.parquet", self.calibration),
            *(self.image / "pooled.npy", self.text / "post.npy", self.text / "tokens.npy"),
            *(self.prototypes / "prototypes.safetensors", self.network / "network.json", self.stack / "model.json"),
            self.merging,
        ]
        if self.merging.is_file() and json.loads(self.merging.read_text(encoding="utf-8"))["share"]:
            needed.append(self.text_model)
        missing = [str(path.relative_to(self.root)) for path in needed if not path.is_file()]
        if missing:
            raise DataError(
                f"{self.root.absolute()} lacks {', '.join(missing)}",
                expected="a project folder in which the graph has run",
                fix="dvc repro (or dvc pull, where its outputs were pushed)",
            )
        self._refuse_changed_sections()
        return Settings(
            index=load_params("index_images", IndexImagesParams, self.params),
            featurize=load_params("featurize", FeaturizeParams, self.params),
            towers=EncoderPair.load(self.params),
            embed_posts=load_params("embed_posts", EmbedPostsParams, self.params),
        )

    def _refuse_changed_sections(self) -> None:
        """By what dvc.lock says the stages ran with; a graph that ran without DVC has none."""
        lock = self.root / "dvc.lock"
        if not lock.is_file():
            return
        ran: dict[str, Any] = {}
        for name, stage in read_yaml(lock)["stages"].items():
            if name != "report":  # it shows all of params.yaml, and may have run long before or after the others
                ran |= stage.get("params", {}).get(str(PARAMS_FILE), {})
        now = read_yaml(self.params)
        changed = [name for name in SECTIONS if name in ran and ran[name] != now.get(name)]
        if changed:
            raise ConfigError(
                f"{self.params}: {', '.join(changed)} changed since the graph ran; "
                "run `dvc repro`, or take the change back: the models know no other values"
            )


@dataclass(frozen=True)
class Settings:
    """Sections of params.yaml."""

    index: IndexImagesParams
    featurize: FeaturizeParams
    towers: EncoderPair
    embed_posts: EmbedPostsParams
