"""CatBoost, an optional learner: the same matrix and weights, categories as such.

CatBoost is imported where it is used: the package works without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from popularity.core.atomic import atomic_path
from popularity.core.errors import ConfigError
from popularity.stack.matrix import Matrix
from popularity.stack.params import StackParams
from popularity.stack.sample import Learned, Sample
from popularity.validation.inner_cv import Array, Cut

SUFFIX = "cbm"
MOMENTARY = ("train_finish_time", "model_guid")  # what CatBoost writes into a model that no parameter decides


def library() -> Any:
    """The library.

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


def learn(sample: Sample, cuts: Sequence[Cut], params: StackParams) -> Learned:
    """Rounds and out-of-fold predictions from the inner cuts; all `num_boost_round` where there is none.

    Each cut runs until its own error has not fallen for `early_stopping_rounds` rounds, then all run as long as the longest: the
    mean over the cuts needs curves of one length.
    """
    if not cuts:
        return Learned(params.num_boost_round, np.empty(0))
    whole = _pool(sample.matrix, sample)
    pools = [(whole.slice(rows), whole.slice(scored)) for rows, scored in cuts]
    stop = {"od_type": "Iter", "od_wait": params.early_stopping_rounds}
    models = [_train(rows, params.num_boost_round, params, params.seed, scored, **stop) for rows, scored in pools]
    longest = max(len(_errors(model)) for model in models)
    models = [
        model if len(_errors(model)) == longest else _train(rows, longest, params, params.seed, scored)
        for model, (rows, scored) in zip(models, pools, strict=True)
    ]
    rounds = int(np.argmin(np.mean([_errors(model) for model in models], axis=0))) + 1
    parts = [model.predict(scored, ntree_end=rounds) for model, (_, scored) in zip(models, pools, strict=True)]
    return Learned(rounds, np.concatenate(parts))


def fit(sample: Sample, chosen: int, params: StackParams, seed: int) -> Any:
    """A model of all rows, of `chosen` rounds."""
    return _train(_pool(sample.matrix, sample), chosen, params, seed)


def predict(model: Any, matrix: Matrix) -> Array:
    """(n,) in the scale that was fitted."""
    return np.asarray(model.predict(_pool(matrix)))


def contributions(model: Any, matrix: Matrix) -> Array:
    """(n, columns + 1) what each column adds to a prediction, and last what all posts share (TreeSHAP)."""
    values = model.get_feature_importance(_pool(matrix), type="ShapValues")
    result: Array = np.empty(values.shape)
    result[:, [*_numeric(matrix), *matrix.categorical, len(matrix.names)]] = values
    return result


def save(model: Any, path: Path) -> None:
    """Writes CatBoost's own binary form: the same fit, the same bytes."""
    facts = model.get_metadata()
    for name in set(MOMENTARY) & {name for name, _ in facts.items()}:
        del facts[name]
    with atomic_path(path) as partial:
        model.save_model(str(partial), format="cbm")


def load(path: Path) -> Any:
    """The model that `save` wrote; ConfigError when CatBoost is not installed."""
    return library().CatBoost().load_model(str(path), format="cbm")


def _train(rows: Any, rounds: int, params: StackParams, seed: int, scored: Any = None, **stop: Any) -> Any:
    model = library().CatBoost(
        {
            **asdict(params.catboost),
            **stop,
            "iterations": rounds,
            "bootstrap_type": "Bernoulli",  # the kind that takes `subsample` with either loss
            "use_best_model": False,
            "random_seed": seed,
            "thread_count": params.num_threads,
            "allow_writing_files": False,
            "logging_level": "Silent",
        }
    )
    return model.fit(rows, eval_set=scored)


def _errors(model: Any) -> list[float]:
    """The error on the scored rows after each round."""
    (errors,) = model.get_evals_result()["validation"].values()
    return list(errors)


def _numeric(matrix: Matrix) -> list[int]:
    categorical = set(matrix.categorical)
    return [place for place in range(len(matrix.names)) if place not in categorical]


def _pool(matrix: Matrix, sample: Sample | None = None) -> Any:
    """Numbers first, then categories by the text of their code; a missing category is one of its own."""
    numeric, categorical = _numeric(matrix), list(matrix.categorical)
    codes = np.nan_to_num(matrix.values[:, categorical], nan=-1).astype(np.int64)
    module = library()
    features = module.FeaturesData(
        num_feature_data=np.ascontiguousarray(matrix.values[:, numeric]) if numeric else None,
        cat_feature_data=codes.astype("S").astype(object) if categorical else None,
        num_feature_names=[matrix.names[place] for place in numeric] if numeric else None,
        cat_feature_names=[matrix.names[place] for place in categorical] if categorical else None,
    )
    if sample is None:
        return module.Pool(features)
    return module.Pool(features, label=sample.target, weight=sample.weight)
