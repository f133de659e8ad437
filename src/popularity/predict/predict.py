"""Predicts new posts with the graph's functions and stored models, and explains each prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

from popularity.core import paths
from popularity.core.arrays import Float64Array
from popularity.core.atomic import read_json
from popularity.core.config import PARAMS_FILE, load_params, read_yaml
from popularity.core.contracts import (
    ATTENTION,
    ATTENTION_MASS,
    FOLDS,
    IMAGE_STATISTICS,
    IMAGE_STATUS,
    IMAGES,
    LEVELS,
    NEAREST,
    POSTS,
    TEXT_MODEL,
    is_unclassified,
    read_table,
    unclassified,
    write_table,
)
from popularity.core.errors import ConfigError, ContractError, DataError
from popularity.core.run_chain import refuse_mixed_run
from popularity.core.vectors import Block, read_block, write_block
from popularity.encoders.image import EmbedImageParams, ImageEncoder, load_image_encoder
from popularity.encoders.image_blocks import embed_images
from popularity.encoders.names import StackEncoders, as_names, names_in_use
from popularity.encoders.text import (
    EmbedTextParams,
    TextEncoder,
    TextTokenizer,
    load_text_encoder,
    load_tokenizer,
)
from popularity.encoders.text_blocks import embed_texts
from popularity.evaluation.conformal import Calibration
from popularity.features import FeaturizeParams, categories_of, count_each_alone, further_features
from popularity.images import IndexImagesParams, index_files
from popularity.inference.embed import (
    EmbedPostsParams,
    Folders,
    LoadedNetwork,
    NetworkInputs,
    embed_posts,
    probable_classes,
)
from popularity.network.accelerator import make_accelerator
from popularity.network.build import trained_params
from popularity.network.inputs import EncoderPair
from popularity.network.params import CLASS_LEVEL
from popularity.predict.classes import KnownClasses
from popularity.predict.output import Interval, Prediction, views
from popularity.predict.requests import NewPosts
from popularity.stack import StackModel, read_blocks
from popularity.stack.explanation import ShapValues, weighted_mean
from popularity.stack.feature_blocks import Blocks
from popularity.stack.model import Predicted
from popularity.target.trend import Trend
from popularity.text_model import TextModel
from popularity.validation.inner_cv import MICROSECONDS_A_DAY

Notes = Mapping[str, list[str]]  # by pid

# The sections of params.yaml that a prediction reads; all other parameters are stored with the models.
ENCODER_STAGES = ("embed_image", "embed_text")
SECTIONS = ("index_images", "featurize", "embed_image", "embed_text", "encoders", "embed_posts")
N_FEATURES = 8  # listed for each post
LOCATION = ["shard", "offset"]  # columns of IMAGES, equal where posts have the same file
TEXT_BLOCK = "text model"  # its block in the SHAP values


@dataclass(frozen=True)
class Project:
    """Paths below the folder in which `dvc repro` finished."""

    root: Path
    params: Path
    posts: Path
    splits: Path
    features: Path
    prototypes: Path
    network: Path
    stack: Path
    text_model: Path
    weights: Path
    calibration: Path

    @classmethod
    def at(cls, root: Path) -> Project:
        """Those below `root`."""
        return cls(
            root=root,
            params=root / PARAMS_FILE,
            posts=root / paths.POSTS,
            splits=root / paths.SPLITS,
            features=root / paths.FEATURES,
            prototypes=root / paths.PROTOTYPES,
            network=root / paths.NETWORK,
            stack=root / paths.STACK,
            text_model=root / paths.TEXT_MODEL / "model.safetensors",
            weights=root / paths.ENSEMBLE_WEIGHTS,
            calibration=root / paths.CALIBRATION,
        )

    @cached_property
    def network_vectors(self) -> tuple[Path, Path]:
        """Folders of the vectors of images and texts that the network reads."""
        return self._below(paths.IMAGE_EMBEDDINGS), self._below(paths.TEXT_EMBEDDINGS)

    @cached_property
    def stack_vectors(self) -> tuple[Path, Path]:
        """Folders of the vectors of images and texts that the stack reads, with a folder for each encoder."""
        return self.root / paths.STACK_IMAGE_EMBEDDINGS, self.root / paths.STACK_TEXT_EMBEDDINGS

    def _below(self, name: str) -> Path:
        return self.root / paths.resolved(name, read_yaml(self.params))

    def settings(self) -> Settings:
        """The sections of params.yaml that a prediction needs.

        Raises:
            DataError: an output of the graph is missing.
            ConfigError: a section is not what it was when the graph ran.
            ContractError: the outputs are of different runs.
        """
        image, text = self.network_vectors
        stack_encoders = StackEncoderParams.load(self.params)
        stack_image, stack_text = self.stack_vectors
        needed = [
            *(self.posts, self.splits, self.features / "text_components.parquet", self.calibration),
            *(image / "pooled.npy", text / "post.npy", text / "tokens.npy"),
            *(stack_image / name / "pooled.npy" for name in stack_encoders.images),
            *(stack_text / name / "title.npy" for name in stack_encoders.texts),
            *(self.prototypes / "prototypes.safetensors", self.network / "network.json", self.weights),
        ]
        if self.weights.is_file():
            weights = _MemberWeights.read(self.weights)
            needed += [self.stack / name / "model.json" for name in weights.stack]
            needed += [self.text_model] if weights.text_model else []
        missing = [str(path.relative_to(self.root)) for path in dict.fromkeys(needed) if not path.is_file()]
        if missing:
            raise DataError(
                f"{self.root.absolute()} lacks {', '.join(missing)}",
                expected="a project folder in which the graph has run",
                fix="dvc repro (or dvc pull, where its outputs were pushed)",
            )
        self._refuse_changed_sections()
        refuse_mixed_run(self.root, (paths.ENSEMBLE, paths.CALIBRATION))
        return Settings(
            index=load_params("index_images", IndexImagesParams, self.params),
            featurize=load_params("featurize", FeaturizeParams, self.params),
            encoders=EncoderPair.load(self.params),
            stack_encoders=stack_encoders,
            embed_posts=load_params("embed_posts", EmbedPostsParams, self.params),
        )

    def _refuse_changed_sections(self) -> None:
        """Compares params.yaml with dvc.lock; a graph that ran without DVC has no lock."""
        lock = self.root / "dvc.lock"
        if not lock.is_file():
            return
        now = read_yaml(self.params)
        used = {f"embed_{kind}@{name}" for kind in ("image", "text") for name in names_in_use(now, kind)}
        ran: dict[str, Any] = {}  # by key, such as featurize and embed_text.minilm
        for name, stage in read_yaml(lock)["stages"].items():
            # The report depends on all of params.yaml, and may have run long before or after the others; an encoder
            # that no stage uses may have left params.yaml, and a lock may be older than the encoders' names.
            if name != "report" and (name.partition("@")[0] not in ENCODER_STAGES or name in used):
                ran |= stage.get("params", {}).get(str(PARAMS_FILE), {})
        known = [key for key in ran if key.partition(".")[0] in SECTIONS]
        changed = [key for key in known if ran[key] != _value_at(now, key)]
        if changed:
            raise ConfigError(
                f"{self.params}: {', '.join(changed)} changed since the graph ran; "
                "run `dvc repro`, or take the change back: the models know no other values"
            )


@dataclass(frozen=True)
class Settings:
    """Sections of params.yaml, and the encoders that the network and the stack use."""

    index: IndexImagesParams
    featurize: FeaturizeParams
    encoders: EncoderPair
    stack_encoders: StackEncoderParams
    embed_posts: EmbedPostsParams


@dataclass(frozen=True)
class StackEncoderParams:
    """The entries of embed_image and embed_text that encoders.stack names, by name."""

    images: Mapping[str, EmbedImageParams]
    texts: Mapping[str, EmbedTextParams]

    @classmethod
    def load(cls, params: Path) -> StackEncoderParams:
        """From the file of parameters."""
        used = load_params("encoders.stack", StackEncoders, params)
        return cls(
            {name: load_params(f"embed_image.{name}", EmbedImageParams, params) for name in as_names(used.image)},
            {name: load_params(f"embed_text.{name}", EmbedTextParams, params) for name in as_names(used.text)},
        )


def _value_at(content: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None if there is none."""
    value: Any = content
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


