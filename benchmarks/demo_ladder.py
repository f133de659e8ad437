"""Scores of stack, metadata, user mean and constant, and of each step between them, on several demo data sets.

For each seed the generator makes another data set, and the stages of dvc.yaml run on it in this process. The scored
posts are the valid rows of `holdout` and the test part, whose labels only the generator knows. A score is the mean of
the seeds' scores. Its interval is from a bootstrap in which every seed draws its own users: it shows how the score of
these models varies with the users, not with the training data.

    python -m benchmarks.demo_ladder
    python -m benchmarks.demo_ladder --seeds 1 2 --posts 900 --work .state/ladder --csv ladder.csv
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, chdir
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

import popularity
from benchmarks.graph import expanded
from benchmarks.tables import add_csv_flag, text_table, write_csv
from popularity.core.atomic import fingerprint, write_json
from popularity.core.config import PARAMS_FILE, load_params, read_yaml
from popularity.core.contracts import FOLDS, HOLDOUT, POSTS, PREDICTIONS, REFIT, read_table
from popularity.core.metrics import score
from popularity.core.stage import run
from popularity.evaluation.bootstrap import interval, resample
from popularity.evaluation.scores import COMPARED, MODELS, EvaluateConfig, check_predictions

LAST_STAGE = "ensemble"  # later stages score and report
POSTS_FILE, SPLITS_FILE = Path("data/interim/posts.parquet"), Path("data/interim/splits.parquet")
PREDICTIONS_FILE = Path("data/ensemble/predictions.parquet")
TRUTH = Path("data/demo_truth")
SCORED = {HOLDOUT: HOLDOUT, "test truth": REFIT}  # name in the table -> scheme
BEST = "best reachable"  # the generator's expectation without the noise
HIGHER_IS_BETTER = {"src": True, "mae": False}
BETTER, WORSE, UNDECIDED = "outside: better", "outside: WORSE", "INSIDE"
TABLE = {
    "rows": pl.String,
    "model": pl.String,
    "minus": pl.String,  # null: the score of `model`; else the difference `model` - `minus`
    "metric": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "each_seed": pl.String,
    "verdict": pl.String,  # of a difference: is 0 outside its interval?
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="of the generator")
    parser.add_argument("--posts", type=int, help="per data set, with users in proportion; default: demo.posts")
    parser.add_argument("--work", type=Path, help="folder of the data sets; finished stages do not run again")
    add_csv_flag(parser)
    args = parser.parse_args(argv)
    config = load_params("evaluate", EvaluateConfig, args.params)
    seeds, stages = sorted(set(args.seeds)), stages_until(LAST_STAGE)
    with ExitStack() as stack:
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ladder.")))
        folders = {seed: run_stages(stages, params_of(seed, args.posts, args.params), work.resolve()) for seed in seeds}
        frames = {name: {seed: scored_rows(folders[seed], SCORED[name]) for seed in seeds} for name in SCORED}
    table = pl.concat(ladder(name, by_seed, config) for name, by_seed in frames.items())
    print(f"Demo data, seeds {seeds}, {config.confidence_level:.0%} intervals by bootstrap over users")
    for name, by_seed in frames.items():
        users = sum(rows["uid"].n_unique() for rows in by_seed.values())
        print(f"{name}: {sum(map(len, by_seed.values())):,} posts of {users:,} users")
    print(text_table(table.to_dicts()))
    write_csv(table.to_dicts(), args.csv)
    failed_steps = table.filter(pl.col("minus").is_not_null() & (pl.col("verdict") != BETTER))
    named = [f"{row['rows']} {row['model']} - {row['minus']} ({row['metric']})" for row in failed_steps.to_dicts()]
    print(f"steps that are not better: {', '.join(named)}" if named else "every step is better")


def params_of(seed: int, posts: int | None, file: Path) -> dict[str, Any]:
    """The content of params.yaml for one data set, without a search of the stack's parameters."""
    params: dict[str, Any] = read_yaml(file)
    demo = params["demo"]
    if posts is not None:
        demo |= {"posts": posts, "users": round(demo["users"] * posts / demo["posts"])}
    demo["seed"] = seed
    params["dataset"]["root"] = "data/demo"
    params["stack"]["schemes"] = [HOLDOUT]
    params["tune"]["candidates"] = []
    params["tune"]["n_trials"] = 0
    return params


def stages_until(last: str) -> list[str]:
    """The stages of dvc.yaml in its order, `last` included."""
    stages = list(read_yaml(Path("dvc.yaml"))["stages"])
    return stages[: stages.index(last) + 1]


def commands_of(stages: Sequence[str], params: Mapping[str, Any]) -> dict[str, str]:
    """The commands of the stages as dvc.yaml has them, in its order; of an embed stage one for each encoder."""
    graph = expanded(read_yaml(Path("dvc.yaml")), params)
    return {name: stage["cmd"] for name, stage in graph.items() if name.partition("@")[0] in stages}


