"""The files and folders that the stages of dvc.yaml write, relative to the project folder.

This is the register of all outputs: a test demands a name here for every output of dvc.yaml, also for those that code
knows from the command line alone. As in dvc.yaml, `${a.b}` in a path stands for the value of key a.b of params.yaml:
`resolved` puts it in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from popularity.core.errors import ConfigError

PARAMS = "params.yaml"

DEMO = "data/demo"
DEMO_TRUTH = "data/demo_truth"

POSTS = "data/interim/posts.parquet"
USERS = "data/interim/users.parquet"
COLUMNS = "data/interim/columns.parquet"  # further columns of a user's own table
QUARANTINE = "data/interim/quarantine.parquet"
IMAGES = "data/interim/images.parquet"
SPLITS = "data/interim/splits.parquet"

FEATURES = "data/features"

IMAGE_EMBEDDINGS = "data/embeddings/image/${encoders.network.image}"
IMAGE_STATUS = "data/embeddings/image/${encoders.network.image}/status.parquet"
TEXT_EMBEDDINGS = "data/embeddings/text/${encoders.network.text}"
STACK_EMBEDDINGS = "data/embeddings/stack"  # of the encoders that encoders.stack names
STACK_IMAGE_EMBEDDINGS = "data/embeddings/stack/image"
STACK_TEXT_EMBEDDINGS = "data/embeddings/stack/text"
STACK_MODELS = "data/embeddings/stack/models.json"
PROTOTYPE_EMBEDDINGS = "data/embeddings/prototype"

PROTOTYPES = "models/prototypes"
PROTOTYPE_CLASSES = "models/prototypes/classes.parquet"
PROTOTYPE_CLUSTERS = "models/prototypes/clusters.parquet"
PROTOTYPE_FIELDS = "models/prototypes/metadata.json"
PROTOTYPE_MANIFEST = "models/prototypes/manifest.json"
PROTOTYPE_VECTORS = "models/prototypes/prototypes.safetensors"

NETWORK = "models/network"
NETWORK_MANIFEST = "models/network/manifest.json"

EXPLANATIONS = "data/explain"
ATTENTION_MASS = "data/explain/attention_mass.parquet"
NEAREST_CLASSES = "data/explain/nearest.parquet"

TUNING = "models/tuning"
TUNING_MEMBERS = "models/tuning/members.yaml"
TUNING_PATCH = "models/tuning/best_params.yaml"
TUNING_PREDICTIONS = "models/tuning/predictions.parquet"
TUNING_MANIFEST = "models/tuning/manifest.json"
TUNING_STUDY = "models/tuning/study.json"
TUNING_TRIALS = "models/tuning/trials.csv"

TEXT_MODEL = "models/text_model"
TEXT_MODEL_PREDICTIONS = "data/text_model"

STACK = "models/stack"
STACK_MANIFEST = "models/stack/manifest.json"
STACK_OUTPUTS = "data/stack"
STACK_PREDICTIONS = "data/stack/predictions.parquet"  # of every member, and of the baselines
STACK_TRENDS = "data/stack/trends.parquet"  # of the first member

MEMBER_FILES = "data/members"
ENSEMBLE = "models/ensemble"
ENSEMBLE_MANIFEST = "models/ensemble/manifest.json"
ENSEMBLE_WEIGHTS = "models/ensemble/weights.json"
ENSEMBLE_OUTPUTS = "data/ensemble"
ENSEMBLE_IMPORTANCE = "data/ensemble/importance.csv"
ENSEMBLE_PREDICTIONS = "data/ensemble/predictions.parquet"  # of the mean of the members, and of the baselines

SUBMISSIONS = "submissions"
SUBMISSION_MANIFEST = "submissions/manifest.json"

INGEST_SUMMARY = "reports/ingest.json"
IMAGE_SUMMARY = "reports/images.json"
SPLIT_SUMMARY = "reports/split.json"
FEATURE_SUMMARY = "reports/target_statistics.json"
PROTOTYPE_SUMMARY = "reports/prototypes.json"

TRAINING_METRICS = "reports/training/metrics.json"
TRAINING_PLOTS = "reports/training/plots"

METRICS = "reports/metrics.json"
SCORES = "reports/scores.csv"
SCORES_BY_GROUP = "reports/scores_by_group.csv"
SCORES_TEXT = "reports/scores.txt"
CALIBRATION = "reports/calibration.json"
COVERAGE = "reports/coverage.csv"
PROMISE = "reports/promise.csv"
PROMISE_METRICS = "reports/promise.json"
PLOTS = "reports/plots"

REPORT = "reports/report.html"
MODEL_CARD = "reports/model_card.md"

STAGES = (
    "demo_data",
    "ingest",
    "index_images",
    "split",
    "featurize",
    "embed_image",
    "embed_text",
    "stack_vectors",
    "prototypes",
    "train",
    "embed_posts",
    "tune",
    "text_model",
    "stack",
    "ensemble",
    "evaluate",
    "submit",
    "report",
)
RESOURCES = {stage: f"reports/resources/{stage}.json" for stage in STAGES} | {  # seconds and memory of each stage
    "embed_image": "reports/resources/embed_image_${encoders.network.image}.json",
    "embed_text": "reports/resources/embed_text_${encoders.network.text}.json",
}


def encoder_resources(kind: str, name: str) -> str:
    """The path of the seconds and memory of an encoder's stage.

    Args:
        kind: image or text.
        name: an entry of embed_image or embed_text.
    """
    return f"reports/resources/embed_{kind}_{name}.json"


def resolved(path: str, params: Mapping[str, Any]) -> str:
    """`path` with the value of key a.b of params.yaml in place of each `${a.b}`, as DVC writes it.

    >>> resolved("data/${a.b}/c", {"a": {"b": "minilm"}})
    'data/minilm/c'

    Args:
        path: one of this module.
        params: the content of params.yaml.

    Raises:
        ConfigError: params.yaml lacks the key.
    """

    def value_of(match: re.Match[str]) -> str:
        value: Any = params
        for name in match[1].split("."):
            if not isinstance(value, Mapping) or name not in value:
                raise ConfigError(f"{PARAMS}: {match[1]} is missing, which names the folder {path}")
            value = value[name]
        return str(value)

    return re.sub(r"\$\{([\w.]+)\}", value_of, path)