class Predictor:
    """A project's models, each loaded once: it answers any number of times, one call at a time.

    Args:
        project: a folder in which the graph has run.
        scratch: folder for the files of a call, which are removed after it; None for the system's.

    Raises:
        DataError, ConfigError, ContractError: see `Project.settings`.
    """

    def __init__(self, project: Project, scratch: Path | None = None) -> None:
        self.project, self.settings, self.scratch = project, project.settings(), scratch
        self.known = read_table(project.posts, POSTS)
        self.classes = KnownClasses.read(project.prototypes)
        self._calibration = Calibration.read(project.calibration)
        self._splits = read_table(project.splits, FOLDS)
        self._network: LoadedNetwork | None = None
        self._image_encoders: dict[EmbedImageParams, ImageEncoder] = {}
        self._text_encoders: dict[EmbedTextParams, tuple[TextEncoder, TextTokenizer]] = {}

    def predict(self, new: NewPosts, n_features: int, *, alone: bool = False) -> list[Prediction]:
        """Predictions of `new.table`, by pid; further notes go to the requests.

        The new posts count as posts of the test split: counts of users, classes, tags and texts include them and every
        stored post, and nothing is fitted on them.

        Args:
            new: at least one post that can be predicted.
            n_features: features listed for each post.
            alone: each post is predicted as if it were the only new one.

        Raises:
            ContractError: the encoders are not those that the stored vectors came from.
        """
        notes = {request.pid: request.notes for request in new.requests}
        with TemporaryDirectory(prefix="popularity-predict-", dir=self.scratch) as name:
            scratch = Path(name)
            inputs, stack_vectors = self._encode(new, scratch)
            inputs = _fill_classes(inputs, self.classes, notes)
            blocks, explanations = _embed(inputs, stack_vectors, self.classes, scratch)
            features = with_further_columns(self._features(inputs, alone=alone), new.columns)
            fitted = self._predict_ensemble(inputs, features, blocks, n_features, notes)
            _note_images(inputs.posts, read_table(inputs.folders.image / "status.parquet", IMAGE_STATUS), notes)
        return _assemble(fitted, self._calibration, features, explanations, notes)

    def _features(self, inputs: NetworkInputs, *, alone: bool) -> pl.DataFrame:
        """(pid, all features) of the posts, sorted by pid."""
        own = unclassified(inputs.posts) if is_unclassified(self.known) else inputs.posts
        params, folder = self.settings.featurize, self.project.features
        features = further_features(own, inputs.images, self._splits, self.known, params, folder)
        return count_each_alone(features, own, self._splits, self.known) if alone and own.height > 1 else features

    def _encode(self, new: NewPosts, scratch: Path) -> tuple[NetworkInputs, tuple[Path, Path]]:
        """The posts and the vectors of their images and texts, in folders of `scratch`; and those of the stack."""
        images = index_files(new.table, new.root, self.settings.index)
        write_table(new.table, scratch / "posts.parquet", POSTS)
        image, text = scratch / "image", scratch / "text"
        self._embed_images(new.root, images, image, self.settings.encoders.image, scratch)
        self._embed_texts(scratch, text, self.settings.encoders.text)
        stored_image, stored_text = self.project.network_vectors
        _refuse_another_encoder("image", image / "pooled.json", stored_image / "pooled.json")
        _refuse_another_encoder("text", text / "post.json", stored_text / "post.json")
        stack_vectors = self._encode_for_stack(new.root, images, scratch)
        folders = Folders(new.root, image, text, self.project.prototypes, self.project.network)
        accelerator = make_accelerator(trained_params(self.project.network).precision)
        inputs = NetworkInputs(
            new.table, images, folders, self.settings.encoders, self.settings.embed_posts, accelerator, self._network
        )
        if self._network is None:
            self._network = LoadedNetwork.load(inputs)
        return replace(inputs, network=self._network), stack_vectors

    def _encode_for_stack(self, root: Path, posts_images: pl.DataFrame, scratch: Path) -> tuple[Path, Path]:
        """Folders with the vectors of each encoder of the stack; those of the network's encoders are there already."""
        images, texts = scratch / "stack" / "image", scratch / "stack" / "text"
        stored_images, stored_texts = self.project.stack_vectors
        for folder in (images, texts):
            folder.mkdir(parents=True)
        for name, image in self.settings.stack_encoders.images.items():
            if image == self.settings.encoders.image:
                (images / name).symlink_to(scratch / "image")
            else:
                self._embed_images(root, posts_images, images / name, image, scratch)
            _refuse_another_encoder("image", images / name / "pooled.json", stored_images / name / "pooled.json")
        for name, text in self.settings.stack_encoders.texts.items():
            if text == self.settings.encoders.text:
                (texts / name).symlink_to(scratch / "text")
            else:
                self._embed_texts(scratch, texts / name, text)
            _refuse_another_encoder("text", texts / name / "title.json", stored_texts / name / "title.json")
        return images, texts

    def _embed_images(
        self, root: Path, images: pl.DataFrame, out: Path, params: EmbedImageParams, scratch: Path
    ) -> None:
        """The vectors of the posts' images; an image of several posts is encoded once."""
        if params not in self._image_encoders:
            self._image_encoders[params] = load_image_encoder(params)
        once = images.unique(LOCATION, keep="first", maintain_order=True)
        write_table(once, scratch / "images.parquet", IMAGES)
        embed_images(root, scratch / "images.parquet", out, params, scratch, self._image_encoders[params])
        if once.height < images.height:
            _share_images(images.select("pid", *LOCATION), once.select("pid", *LOCATION), out)

    def _embed_texts(self, scratch: Path, out: Path, params: EmbedTextParams) -> None:
        if params not in self._text_encoders:
            self._text_encoders[params] = load_text_encoder(params), load_tokenizer(params)
        embed_texts(scratch / "posts.parquet", out, params, scratch, self._text_encoders[params])

    @cached_property
    def _weights(self) -> _MemberWeights:
        return _MemberWeights.read(self.project.weights)

    @cached_property
    def _members(self) -> Mapping[str, StackModel]:
        if not self._weights.stack:
            raise ContractError(f"{self.project.weights}: no member of the stack has a weight\n  next: dvc repro")
        return {name: StackModel.load(self.project.stack / name) for name in self._weights.stack}

    @cached_property
    def _text_model(self) -> TextModel:
        return TextModel.load(self.project.text_model, self.settings.encoders.text)

    def _predict_ensemble(
        self, inputs: NetworkInputs, features: pl.DataFrame, blocks: Blocks, n_features: int, notes: Notes
    ) -> _Fitted:
        weights, models = self._weights, self._members
        for name, weight in weights.files.items():
            for own in notes.values():
                own.append(
                    f"without member {name} (weight {weight:.2f}), which is a file and predicts the test posts alone"
                )
        dates = features.select("pid").join(inputs.posts, on="pid", how="left", validate="1:1", maintain_order="left")
        posted_at = dates["posted_at"].to_physical().to_numpy()
        trends = [model.trend for model in models.values()]
        days_after = days_until_read(next((one for one in trends if one.family), trends[0]), dates, notes)
        members = {name: model.explain(features, blocks, posted_at, days_after) for name, model in models.items()}
        share = sum(weights.stack.values())
        predicted, shap_values = weighted_mean(
            members, {name: weight / share for name, weight in weights.stack.items()}, n_features
        )
        if weights.text_model:
            predictions = self._text_model.predict(features, posted_at, days_after) - weights.offset
            predicted, shap_values = with_text(predicted, shap_values, predictions, weights.text_model)
        return _Fitted(predicted, shap_values)


