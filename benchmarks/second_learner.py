"""Is a second learner worth its dependency? LightGBM alone against its blend with CatBoost, on the selection schemes.

Every fold of the schemes is fitted as the stage `stack` fits it, with one seed, and scored out of fold; weights of the
blend come from cuts in time inside the fit rows. An interval is over users, of the difference on the same draws: below
0 in mae and above 0 in src speak for the blend.

    python -m benchmarks.second_learner                                 # the project here, as params.yaml fits
    python -m benchmarks.second_learner --folder ../other --schemes matched --rounds 200   # a look

Needs `dvc repro embed_posts`, and the optional extra: pip install -e '.[catboost]'.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from tqdm import tqdm

from popularity.config import PARAMS_FILE, load_params
from popularity.evaluation.metrics import FloatArray, score
from popularity.evaluation.probes import paired_interval
from popularity.files import atomic_path
from popularity.schema import FOLDS, POSTS, read_table
from popularity.splits import rows_of
from popularity.stack import StackModel, StackParams, read_blocks
from popularity.stack.blocks import Blocks
from popularity.stack.fit import Fold, fit_model, kept_fold, load_fold
from popularity.stage import run

ALONE, OTHER, BOTH = "LightGBM", "CatBoost", "blend"
METRICS: tuple[Literal["src", "mae"], ...] = ("src", "mae")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="project folder with data and params.yaml")
    parser.add_argument("--schemes", nargs="+", choices=["matched", "user"], default=["matched", "user"])
    parser.add_argument("--rounds", type=int, help="at most so many, instead of stack.max_rounds")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="the table as CSV")
    args = parser.parse_args(argv)
    params = load_params("stack", StackParams, args.folder / PARAMS_FILE)
    params = replace(params, seeds=1, max_rounds=args.rounds or params.max_rounds)
    data = args.folder / "data"
    posts = read_table(data / "interim/posts.parquet", POSTS)
    blocks = read_blocks(*(data / "embeddings" / name for name in ("image", "text", "prototype")))
    splits = read_table(data / "interim/splits.parquet", FOLDS)
    keys = list(rows_of(splits, args.schemes))
    folds, scored = [], []
    for key, rows in tqdm(keys, unit="fold"):
        facts, predictions = compare(load_fold(key, rows, posts, data / "features"), blocks, params)
        folds.append(facts)
        scored.append(predictions.join(posts.select("pid", "uid", "label"), on="pid", how="left", validate="1:1"))
    rows = pl.concat(scored)
    table = pl.concat(differences(scheme, rows.filter(scheme=scheme), args.resamples) for scheme in args.schemes)
    if args.out:
        with atomic_path(args.out) as partial:
            table.write_csv(partial)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=160, tbl_hide_dataframe_shape=True):
        print(pl.DataFrame(folds))
        print(table)


def compare(data: Fold, blocks: Blocks, params: StackParams) -> tuple[Mapping[str, object], pl.DataFrame]:
    """What two learners cost and weigh in a fold, and (scheme, pid, predictions) of its scored rows."""
    models: dict[str, StackModel] = {}
    seconds: dict[str, float] = {}
    for name, use in ((ALONE, False), (BOTH, True)):
        started = time.perf_counter()
        given = replace(params, second=replace(params.second, use=use))
        models[name] = fit_model(kept_fold(data, blocks, params), blocks, params.columns, given, "stack")
        seconds[name] = time.perf_counter() - started
    models[OTHER] = replace(models[BOTH], share=0.0)
    predictions = {name: models[name].predict(data.score, blocks).values for name in (ALONE, OTHER, BOTH)}
    facts = {
        "scheme": data.scheme,
        "repeat": data.repeat,
        "fold": data.fold,
        "LightGBM's share": models[BOTH].share,
        "seconds alone": round(seconds[ALONE], 1),
        "seconds both": round(seconds[BOTH], 1),
    }
    return facts, pl.DataFrame({"scheme": data.scheme, "pid": data.score["pid"], **predictions})


def differences(scheme: str, rows: pl.DataFrame, resamples: int) -> pl.DataFrame:
    """Scores of the three in a scheme, and what the blend and CatBoost have over LightGBM alone."""
    labels, users = rows["label"].to_numpy(), rows["uid"].to_numpy()
    values: dict[str, FloatArray] = {name: rows[name].to_numpy()[:, None] for name in (ALONE, OTHER, BOTH)}
    table = []
    for metric in METRICS:
        for name, mine in values.items():
            line = {"scheme": scheme, "metric": metric, "model": name, "score": score(labels, mine[:, 0])[metric]}
            bounds: dict[str, float | None] = {"minus LightGBM": None, "low": None, "high": None}
            if name != ALONE:
                found = paired_interval(
                    labels, mine, values[ALONE], users, metric=metric, resamples=resamples, confidence=0.95, seed=0
                )
                bounds = {"minus LightGBM": found.value, "low": found.low, "high": found.high}
            table.append(line | bounds | {"posts": len(rows), "users": len(np.unique(users))})
    return pl.DataFrame(table, schema_overrides={"minus LightGBM": pl.Float64, "low": pl.Float64, "high": pl.Float64})


if __name__ == "__main__":
    run(main)