def stage_folder(stages: Sequence[str], params: Mapping[str, Any], work: Path) -> Path:
    """The folder below `work` in which the stages run with `params`; its name depends on parameters and code."""
    roots = (Path(popularity.__file__).parent, Path("stages"))
    code = [file for root in roots for file in sorted(root.rglob("*.py"))]
    return work / f"seed_{params['demo']['seed']}-{fingerprint(params, commands_of(stages, params), *code)}"


def run_stages(stages: Sequence[str], params: Mapping[str, Any], work: Path) -> Path:
    """The `stage_folder` after the stages have run in it, in process."""
    commands, folder = commands_of(stages, params), stage_folder(stages, params, work)
    seed = params["demo"]["seed"]
    write_json(folder / PARAMS_FILE, params)  # JSON is YAML
    with chdir(folder):  # the commands of dvc.yaml name paths relative to where they run
        for name, command in (progress := tqdm(commands.items(), unit="stage")):
            progress.set_description(f"seed {seed} {name}")
            if Path(f"reports/resources/{name.replace('@', '_')}.json").exists():  # a stage writes its cost record last
                continue
            words, module = shlex.split(command), f"stages.{name.partition('@')[0]}"
            importlib.import_module(module).main(words[words.index(module) + 1 :])
    return folder


def scored_rows(folder: Path, scheme: str) -> pl.DataFrame:
    """pid, uid, label, and one column per model and BEST: the scored posts of a scheme, sorted by pid."""
    posts = read_table(folder / POSTS_FILE, POSTS)
    predictions = read_table(folder / PREDICTIONS_FILE, PREDICTIONS)
    check_predictions(read_table(folder / SPLITS_FILE, FOLDS), predictions)
    labels = pl.concat(
        [posts.select("pid", "label").drop_nulls(), pl.read_parquet(folder / TRUTH / "test_labels.parquet")]
    )
    best = pl.read_parquet(folder / TRUTH / "effects.parquet").select("pid", pl.col("expected").alias(BEST))
    means = predictions.filter(pl.col("scheme") == scheme).group_by("pid", "model").agg(pl.col("prediction").mean())
    rows = means.pivot(on="model", index="pid", values="prediction").sort("pid")
    for columns in (posts.select("pid", "uid"), labels, best):
        rows = rows.join(columns, on="pid", how="left", validate="1:1", maintain_order="left")
    return rows.select("pid", "uid", "label", *MODELS, BEST)


def ladder(name: str, by_seed: Mapping[int, pl.DataFrame], config: EvaluateConfig) -> pl.DataFrame:
    """Scores of all models, then the steps between neighbours of MODELS: columns TABLE.

    Args:
        name: of the scored rows.
        by_seed: seed -> `scored_rows`; users of different seeds are different people.
        config: number of draws and width of the intervals.
    """
    models = [*MODELS, BEST]
    values = {metric: np.empty((len(by_seed), len(models))) for metric in COMPARED}
    draws = {metric: np.zeros((config.n_resamples, len(models))) for metric in COMPARED}
    for index, (seed, rows) in enumerate(by_seed.items()):
        labels, predictions = rows["label"].to_numpy(), rows.select(models).to_numpy()
        users = rows["uid"].rank("dense").to_numpy().astype(np.int64) - 1
        # Another seed for each data set: equal seeds would draw the same positions in every list of users.
        drawn = resample(labels, predictions, users, resamples=config.n_resamples, seed=config.seed + seed)
        scores = [score(labels, column) for column in predictions.T]
        for metric in COMPARED:
            values[metric][index] = [np.nan if one[metric] is None else one[metric] for one in scores]
            draws[metric] += drawn[metric] / len(by_seed)
    # A constant ranks nothing: its SRC is undefined, and a step from it is measured from 0.
    constant = MODELS.index("constant")
    values["src"][:, constant] = draws["src"][:, constant] = 0.0

    def row(metric: str, model: int, minus: int | None) -> dict[str, Any]:
        each, drawn = values[metric][:, model], draws[metric][:, model]
        if minus is not None:
            each, drawn = each - values[metric][:, minus], drawn - draws[metric][:, minus]
        low, high = interval(drawn, config.confidence_level)
        return {
            "rows": name,
            "model": models[model],
            "minus": None if minus is None else models[minus],
            "metric": metric,
            "value": float(each.mean()),
            "low": low,
            "high": high,
            "each_seed": " ".join(f"{value:{'' if minus is None else '+'}.3f}" for value in each),
            "verdict": None if minus is None else verdict(low, high, higher_is_better=HIGHER_IS_BETTER[metric]),
        }

    alone = [
        row(metric, model, None)
        for model in range(len(models))
        for metric in COMPARED
        if (metric, model) != ("src", constant)
    ]
    steps = [row(metric, *step) for step in pairwise(range(len(MODELS))) for metric in COMPARED]
    return pl.DataFrame(alone + steps, schema=TABLE)


def verdict(low: float | None, high: float | None, *, higher_is_better: bool) -> str:
    """Whether 0 lies outside the interval of a difference, and on which side."""
    if low is None or high is None or low <= 0 <= high:
        return UNDECIDED
    return BETTER if (low > 0) == higher_is_better else WORSE


if __name__ == "__main__":
    run(main)