def with_further_columns(features: pl.DataFrame, columns: pl.DataFrame) -> pl.DataFrame:
    """`features` with the further columns that the posts have, as far as the run had them too.

    Args:
        features: of all posts, in which these columns are null.
        columns: contract COLUMNS.
    """
    joined = features.select("pid").join(columns, on="pid", how="left", validate="1:1", maintain_order="left")
    known = [name for name in columns.columns if name != "pid" and name in features.columns]
    return features.with_columns(joined[name].cast(features.schema[name]) for name in known)


def _share_images(images: pl.DataFrame, encoded: pl.DataFrame, folder: Path) -> None:
    """Gives every post of `images` the vector, statistics and status of its image.

    Args:
        images: pid and LOCATION, sorted by pid.
        encoded: likewise, one post for each image.
        folder: that `embed_images` wrote for `encoded`.
    """
    source = images.join(encoded, on=LOCATION, how="left", validate="m:1", maintain_order="left", suffix="_encoded")
    source = source.select("pid", "pid_encoded")
    block = read_block(folder, "pooled")
    rows = block.rows(source["pid_encoded"].to_list())
    pids = source.filter(pl.Series(rows >= 0))["pid"].to_list()
    write_block(Block(block.values[rows[rows >= 0]], pids, block.metadata), folder, "pooled")
    for name, contract in (("statistics", IMAGE_STATISTICS), ("status", IMAGE_STATUS)):
        table = read_table(folder / f"{name}.parquet", contract).rename({"pid": "pid_encoded"})
        shared = source.join(table, on="pid_encoded", maintain_order="left").drop("pid_encoded")
        write_table(shared, folder / f"{name}.parquet", contract)


