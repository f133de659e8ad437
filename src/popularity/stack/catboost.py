"""CatBoost, an optional learner: the same matrix and sample weights, with categories as categories.

CatBoost is imported where it is used: the package works without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from popularity.core.arrays import Float64Array
from popularity.core.atomic import atomic_path
from popularity.core.errors import ConfigError
from popularity.stack.matrix import Matrix
from popularity.stack.params import StackParams
from popularity.stack.sample import Learned, Sample
from popularity.validation.inner_cv import InnerSplit

SUFFIX = "cbm"
VOLATILE_METADATA = ("train_finish_time", "model_guid")  # differ between two equal fits


def library() -> Any:
    """The module `catboost`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import catboost as installed  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "stack.learners: catboost is not installed; run `pip install -e '.[catboost]'` or leave it out"
        ) from error
    return installed


def learn(sample: Sample, splits: Sequence[InnerSplit], params: StackParams) -> Learned:
    """Early stopping on the inner CV: the number of rounds, and out-of-fold predictions.

    Every split runs until its own error has not fallen for `early_stopping_rounds` rounds. Then all run as long as the
    longest, because the mean over the splits needs curves of one length. Without a split: `num_boost_round`.
    """
    if not splits:
        return Learned(params.num_boost_round, np.empty(0))
    whole = _pool(sample.matrix, sample)
    pools = [(whole.slice(train), whole.slice(valid)) for train, valid in splits]
    stop = {"od_type": "Iter", "od_wait": params.early_stopping_rounds}
    models = [_train(train, params.num_boost_round, params, params.seed, valid, **stop) for train, valid in pools]
    longest = max(len(_errors(model)) for model in models)
    models = [
        model if len(_errors(model)) == longest else _train(train, longest, params, params.seed, valid)
        for model, (train, valid) in zip(models, pools, strict=True)
    ]
    rounds = int(np.argmin(np.mean([_errors(model) for model in models], axis=0))) + 1
    predictions = [model.predict(valid, ntree_end=rounds) for model, (_, valid) in zip(models, pools, strict=True)]
    return Learned(rounds, np.concatenate(predictions))


def fit(sample: Sample, chosen: int, params: StackParams, seed: int) -> Any:
    """A model of `chosen` rounds, fitted on all rows."""
    return _train(_pool(sample.matrix, sample), chosen, params, seed)


def predict(model: Any, matrix: Matrix) -> Float64Array:
    """(n,) predictions in the unit of the fitted target."""
    return np.asarray(model.predict(_pool(matrix)))


def describe(model: Any) -> str:
    """The number of rounds, for the log."""
    return f" at {model.tree_count_}"


def shap_values(model: Any, matrix: Matrix) -> Float64Array:
    """(n, columns + 1) SHAP values of the columns (TreeSHAP), and the expected value last."""
    values = model.get_feature_importance(_pool(matrix), type="ShapValues")
    result: Float64Array = np.empty(values.shape)
    result[:, [*_numeric(matrix), *matrix.categorical, len(matrix.names)]] = values
    return result


def save(model: Any, path: Path) -> None:
    """Writes CatBoost's own binary form: the same fit gives the same bytes."""
    metadata = model.get_metadata()
    for name in set(VOLATILE_METADATA) & {name for name, _ in metadata.items()}:
        del metadata[name]
    with atomic_path(path) as partial:
        model.save_model(str(partial), format="cbm")


def load(path: Path) -> Any:
    """The model that `save` wrote.

    Raises:
        ConfigError: CatBoost is not installed.
    """
    return library().CatBoost().load_model(str(path), format="cbm")


def _train(train: Any, rounds: int, params: StackParams, seed: int, valid: Any = None, **stop: Any) -> Any:
    model = library().CatBoost(
        {
            **asdict(params.catboost),
            **stop,
            "iterations": rounds,
            "bootstrap_type": "Bernoulli",  # takes `subsample` with either loss
            "use_best_model": False,
            "random_seed": seed,
            "thread_count": params.num_threads,
            "allow_writing_files": False,
            "logging_level": "Silent",
        }
    )
    return model.fit(train, eval_set=valid)


def _errors(model: Any) -> list[float]:
    """The error on the valid rows after each round."""
    (errors,) = model.get_evals_result()["validation"].values()
    return list(errors)


def _numeric(matrix: Matrix) -> list[int]:
    categorical = set(matrix.categorical)
    return [index for index in range(len(matrix.names)) if index not in categorical]


def _pool(matrix: Matrix, sample: Sample | None = None) -> Any:
    """Numbers first, then categories by the text of their code; a missing category is one of its own."""
    numeric, categorical = _numeric(matrix), list(matrix.categorical)
    codes = np.nan_to_num(matrix.values[:, categorical], nan=-1).astype(np.int64)
    module = library()
    features = module.FeaturesData(
        num_feature_data=np.ascontiguousarray(matrix.values[:, numeric]) if numeric else None,
        cat_feature_data=codes.astype("S").astype(object) if categorical else None,
        num_feature_names=[matrix.names[index] for index in numeric] if numeric else None,
        cat_feature_names=[matrix.names[index] for index in categorical] if categorical else None,
    )
    if sample is None:
        return module.Pool(features)
    return module.Pool(features, label=sample.target, weight=sample.weight)
