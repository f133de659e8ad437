"""Split, featurize and stack on random posts: in process, on one thread, in a second or two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from popularity.core.contracts import (
    CLASS_LOSSES,
    MAIN_MODEL,
    POST_CLASSES,
    PROTOTYPE_SCALARS,
    FoldKey,
    check_table,
    write_table,
)
from popularity.core.vectors import Block, check_block, write_block
from popularity.features import FeaturizeParams, featurize
from popularity.stack import (
    Blocks,
    CatBoostParams,
    LightGBMParams,
    LinearParams,
    RowSelectionParams,
    StackData,
    StackModel,
    StackParams,
    fit_schemes,
)
from popularity.stack.effort import Effort
from popularity.stack.feature_blocks import PROTOTYPE_VECTORS, MaskedBlocks
from popularity.stack.fit import encode_fold, fit_fold
from popularity.stack.lightgbm_dask import ClusterParams
from popularity.stack.matrix import ColumnParams
from popularity.validation import SplitParams, make_splits
from popularity.validation.folds import Fold
from popularity.validation.inner_cv import InnerCvParams
from tests.random_posts import random_images, random_posts

SPLIT = SplitParams(
    seed=0,
    span="fractions",
    holdout_fraction=0.15,
    forward_fraction=0.15,
    n_origins=2,
    n_folds=3,
    unseen_user_fraction=0.64,
    tolerance=0.02,
    match_collection_order=False,
)
FEATURIZE = FeaturizeParams(
    seed=0, n_text_components=3, target_statistics=("uid", "subcategory"), target_statistics_prior=3.0
)
_TREES = LightGBMParams(
    objective="regression_l1",
    learning_rate=0.2,
    num_leaves=6,
    min_data_in_leaf=10,
    feature_fraction=0.5,
    feature_fraction_bynode=1.0,
    extra_trees=False,
    bagging_fraction=0.8,
    lambda_l2=1.0,
    cat_smooth=5.0,
    cat_l2=5.0,
    min_data_per_group=10,
    max_bin=63,
)
STACK = StackParams(
    seed=5,
    n_seeds=1,
    target_transform="none",
    detrend="none",
    columns=ColumnParams(
        feature_blocks=("metadata", "image", "text", "prototype"),
        prototype_parts=(*PROTOTYPE_VECTORS, "losses", "distance", "unseen"),
        text_vectors="title_and_tags",
        feature_groups=(),
        n_components=3,
        oof_ridge=("image", "text", "characters", "prototype"),
        oof_ridge_folds=3,
        oof_ridge_alphas=(10.0, 100.0),
        oof_ridge_character_alphas=(1.0, 10.0),
        uid_category=False,
        category_min_posts=3,
    ),
    row_selection=RowSelectionParams(fraction=1.0, order="low_loss"),
    history_dropout=0.0,
    sample_weight_half_life_days=200.0,
    num_boost_round=12,
    early_stopping_rounds=4,
    inner_cv=InnerCvParams(2, 0.15),
    schemes=("holdout", "forward", "group"),
    num_threads=1,
    parallel_folds=1,
    cluster=ClusterParams(workers=0, scheduler="local"),
    learners=("lightgbm",),
    lightgbm=_TREES,
    extra_trees=replace(
        _TREES, objective="regression", feature_fraction=1.0, feature_fraction_bynode=0.5, extra_trees=True
    ),
    catboost=CatBoostParams(
        loss_function="MAE",
        learning_rate=0.2,
        depth=3,
        l2_leaf_reg=3.0,
        rsm=0.5,
        subsample=0.8,
        border_count=32,
    ),
    linear=LinearParams(alphas=(30.0, 300.0)),
)


WITH_SECOND = replace(STACK, target_transform="rank_gauss", num_boost_round=40, learners=("lightgbm", "catboost"))
ALL_PARTS = replace(STACK, detrend="linear", num_boost_round=40, learners=("lightgbm", "linear"))
needs_catboost = pytest.mark.skipif(find_spec("catboost") is None, reason="the optional extra catboost is missing")
EITHER = [
    pytest.param(STACK, id="one learner"),
    pytest.param(WITH_SECOND, id="two learners", marks=needs_catboost),
    pytest.param(ALL_PARTS, id="level and linear"),
    pytest.param(replace(ALL_PARTS, learners=("lightgbm", "extra_trees", "linear")), id="extra trees"),
]


def random_block(pids: Sequence[str], width: int, seed: int, missing: float = 0.05) -> Block:
    """Vectors without meaning; some posts have none."""
    rng = np.random.default_rng(seed)
    kept = sorted(pid for pid in pids if rng.random() >= missing)
    about = {
        "encoder": "random",
        "weights": "none",
        "preprocessing": "none",
        "pooling": "none",
        "columns": [f"v{index}" for index in range(width)],
    }
    block = Block(rng.normal(size=(len(kept), width)).astype(np.float16), kept, about)
    check_block(block)
    return block


SCALARS = (
    "losses.global", "losses.local", "losses.attention", "logits.own_global", "distance.visual", "class_unseen",
)  # fmt: skip


def random_scalars(pids: Sequence[str], seed: int, missing: float = 0.05) -> pl.DataFrame:
    """Numbers without meaning; some are null and some posts are not in it. class_unseen is 0."""
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame({"pid": sorted(pids)}, schema={"pid": pl.String}).with_columns(
        pl.Series(column, rng.exponential(size=len(pids)), pl.Float32).set(
            pl.Series(rng.random(len(pids)) < missing), None
        )
        for column in SCALARS[:-1]
    )
    frame = frame.with_columns(class_unseen=pl.lit(0.0, pl.Float32))
    frame = frame.filter(pl.Series(rng.random(len(pids)) >= missing))
    check_table(frame, PROTOTYPE_SCALARS)
    return frame


def random_blocks(posts: pl.DataFrame, seed: int = 0) -> Blocks:
    pids = posts["pid"].to_list()
    widths = {"image": 8, "title": 5, "tags": 5} | {part: 6 if part == "logits" else 4 for part in PROTOTYPE_VECTORS}
    widths["post"] = 5
    vectors = {name: random_block(pids, width, seed + index) for index, (name, width) in enumerate(widths.items())}
    scalars = random_scalars(pids, seed)
    return Blocks(vectors, scalars, losses_of(scalars), masked_of(vectors, scalars, posts, seed))


def losses_of(scalars: pl.DataFrame) -> pl.DataFrame:
    """The losses (contract CLASS_LOSSES) among the scalars."""
    losses = scalars.select("pid", **{name: pl.col(f"losses.{name}") for name in list(CLASS_LOSSES.columns)[1:]})
    check_table(losses, CLASS_LOSSES)
    return losses


def masked_of(vectors: Mapping[str, Block], scalars: pl.DataFrame, posts: pl.DataFrame, seed: int) -> MaskedBlocks:
    """Other vectors of the same posts, scalars without a value of the own class, and the classes of `posts`."""
    rng = np.random.default_rng(seed + 50)
    masked: dict[str, Block] = {
        name: replace(vectors[name], values=rng.normal(size=vectors[name].values.shape).astype(np.float16))
        for name in PROTOTYPE_VECTORS
        if name != "attended_image"
    }
    nothing = [pl.lit(None, pl.Float32).alias(name) for name in SCALARS if name.startswith("losses.")]
    scalars = scalars.with_columns(*nothing, class_unseen=pl.lit(1.0, pl.Float32))
    return MaskedBlocks(masked, scalars, post_classes(posts))


def post_classes(posts: pl.DataFrame) -> pl.DataFrame:
    """The class of each post (contract POST_CLASSES): the names of one level are unique."""
    return posts.select("pid", pl.col("subcategory").alias("class")).sort("pid")


def with_vectors(blocks: Blocks, change: Callable[[str, Block], Block]) -> Blocks:
    """The blocks with every stored block replaced by `change(name, block)`."""
    return replace(blocks, vectors={name: change(name, block) for name, block in blocks.vectors.items()})


def posts_with_signal(seed: int, train: int = 400, test: int = 100, users: int = 140) -> tuple[pl.DataFrame, Blocks]:
    """Posts whose labels follow class, user, pro status and image vector; and their blocks."""
    posts = random_posts(seed, train=train, test=test, users=users)
    blocks = random_blocks(posts, seed)
    rng = np.random.default_rng(seed + 100)
    renown = {uid: rng.normal(0, 0.8) for uid in sorted(posts["uid"].unique())}
    image = np.zeros(posts.height)
    rows = blocks.vectors["image"].rows(posts["pid"].to_list())
    image[rows >= 0] = blocks.vectors["image"].values[rows[rows >= 0], :3].sum(axis=1)
    level = (
        6.0
        + 1.5 * (posts["category"] == "C1").to_numpy()
        + 1.0 * posts["is_pro"].fill_null(value=False).to_numpy()
        + np.array([renown[uid] for uid in posts["uid"]])
        + 0.7 * image
        + rng.normal(0, 0.7, posts.height)
    )
    label = pl.when(pl.col("split") == "train").then(pl.Series(level.round(2)))
    return posts.with_columns(label=label), blocks


@dataclass(frozen=True)
class Run:
    """What split, featurize and stack left in `folder`: features/, state/, models/."""

    posts: pl.DataFrame
    blocks: Blocks
    splits: pl.DataFrame
    folder: Path
    predictions: pl.DataFrame
    importance: pl.DataFrame

    @property
    def features(self) -> Path:
        return self.folder / "features"

    @property
    def models(self) -> Path:
        return self.folder / "models"

    def table(self, name: str, *schemes: str) -> pl.DataFrame:
        """`context` or `label` features of `schemes`, with the columns scheme and fold (null: every fold's)."""
        folds = self.splits.select("scheme", "fold").unique().filter(pl.col("scheme").is_in(schemes))
        every = folds.with_columns(fold=pl.lit(None, pl.Int32)).unique()
        parts = []
        for scheme, fold in pl.concat([folds, every]).sort(pl.all()).rows():
            path = self.features / name / (f"{scheme}.parquet" if fold is None else FoldKey(scheme, fold).file_name)
            if path.exists():
                keys = {"scheme": pl.lit(scheme), "fold": pl.lit(fold, pl.Int32)}
                parts.append(pl.read_parquet(path).with_columns(**keys))
        return pl.concat(parts)

    def label_free(self) -> dict[str, bytes]:
        """The files of row and context features."""
        return {name: content for name, content in tree_bytes(self.features).items() if not name.startswith("label/")}

    def finished(self, *schemes: str) -> dict[str, bytes]:
        """Predictions of every finished fold of `schemes`, as the bytes of its file."""
        files = sorted((self.folder / "state").glob("*.parquet"))
        return {file.name: file.read_bytes() for file in files if file.name.split("-")[0] in schemes}


@dataclass(frozen=True)
class Tables:
    """Tables that `run_all` makes from the posts, unless they are given."""

    splits: pl.DataFrame | None = None
    images: pl.DataFrame | None = None


def run_all(
    posts: pl.DataFrame,
    blocks: Blocks,
    folder: Path,
    *,
    given: Tables = Tables(),
    params: StackParams = STACK,
    fitted: tuple[str, ...] = ("holdout", "forward", "group"),
) -> Run:
    """Every step in process; `fitted` names the schemes that are fitted in addition to `refit`."""
    images = random_images(posts.sort("pid"), seed=0) if given.images is None else given.images
    splits = make_splits(posts, SPLIT)[0] if given.splits is None else given.splits
    featurize(posts, images, splits, FEATURIZE, folder / "features")
    (folder / "state").mkdir(exist_ok=True)
    fits = fit_schemes(
        StackData(posts, splits, folder / "features", blocks),
        {MAIN_MODEL: replace(params, schemes=fitted)},  # type: ignore[arg-type]
        state=folder / "state",
        model_folder=folder / "models",
    )
    return Run(posts, blocks, splits, folder, fits.predictions, fits.importance)


def fit_stack(fold: Fold, blocks: Blocks, params: StackParams) -> StackModel:
    """The model `stack` of a fold, as the stage fits it."""
    return fit_fold(encode_fold(fold, blocks, params), params, Effort.full(params))


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """Content of every file below `folder`, by its relative path."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def write_tables(blocks: Blocks, prototype: Path) -> None:
    """The tables of the block `prototype`, and its vectors of posts whose class is masked."""
    assert blocks.masked is not None
    for name, block in blocks.masked.vectors.items():
        write_block(block, prototype, f"masked_{name}")
    write_table(blocks.scalars, prototype / "scalars.parquet", PROTOTYPE_SCALARS)
    write_table(blocks.masked.scalars, prototype / "masked_scalars.parquet", PROTOTYPE_SCALARS)
    write_table(blocks.masked.classes, prototype / "classes.parquet", POST_CLASSES)
    write_table(blocks.losses, prototype / "losses.parquet", CLASS_LOSSES)


def write_blocks(blocks: Blocks, folder: Path) -> tuple[Path, Path, Path]:
    """The folders of the three embed stages, in `folder`."""
    write_block(blocks.vectors["image"], folder / "image", "pooled")
    for name in ("title", "tags", "post"):
        write_block(blocks.vectors[name], folder / "text", name)
    for name in PROTOTYPE_VECTORS:
        write_block(blocks.vectors[name], folder / "prototype", name)
    write_tables(blocks, folder / "prototype")
    return folder / "image", folder / "text", folder / "prototype"