def _fill_classes(inputs: NetworkInputs, classes: KnownClasses, notes: Notes) -> NetworkInputs:
    """Posts without a class get the likeliest one, which is closer than a mixture of all classes."""
    posts, blank = inputs.posts, classes.without(inputs.posts)
    if blank.height:
        images = inputs.images.filter(pl.col("pid").is_in(blank["pid"].implode()))
        probabilities = probable_classes(replace(inputs, posts=blank, images=images))
        rows = []
        for post, likely in zip(blank.select("pid", *LEVELS).iter_rows(named=True), probabilities, strict=True):
            keys, probability = classes.likeliest(post, likely)
            notes[post["pid"]] += filter(None, [classes.note_above(post["category"])])
            notes[post["pid"]].append(
                f"no class: {keys[CLASS_LEVEL]} taken, the likeliest by image and text ({probability:.0%})"
            )
            rows.append({"pid": post["pid"], **keys})
        posts = posts.update(pl.DataFrame(rows), on="pid")
    for pid, key in posts.select("pid", CLASS_LEVEL).iter_rows():
        notes[pid] += filter(None, [classes.note(key)])
    return replace(inputs, posts=posts)


def _embed(
    inputs: NetworkInputs, stack_vectors: tuple[Path, Path], classes: KnownClasses, scratch: Path
) -> tuple[Blocks, _Explanations]:
    """The blocks of vectors that the stack reads, and the explanations of the network's vectors."""
    prototype, explain = scratch / "prototype", scratch / "explain"
    embed_posts(inputs, state=scratch, out=prototype, explain=explain)
    blocks = read_blocks(*stack_vectors, prototype)
    return blocks, _Explanations.read(classes, explain)


