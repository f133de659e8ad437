r"""Scores the predictions of every scheme, with intervals, and prints the score table.

Reads data/interim/posts.parquet, data/interim/splits.parquet, data/ensemble/predictions.parquet,
data/stack/trends.parquet, data/ensemble/importance.csv and reports/split.json; writes reports/metrics.json,
reports/scores.txt (the table it prints), reports/scores.csv, reports/scores_by_group.csv, reports/calibration.json and
reports/coverage.csv (of the intervals around the predictions), reports/promise.csv and reports/promise.json (what the
splits in time promise for one another and for the test part) and reports/plots/.

    python -m stages.evaluate --posts data/interim/posts.parquet --splits data/interim/splits.parquet \
        --predictions data/ensemble/predictions.parquet --trends data/stack/trends.parquet \
        --importance data/ensemble/importance.csv --split-summary reports/split.json \
        --metrics reports/metrics.json --table reports/scores.txt --scores reports/scores.csv \
        --groups reports/scores_by_group.csv --calibration reports/calibration.json --coverage reports/coverage.csv \
        --promise reports/promise.csv --promise-metrics reports/promise.json \
        --plots reports/plots --resources reports/resources/evaluate.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from popularity.core.atomic import read_json
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import FOLDS, POSTS, PREDICTIONS, TRENDS, read_table
from popularity.core.stage import record_resources, run
from popularity.evaluation.scores import EvaluateConfig
from popularity.evaluation.tables import EvaluationInputs, EvaluationPaths, evaluate, read_importance, write_evaluation


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("posts", "splits", "predictions", "trends", "importance", "split-summary"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="input")
    outputs = ("metrics", "table", "scores", "groups", "calibration", "coverage", "promise", "promise-metrics", "plots")
    for name in (*outputs, "resources"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="output")
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    args = parser.parse_args(argv)
    config = load_params("evaluate", EvaluateConfig, args.params)
    with record_resources("evaluate", args.resources):
        inputs = EvaluationInputs(
            posts=read_table(args.posts, POSTS),
            splits=read_table(args.splits, FOLDS),
            predictions=read_table(args.predictions, PREDICTIONS),
            trends=read_table(args.trends, TRENDS),
            importance=read_importance(args.importance),
            split_summary=read_json(args.split_summary),
        )
        evaluation = evaluate(inputs, config)
        write_evaluation(
            evaluation,
            EvaluationPaths(
                metrics=args.metrics,
                table=args.table,
                scores=args.scores,
                groups=args.groups,
                calibration=args.calibration,
                coverage=args.coverage,
                promise=args.promise,
                promise_metrics=args.promise_metrics,
                plots=args.plots,
            ),
        )
    print(evaluation.table)


if __name__ == "__main__":
    run(main)
