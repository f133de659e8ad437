"""LightGBM on workers of a Dask cluster beside one machine: how near, and how near another seed on one machine is.

    python -m benchmarks.workers
    python -m benchmarks.workers --rows 100000 --seeds 3 --workers 2 4 --scheduler tcp://10.0.0.1:8786

On made posts with weights, categories and missing values, by the parameters in params.yaml but in fewer and longer
steps: rounds from the inner cuts, then a fit, both on the workers. Correlation of the predictions of rows that were not
fitted with those of one machine, and the ratio of the errors (RMSE) there, mean and range over seeds. Then the same
without what makes them differ: bags, of which each worker draws its own; absolute errors, whose leaves are medians; and
weights, whose sums are rounded.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.measuring import REPOSITORY
from popularity.config import PARAMS_FILE, load_params
from popularity.stack import StackParams, lightgbm_learner
from popularity.stack.cluster import LOCAL, ClusterParams, connected
from popularity.stack.columns import metadata_columns
from popularity.stack.inner import Array, Rows, Sample, inner_cuts
from popularity.stack.matrix import Matrix

COLUMNS = 40


@dataclass(frozen=True)
class Near:
    """A fit beside that of one machine with the first seed."""

    correlation: float
    error: float  # its RMSE over that of one machine
    rounds: int
    seconds: float


def made_posts(rows: int, seed: int, *, weighted: bool) -> tuple[Sample, Rows]:
    """A sample in no order of time, and its dates."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, COLUMNS)).astype(np.float32)
    values[:, 0] = rng.zipf(1.5, rows).clip(max=200)
    values[rng.random(values.shape) < 0.05] = np.nan
    known = np.nan_to_num(values)
    label = rng.normal(size=201)[known[:, 0].astype(int)] + known[:, 1:11] @ rng.normal(size=10) / 2
    label += np.sin(2 * known[:, 11]) + known[:, 12] * known[:, 13] + rng.normal(size=rows)
    columns = metadata_columns(["column0"], "category")
    columns += metadata_columns([f"column{place}" for place in range(1, COLUMNS)], "number")
    matrix = Matrix(values, [str(row) for row in range(rows)], columns)
    weight = rng.uniform(0.5, 1.5, rows)
    return Sample(matrix, label, weight if weighted else None), rng.permutation(rows)


def taken(sample: Sample, rows: Rows) -> Sample:
    matrix = replace(sample.matrix, values=sample.matrix.values[rows], pids=[sample.matrix.pids[row] for row in rows])
    return Sample(matrix, sample.target[rows], None if sample.weight is None else sample.weight[rows])


def compare(
    params: StackParams, rows: int, seed: int, clusters: Sequence[ClusterParams], *, weighted: bool = True
) -> Iterator[tuple[str, Near]]:
    """Another seed, then each of `clusters`, by name: all fitted on 70 % of the rows and measured on the others."""
    sample, posted_at = made_posts(rows, seed, weighted=weighted)
    order = np.random.default_rng(seed).permutation(rows)
    mine, other = np.sort(order[: rows * 7 // 10]), np.sort(order[rows * 7 // 10 :])
    fitted, left = taken(sample, mine), taken(sample, other)
    cuts = inner_cuts(posted_at[mine], params.inner_cuts, params.inner_share)

    def run(own: StackParams) -> tuple[Array, int, float]:
        with connected(own.cluster):
            started = time.perf_counter()
            rounds = lightgbm_learner.learn(fitted, cuts, own).chosen
            model = lightgbm_learner.fit(fitted, rounds, own, own.seed)
            return lightgbm_learner.predict(model, left.matrix), rounds, time.perf_counter() - started

    def error(predicted: Array) -> float:
        return float(np.sqrt(np.mean((predicted - left.target) ** 2)))

    one = replace(params, seed=seed, cluster=ClusterParams(0, LOCAL))
    first, _, _ = run(one)
    others = {"another seed": replace(one, seed=seed + 1000)}
    others |= {f"{cluster.workers} workers": replace(one, cluster=cluster) for cluster in clusters}
    for name, own in others.items():
        predicted, rounds, seconds = run(own)
        near = float(np.corrcoef(first, predicted)[0, 1])
        yield name, Near(near, error(predicted) / error(first), rounds, seconds)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=6_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--scheduler", default=LOCAL)
    args = parser.parse_args(argv)
    params = load_params("stack", StackParams, REPOSITORY / PARAMS_FILE)
    params = replace(params, max_rounds=400, patience=50, trees=replace(params.trees, learning_rate=0.1))
    bare = replace(params, trees=replace(params.trees, objective="regression", bagging_fraction=1.0))
    clusters = [ClusterParams(workers, args.scheduler) for workers in args.workers]
    print("| fit | beside one machine | correlation, least | RMSE ratio, mean | range | rounds, mean | s, mean |")
    print("|---|---|---|---|---|---|---|")
    for title, own, weighted in (("params.yaml", params, True), ("squared error, no bags, no weights", bare, False)):
        found: dict[str, list[Near]] = {}
        for seed in range(args.seeds):
            for name, near in compare(own, args.rows, seed, clusters, weighted=weighted):
                found.setdefault(name, []).append(near)
        for name, each in found.items():
            ratios = [near.error for near in each]
            print(
                f"| {title} | {name} | {min(near.correlation for near in each):.4f} | {np.mean(ratios):.4f} "
                f"| {min(ratios):.4f} to {max(ratios):.4f} | {np.mean([near.rounds for near in each]):.0f} "
                f"| {np.mean([near.seconds for near in each]):.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