@dataclass(frozen=True)
class _MemberWeights:
    """The weights of the ensemble.

    Args:
        stack: of the members of the stack that count, by name.
        text_model: of the text model.
        offset: taken off the text model's predictions.
        files: names and weights of the members that have no model; the others share their weight.
    """

    stack: Mapping[str, float]
    text_model: float
    offset: float
    files: Mapping[str, float]

    @classmethod
    def read(cls, file: Path) -> _MemberWeights:
        content: dict[str, Any] = read_json(file)
        weights = {name: weight for name, weight in content["weights"].items() if weight}
        files = {name: weights.pop(name) for name in content["files"] if name in weights}
        own = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        text = own.pop(TEXT_MODEL, 0.0)
        return cls(own, text, content["text_model_offset"], files)


@dataclass(frozen=True)
class _Fitted:
    """Predictions of the ensemble, and their SHAP values.

    Args:
        predicted: values and error scales (n,), in the order of the features.
        shap_values: of the ensemble.
    """

    predicted: Predicted
    shap_values: ShapValues


def days_until_read(trend: Trend, posts: pl.DataFrame, notes: Notes) -> Float64Array:
    """(n,) days from each post until its count is read; nan: until the collection, as that of the stored posts.

    A post that says nothing is read at the collection; if it is later, it is read after as many days as the median
    train row. Further notes go to the requests.

    Args:
        trend: of the stack.
        posts: (pid, posted_at, collected_at) of n posts; collected_at is null where the request says nothing.
        notes: of the requests.
    """
    family = trend.family
    days = (posts["collected_at"] - posts["posted_at"]).dt.total_microseconds().to_numpy() / MICROSECONDS_A_DAY
    if family is None:
        for pid in posts.filter(pl.col("collected_at").is_not_null())["pid"]:
            notes[pid].append("unused value: days_after, which models without stack.detrend: family do not read")
        return days
    later = posts["posted_at"].to_physical().to_numpy() / MICROSECONDS_A_DAY > family.collected_at
    drafts = later & np.isnan(days)
    for pid in posts["pid"].filter(pl.Series(drafts)):
        notes[pid].append(
            f"no days_after: {family.median_exposure:.0f} days taken, as the median train post had until its count"
        )
    return np.where(drafts, family.median_exposure, days)


