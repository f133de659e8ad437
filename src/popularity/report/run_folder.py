"""The files of a finished run; the report reads each of them once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from types import TracebackType
from typing import Annotated, Any

import polars as pl
from pydantic import Field

from popularity.core import paths
from popularity.core.atomic import read_json
from popularity.core.config import Section, load_params, read_yaml
from popularity.core.contracts import (
    CLASSES,
    CLUSTERS,
    FOLDS,
    HOLDOUT,
    IMAGES,
    MAIN_MODEL,
    POSTS,
    PREDICTIONS,
    REFIT,
    Contract,
    read_table,
)
from popularity.evaluation.promise import PROMISES
from popularity.evaluation.scores import GROUPS, SCORES, EvaluateConfig, Scored, collect
from popularity.images import IndexImagesParams
from popularity.prototypes.classes import classified
from popularity.report.thumbnails import Thumbnails


@dataclass(frozen=True)
class ReportParams(Section):
    """Section `report` of params.yaml: the amount that is shown.

    Args:
        thumbnail: pixels of an image's longer side.
        worst_posts: in each direction.
        gallery_classes: the largest ones.
        gallery_posts: nearest to each prototype of a class.
    """

    thumbnail: Annotated[int, Field(ge=32, le=512)]
    worst_posts: Annotated[int, Field(ge=0, le=50)]
    gallery_classes: Annotated[int, Field(ge=0, le=100)]
    gallery_posts: Annotated[int, Field(ge=1, le=10)]


class RunFolder:
    """The outputs of the stages in a project folder. A context manager: it closes the data set's image shards.

    Every property reads the files of its name in `popularity.core.paths`, on first use.

    Args:
        folder: the project folder, which holds params.yaml.
        dataset: folder of the data set, for images.

    Raises:
        ConfigError: params.yaml has no valid section `report` or `evaluate`.
    """

    def __init__(self, folder: Path, dataset: Path) -> None:
        self.folder, self.dataset = folder, dataset
        file = folder / paths.PARAMS
        self.params: dict[str, Any] = read_yaml(file)
        self.shown = load_params("report", ReportParams, file)
        self.evaluation = load_params("evaluate", EvaluateConfig, file)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "thumbnails" in vars(self):
            self.thumbnails.close()

    @property
    def dataset_name(self) -> str:
        """The last name of the data set's path; the report shows no path of the machine."""
        return PurePath(self.params["dataset"]["root"]).name

    @property
    def counted(self) -> str:
        """What the label is a logarithm of: views, or the column of counts of a table of one's own."""
        columns: dict[str, Any] = self.params["dataset"].get("columns", {})
        return str(columns.get("count") or "views")

    def path(self, name: str) -> Path:
        """The path of a file or folder that `popularity.core.paths` names."""
        return self.folder / paths.resolved(name, self.params)

    def has(self, *names: str) -> bool:
        """Whether all these files and folders exist."""
        return all(self.path(name).exists() for name in names)

    def json(self, name: str) -> Any:
        """The content of a JSON file.

        Raises:
            ContractError: the file holds no JSON.
        """
        return read_json(self.path(name))

    def csv(self, name: str, schema: dict[str, Any] | None = None) -> pl.DataFrame:
        """A CSV table, its types as in `schema` or inferred from all rows."""
        return pl.read_csv(self.path(name), schema_overrides=schema, infer_schema_length=None)

    def table(self, name: str, contract: Contract) -> pl.DataFrame:
        """A Parquet table.

        Raises:
            ContractError: it does not keep `contract`.
        """
        return read_table(self.path(name), contract)

    @cached_property
    def posts(self) -> pl.DataFrame:
        """Contract POSTS."""
        return self.table(paths.POSTS, POSTS)

    @cached_property
    def classified_posts(self) -> pl.DataFrame:
        """Contract POSTS, with clusters where posts have no classes of their own."""
        return classified(self.posts, self.table(paths.PROTOTYPE_CLUSTERS, CLUSTERS))

    @cached_property
    def splits(self) -> pl.DataFrame:
        """Contract FOLDS."""
        return self.table(paths.SPLITS, FOLDS)

    @cached_property
    def predictions(self) -> pl.DataFrame:
        """Contract PREDICTIONS, of the stack and its baselines."""
        return self.table(paths.ENSEMBLE_PREDICTIONS, PREDICTIONS)

    @cached_property
    def scored(self) -> Scored | None:
        """The validation posts of scheme HOLDOUT with their predictions; None if nothing was predicted there."""
        own = self.predictions.filter(scheme=HOLDOUT)
        return None if own.is_empty() else collect(self.posts, self.splits.filter(scheme=HOLDOUT), own)[0]

    @cached_property
    def test_predictions(self) -> pl.DataFrame:
        """pid, prediction: the stack's mean over seeds for each post of the test part."""
        own = self.predictions.filter(scheme=REFIT, model=MAIN_MODEL)
        return own.group_by("pid").agg(pl.mean("prediction")).sort("pid")

    @cached_property
    def classes(self) -> pl.DataFrame:
        """Contract CLASSES, those of the second taxonomy level, the largest first."""
        classes = self.table(paths.PROTOTYPE_CLASSES, CLASSES).filter(level="subcategory")
        return classes.sort(["posts", "index"], descending=[True, False])

    @cached_property
    def scores(self) -> pl.DataFrame:
        """All rows of the score table, columns SCORES of the evaluation."""
        return self.csv(paths.SCORES, SCORES)

    @cached_property
    def promise(self) -> pl.DataFrame:
        """What the splits in time promise, columns PROMISES of the evaluation."""
        return self.csv(paths.PROMISE, PROMISES)

    @cached_property
    def group_scores(self) -> pl.DataFrame:
        """The score table by group of posts, without differences between models, columns GROUPS."""
        return self.csv(paths.SCORES_BY_GROUP, GROUPS).filter(pl.col("minus").is_null())

    @cached_property
    def thumbnails(self) -> Thumbnails:
        """The posts' images."""
        max_pixels = load_params("index_images", IndexImagesParams, self.folder / paths.PARAMS).max_pixels
        return Thumbnails(self.dataset, self.table(paths.IMAGES, IMAGES), self.shown.thumbnail, max_pixels)
