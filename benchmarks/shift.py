"""Do trees tell training posts from test posts by what the network says of them? AUC on the block `prototype` alone.

An embedding that was trained on some posts and not on others differs between them; trees learn the difference, and no
hold-out of training posts shows it. So the AUC stands here for networks trained on all posts and on the training posts
alone, beside that of the raw vectors, which saw neither; and beside it the score on the rows of `report` of the stack
over a network that never saw them.

    python -m benchmarks.shift
    python -m benchmarks.shift --folder ../other

Needs `dvc repro featurize embed_image embed_text`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.networks import Bench
from popularity.config import load_params
from popularity.evaluation.metrics import score
from popularity.evaluation.probes import Estimate, train_test_auc
from popularity.schema import FOLDS, read_table
from popularity.splits import rows_of
from popularity.stack import StackParams
from popularity.stack.blocks import PROTOTYPE_VECTORS, Blocks, dense_rows, read_blocks
from popularity.stack.fit import fit_and_predict, load_fold
from popularity.stage import run


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="project folder with data and params.yaml")
    args = parser.parse_args(argv)
    bench = Bench.here(args.folder)
    image, text = (bench.data / "embeddings" / name for name in ("image", "text"))
    table: list[dict[str, object]] = []
    for transductive in (True, False):
        vectors, _ = bench.embed(bench.network(replace(bench.train, transductive=transductive)))
        blocks = read_blocks(image, text, vectors)
        if not table:
            table.append(_row("raw image + text", _auc(bench, blocks, ("image", "title", "tags"), scalars=False)))
        table.append(
            _row(f"prototype, train.transductive {transductive}", _auc(bench, blocks, PROTOTYPE_VECTORS, scalars=True))
        )
    with pl.Config(fmt_str_lengths=60):
        print(pl.DataFrame(table))
        print(pl.DataFrame([_report(bench, unseen) for unseen in (False, True)]))


def _row(block: str, auc: Estimate) -> dict[str, object]:
    return {"block": block, "train-test AUC": auc.value, "low": auc.low, "high": auc.high}


def _auc(bench: Bench, blocks: Blocks, names: Sequence[str], *, scalars: bool) -> Estimate:
    pids = bench.posts["pid"].to_list()
    columns = [dense_rows(blocks, name, pids) for name in names if name in blocks.vectors]
    if scalars:
        columns.append(blocks.scalars.drop("pid").to_numpy().astype(np.float32))
    return train_test_auc(
        np.hstack(columns), (bench.posts["split"] == "test").to_numpy(), bench.posts["uid"].to_numpy(),
        folds=5, resamples=500, confidence=0.95, threads=2, seed=0,
    )  # fmt: skip


def _report(bench: Bench, unseen: bool) -> dict[str, object]:
    """Score on the rows of `report`, over a network that was trained on them or one that never saw them."""
    splits = read_table(bench.data / "interim/splits.parquet", FOLDS)
    ((key, rows),) = rows_of(splits, ["report"])
    without = rows.filter(role="score")["pid"] if unseen else None
    vectors, _ = bench.embed(bench.network(bench.train, without=without), without=without)
    stack = replace(load_params("stack", StackParams, bench.params), seeds=1)
    blocks = read_blocks(bench.data / "embeddings/image", bench.data / "embeddings/text", vectors)
    predicted = fit_and_predict(load_fold(key, rows, bench.posts, bench.data / "features"), blocks, stack)
    both = predicted.join(bench.posts.select("pid", "label"), on="pid", validate="1:1")
    found = score(both["label"].to_numpy(), both["prediction"].to_numpy())
    name = "never saw the report rows" if unseen else "saw them"
    return {"network": name, "report SRC": found["src"], "report MAE": found["mae"]}


if __name__ == "__main__":
    run(main)