def _assemble(
    fitted: _Fitted, calibration: Calibration, features: pl.DataFrame, explanations: _Explanations, notes: Notes
) -> list[Prediction]:
    predicted, shap = fitted.predicted, _shap_by_pid(fitted.shap_values, features)
    rows = zip(
        features["pid"],
        predicted.values,
        predicted.error_scale,
        _intervals(calibration, predicted),
        fitted.shap_values.expected_value,
        strict=True,
    )
    return [
        Prediction(
            pid=pid,
            popularity=float(value),
            views=views(value),
            error_scale=float(scale),
            intervals=intervals,
            views_intervals={coverage: (_views(low), _views(high)) for coverage, (low, high) in intervals.items()},
            nearest=explanations.nearest(pid),
            attention_mass=explanations.attention_mass(pid),
            attention_weights=explanations.attention_weights(pid),
            expected_value=float(expected_value),
            shap_by_block=shap[pid][0],
            shap_by_feature=shap[pid][1],
            notes=notes[pid],
        )
        for pid, value, scale, intervals, expected_value in rows
    ]


def with_text(
    predicted: Predicted, shap_values: ShapValues, text: Float64Array, weight: float
) -> tuple[Predicted, ShapValues]:
    """The ensemble of the stack and the text model: its predictions and SHAP values.

    The SHAP value of the text model is its weight times its difference from the stack: with this block, expected value
    and SHAP values add up to the prediction.

    Args:
        predicted: by the stack, of n posts.
        shap_values: SHAP values of the stack.
        text: (n,) predictions of the text model, less its offset.
        weight: of the text model in the ensemble.
    """
    added = weight * (text - predicted.values)
    pids = shap_values.blocks["pid"].unique(maintain_order=True)
    own = pl.DataFrame({"pid": pids, "block": TEXT_BLOCK, "shap_value": added})
    blocks = pl.concat([shap_values.blocks, own.cast(dict(shap_values.blocks.schema))])  # type: ignore[arg-type]
    return replace(predicted, values=predicted.values + added), replace(shap_values, blocks=blocks)


def _views(popularity: float | None) -> float | None:
    return None if popularity is None else views(popularity)


