"""Extra trees (Geurts et al., 2006) of LightGBM on the squared error, with parameters of their own.

A mean of labels orders posts better than a median does, and random thresholds err elsewhere than searched ones; the
level of the mean does not count, because the ensemble weights leave the median of the errors out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import lightgbm as lgb

from popularity.stack import lightgbm
from popularity.stack.lightgbm import SUFFIX, describe, load, predict, save, shap_values
from popularity.stack.params import StackParams
from popularity.stack.sample import Learned, Sample
from popularity.validation.inner_cv import InnerSplit

__all__ = ["SUFFIX", "describe", "fit", "learn", "load", "predict", "save", "shap_values"]


def learn(sample: Sample, splits: Sequence[InnerSplit], params: StackParams) -> Learned:
    """As `lightgbm.learn`, with the parameters of section stack.extra_trees."""
    return lightgbm.learn(sample, splits, _own(params))


def fit(sample: Sample, chosen: int, params: StackParams, seed: int) -> lgb.Booster:
    """As `lightgbm.fit`, with the parameters of section stack.extra_trees."""
    return lightgbm.fit(sample, chosen, _own(params), seed)


def _own(params: StackParams) -> StackParams:
    return replace(params, lightgbm=params.extra_trees)