def _refuse_another_encoder(kind: str, new: Path, stored: Path) -> None:
    """Compares the metadata of new and stored vectors."""
    own, other = read_json(new), read_json(stored)
    # Each machine encodes in the precision that it has; the vectors of one encoder stay near each other.
    fields = [field for field in other if field != "precision" and own.get(field) != other[field]]
    if fields:
        raise ContractError(
            f"the {kind} encoder of params.yaml is not the one of the stored vectors: "
            + "; ".join(f"{field} {str(own.get(field))[:80]}, stored {str(other[field])[:80]}" for field in fields)
            + "\n  next: dvc repro"
        )


def _intervals(calibration: Calibration, predicted: Predicted) -> list[dict[str, Interval]]:
    """For each post its intervals by coverage."""
    found: list[dict[str, Interval]] = [{} for _ in predicted.values]
    for coverage in calibration.quantiles:
        half_width = calibration.half_width(coverage, predicted.error_scale)
        for row, value in enumerate(predicted.values):
            bounds = (
                (None, None) if half_width is None else (float(value - half_width[row]), float(value + half_width[row]))
            )
            found[row][f"{coverage:g}"] = bounds
    return found


def _shap_by_pid(
    shap_values: ShapValues, features: pl.DataFrame
) -> dict[str, tuple[dict[str, float], list[dict[str, Any]]]]:
    """By pid the SHAP values of blocks and of the largest features; categories by name, not by code."""
    found: dict[str, tuple[dict[str, float], list[dict[str, Any]]]] = {pid: ({}, []) for pid in features["pid"]}
    for pid, block, value in shap_values.blocks.iter_rows():
        found[pid][0][block] = value
    names = categories_of(features)
    categories = {row["pid"]: row for row in features.select("pid", *names).iter_rows(named=True)}
    for row in shap_values.features.drop("rank").iter_rows(named=True):
        pid = row.pop("pid")
        if row["block"] == "metadata" and row["feature"] in names:
            row["value"] = categories[pid][row["feature"]]
        found[pid][1].append(row)
    return found


@dataclass(frozen=True)
class _Explanations:
    """Tables like those of data/explain for the new posts, with the names of the classes."""

    names: pl.Series  # readable, of the K classes
    tables: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # by contract, by pid

    @classmethod
    def read(cls, classes: KnownClasses, explain: Path) -> _Explanations:
        tables: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for contract in (NEAREST, ATTENTION, ATTENTION_MASS):
            rows = tables.setdefault(contract.name, {})
            table = read_table(explain / f"{contract.name.replace(' ', '_')}.parquet", contract)
            for row in table.iter_rows(named=True):
                rows.setdefault(row["pid"], []).append(row)
        return cls(classes.of_level["name"], tables)

    def nearest(self, pid: str) -> dict[str, list[dict[str, Any]]]:
        rows = [{**row, "cosine": row["value"]} for row in self._of(NEAREST.name, pid)]
        return {head: self._listed(rows, "head", head, "cosine") for head in ("visual", "text")}

    def attention_weights(self, pid: str) -> dict[str, list[dict[str, Any]]]:
        rows = self._of(ATTENTION.name, pid)
        return {kind: self._listed(rows, "modality", kind, "weight") for kind in ("visual", "text")}

    def attention_mass(self, pid: str) -> dict[str, float]:
        return {
            name: value for row in self._of(ATTENTION_MASS.name, pid) for name, value in row.items() if name != "pid"
        }

    def _of(self, table: str, pid: str) -> Sequence[Mapping[str, Any]]:
        return self.tables[table].get(pid, [])

    def _listed(self, rows: Sequence[Mapping[str, Any]], group: str, name: str, value: str) -> list[dict[str, Any]]:
        return [
            {"class": row["key"], "name": self.names[row["index"]], value: row[value]}
            for row in rows
            if row[group] == name
        ]


def _note_images(posts: pl.DataFrame, status: pl.DataFrame, notes: Notes) -> None:
    """Adds a note to each post whose image exists and could not be used."""
    joined = posts.select("pid", "image_path").join(status, on="pid", how="left", validate="1:1")
    for pid, path, found in joined.filter((pl.col("image_path") != "") & (pl.col("status") != "ok")).iter_rows():
        notes[pid].append(f"no image: {path} is {found.replace('_', ' ')}; predicted from the rest")
