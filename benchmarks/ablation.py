"""The gain of each part of the method: scores of the stack without it on scheme `forward`, mean over its splits.

For each seed one whole network is trained. Rows that only leave out columns reuse it; rows that change the attention
train the attention alone and keep its prompts (the two share no loss); only the rows of instance prompts and of adapted
towers train all of it again, and their stack reads the vectors that the network then gives. Networks, vectors and fits
are cached in .state/benchmarks: an interrupted run resumes, and a finished one only prints. benchmarks.networks scores
the same networks without a stack, from the same cache.

    python -m benchmarks.ablation                                # 3 seeds, as params.yaml trains
    python -m benchmarks.ablation --steps 150 --precision bf16   # shorter; bf16 on a CPU that knows it
    python -m benchmarks.ablation --seeds 0 --steps 100          # a quick check
    python -m benchmarks.ablation --folder ../other --only "raw embeddings only" "Eq 11 as printed" --csv ablation.csv

Needs `dvc repro featurize embed_image embed_text`. A score is the mean over the seeds; an interval is over users and
seeds, of the difference to row REFERENCE, on the same draws.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
from tqdm import tqdm

from benchmarks.networks import Bench, trained_as
from benchmarks.systems import METRICS, Scored, block_folders, paired_interval
from benchmarks.tables import add_csv_flag, signed_interval, text_table, verdict, write_csv
from popularity.core.atomic import atomic_path, fingerprint
from popularity.core.config import load_params
from popularity.core.contracts import FOLDS, read_table
from popularity.core.metrics import score
from popularity.core.parallel import ordered_map
from popularity.core.resume import code_fingerprint
from popularity.core.stage import run
from popularity.core.vectors import Block
from popularity.encoders.sources import Precision
from popularity.network.params import LevelName, NetworkParams, TrainParams
from popularity.stack import StackParams
from popularity.stack.feature_blocks import Blocks, PrototypePart, read_blocks
from popularity.stack.fit import fit_and_predict
from popularity.stack.row_selection import RowSelectionParams
from popularity.validation import rows_of
from popularity.validation.folds import Fold, load_fold

logger = logging.getLogger(__name__)
Head = Literal["global", "local", "attention"]
Change = Callable[[NetworkParams], NetworkParams]

ATTENDED: tuple[PrototypePart, ...] = ("attended_image", "attended_visual", "attended_text")
EQ_11: tuple[PrototypePart, ...] = ("global_prompt", "local_prompt", *ATTENDED)
ALL_ROWS = RowSelectionParams(1.0, "low_loss")
LEVELS: tuple[LevelName, ...] = ("category", "subcategory", "concept")
CLASS_FEATURES = ("category", "subcategory", "concept")
REFERENCE = "Eq 11 + logits and losses"


@dataclass(frozen=True)
class System:
    """A row of the table.

    Args:
        blocks: feature blocks of the stack.
        parts: of the block prototype.
        without_heads: heads whose logits, losses and other values are left out.
        network: change of the network's parameters.
        whole: the changed network trains its prompts too.
        unfreeze_layers: last layers of both encoders that the changed network trains; then it trains its prompts too.
        row_selection: train rows of the stack.
        classes: whether metadata has the class.
    """

    blocks: tuple[str, ...] = ("metadata", "image", "text", "prototype")
    parts: tuple[PrototypePart, ...] = (*EQ_11, "logits", "losses")
    without_heads: tuple[Head, ...] = ()
    network: Change | None = None
    whole: bool = False
    unfreeze_layers: int = 0
    row_selection: RowSelectionParams = ALL_ROWS
    classes: bool = True


@dataclass(frozen=True)
class Fit:
    """A fit of the stack for a row of the table, and the file of its predictions."""

    system: System
    stack: StackParams
    vectors: Path
    path: Path


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="project folder with data and params.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="training steps; replaces train.epochs")
    parser.add_argument("--precision", choices=get_args(Precision), help="of the networks; replaces train.precision")
    parser.add_argument("--only", nargs="+", choices=list(SYSTEMS), help="rows; the reference is always included")
    parser.add_argument("--resamples", type=int, default=1000)
    add_csv_flag(parser)
    args = parser.parse_args(argv)
    bench = Bench.here(args.folder)
    names = [name for name in SYSTEMS if not args.only or name in args.only or name == REFERENCE]
    folds = _forward_folds(bench)
    predictions: dict[str, list[pl.DataFrame]] = {name: [] for name in names}
    for seed in args.seeds:
        params = trained_as(replace(bench.train, seed=seed), args.steps, args.precision)
        fits: dict[str, Fit] = {}
        for name in names:
            fits[name] = _fit_of(bench, SYSTEMS[name], params, seed)
            logger.info("seed %d: network of %s", seed, name)
        _fit_all(bench, list(fits.values()), folds)
        for name, fit in fits.items():
            predictions[name].append(pl.read_parquet(fit.path))
    table = _table(bench, predictions, folds, args.resamples)
    print(text_table([_printed(row) for row in table]))
    write_csv(table, args.csv)


def _with_attention(**changes: object) -> Change:
    return lambda network: replace(network, attention=replace(network.attention, **changes))  # type: ignore[arg-type]


def _with_levels(network: NetworkParams) -> NetworkParams:
    return replace(network, prototypes=replace(network.prototypes, levels=LEVELS, tokens="top_k"))


def _with_weights(network: NetworkParams, **changes: float) -> NetworkParams:
    return replace(network, weights=replace(network.weights, **changes))


def _with_consistency(network: NetworkParams) -> NetworkParams:
    return _with_weights(_with_levels(network), consistency=1.0)


def _supervised(network: NetworkParams) -> NetworkParams:
    return replace(_with_weights(network, contrastive=1.0), same_class_positives=True)


def _with_instances(network: NetworkParams) -> NetworkParams:
    return replace(network, prompts=replace(network.prompts, instance_length=4))


def _minus(*parts: PrototypePart) -> tuple[PrototypePart, ...]:
    return tuple(part for part in (*EQ_11, "logits", "losses") if part not in parts)


SYSTEMS: Mapping[str, System] = {
    "metadata without classes": System(blocks=("metadata",), classes=False),
    "metadata + class ids (metadata only)": System(blocks=("metadata",)),
    "raw embeddings only": System(blocks=("image", "text")),
    "metadata + raw embeddings": System(blocks=("metadata", "image", "text")),
    "Eq 11 as printed": System(parts=EQ_11),
    REFERENCE: System(),
    "all our columns": System(parts=(*EQ_11, "logits", "losses", "distance", "unseen")),
    "- global prompt": System(parts=_minus("global_prompt"), without_heads=("global",)),
    "- local prompt": System(parts=_minus("local_prompt"), without_heads=("local",)),
    "- visual prototypes": System(parts=_minus("attended_visual"), network=_with_attention(prototypes=("text",))),
    "- text prototypes": System(parts=_minus("attended_text"), network=_with_attention(prototypes=("visual",))),
    "- attention (projections only)": System(network=_with_attention(depth=0)),
    "- all prototypes": System(parts=_minus(*ATTENDED), without_heads=("attention",)),
    "keep 77 % of least loss": System(row_selection=RowSelectionParams(0.77, "low_loss")),
    "keep 77 % at random": System(row_selection=RowSelectionParams(0.77, "random")),
    "keep 77 % of most loss": System(row_selection=RowSelectionParams(0.77, "high_loss")),
    "+ prototypes at three levels": System(network=_with_levels),
    "+ three levels, consistency": System(network=_with_consistency),
    "+ InfoNCE of image and text": System(network=partial(_with_weights, contrastive=1.0)),
    "+ InfoNCE, supervised": System(network=_supervised),
    "+ instance prompts": System(network=_with_instances, whole=True),
    "+ towers adapted": System(unfreeze_layers=1),
    "+ towers adapted, instance prompts": System(network=_with_instances, unfreeze_layers=1),
}


def _forward_folds(bench: Bench) -> list[Fold]:
    splits = read_table(bench.data / "interim/splits.parquet", FOLDS)
    return [load_fold(key, rows, bench.posts, bench.data / "features") for key, rows in rows_of(splits, ["forward"])]


def _fit_of(bench: Bench, system: System, params: TrainParams, seed: int) -> Fit:
    """The fit for a row of the table; its network is trained and its vectors are computed here."""
    base = bench.network(params)
    network = base
    if system.unfreeze_layers or system.network is not None:
        shape = params.network if system.network is None else system.network(params.network)
        changed = replace(params, network=shape, unfreeze_layers=system.unfreeze_layers or params.unfreeze_layers)
        alone = system.whole or system.unfreeze_layers
        network = bench.network(changed, prompts=None if alone else base)
    vectors, _ = bench.embed(network)
    stack = load_params("stack", StackParams, bench.params)
    columns = replace(
        stack.columns,
        feature_blocks=system.blocks,  # type: ignore[arg-type]
        prototype_parts=system.parts,
        oof_ridge=tuple(ridge for ridge in stack.columns.oof_ridge if _has_blocks(system.blocks, ridge)),
    )
    stack = replace(stack, seed=seed, n_seeds=1, columns=columns, row_selection=system.row_selection)
    key = fingerprint(
        asdict(stack),
        code_fingerprint("stack", "target", "ensemble", "validation"),
        system.classes,
        system.without_heads,
        vectors,
        bench.data / "features",
    )
    return Fit(system, stack, vectors, bench.cache / "fits" / f"{key}.parquet")


def _has_blocks(blocks: Sequence[str], ridge: str) -> bool:
    """Whether oof_ridge feature `ridge` has its blocks; `characters` needs metadata and text."""
    return {"metadata", "text"} <= set(blocks) if ridge == "characters" else ridge in blocks


def _fit_all(bench: Bench, fits: Sequence[Fit], folds: Sequence[Fold]) -> None:
    """Writes (pid, prediction) of the valid rows of `forward` for every fit that is not cached."""
    waiting = list({fit.path: fit for fit in fits if not fit.path.exists()}.values())
    if not waiting:
        return
    stack = waiting[0].stack
    tasks = [(fit, fold) for fit in waiting for fold in folds]
    found = ordered_map(partial(_fit_one, bench.data), tasks, parallel=stack.parallel_fits, threads=stack.num_threads)
    parts: list[pl.DataFrame] = []
    for (fit, _), part in zip(tasks, tqdm(found, "fits", len(tasks), unit="fit"), strict=True):
        parts.append(part)
        if len(parts) == len(folds):
            fit.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(fit.path) as partial_file:
                pl.concat(parts).select("pid", "prediction").sort("pid").write_parquet(partial_file)
            parts = []


def _fit_one(data: Path, task: tuple[Fit, Fold]) -> pl.DataFrame:
    fit, fold = task
    blocks = read_blocks(*block_folders(data.parent)[:2], fit.vectors)
    blocks = _without(blocks, fit.system.without_heads)
    return fit_and_predict(fold if fit.system.classes else _classless(fold), blocks, fit.stack)


def _classless(fold: Fold) -> Fold:
    """The fold without any feature of the class."""
    named = [name for name in fold.train.columns if any(level in name for level in CLASS_FEATURES)]
    kept = [level for level in CLASS_FEATURES if level in named]  # the stack encodes these: they become null
    others = [name for name in named if name not in kept]
    train, valid = (
        frame.drop(others).with_columns(pl.lit(None, pl.String).alias(level) for level in kept)
        for frame in (fold.train, fold.valid)
    )
    return replace(fold, train=train, valid=valid)


def _without(blocks: Blocks, heads: Sequence[Head]) -> Blocks:
    """The blocks without the logits and scalars of some heads."""
    if not heads:
        return blocks
    prefixes = tuple({"global": "p.", "local": "p_local.", "attention": "q."}[head] for head in heads)
    endings = tuple(f"{mark}{head}" for head in heads for mark in "._")

    def vectors(given: Mapping[str, Block]) -> dict[str, Block]:
        logits = given["logits"]
        names = logits.metadata["columns"]
        kept = [index for index, name in enumerate(names) if not name.startswith(prefixes)]
        metadata = {**logits.metadata, "columns": [names[index] for index in kept]}
        return {**given, "logits": Block(np.asarray(logits.values)[:, kept], logits.pids, metadata)}

    def scalars(given: pl.DataFrame) -> pl.DataFrame:
        return given.drop(name for name in given.columns if name.endswith(endings))

    masked = blocks.masked
    if masked is not None:
        masked = replace(masked, vectors=vectors(masked.vectors), scalars=scalars(masked.scalars))
    return replace(blocks, vectors=vectors(blocks.vectors), scalars=scalars(blocks.scalars), masked=masked)


def _table(
    bench: Bench, predictions: Mapping[str, list[pl.DataFrame]], folds: list[Fold], resamples: int
) -> list[dict[str, Any]]:
    """A row a system: src, src_difference to REFERENCE, src_low, src_high; the same of mae."""
    scored_posts = (
        predictions[REFERENCE][0].select("pid").join(bench.posts, on="pid", how="left", maintain_order="left")
    )
    scored = pl.concat(fold.valid.select("pid", fold=pl.lit(fold.key.fold)) for fold in folds).sort("pid")
    splits = scored["fold"].to_numpy().astype(np.int64)
    posts = Scored(scored_posts["label"].to_numpy(), scored_posts["uid"].to_numpy(), splits)
    matrices = {
        name: np.stack([frame["prediction"].to_numpy() for frame in frames], axis=1)
        for name, frames in predictions.items()
    }
    rows = []
    for name, values in matrices.items():
        row: dict[str, Any] = {"system": name}
        for metric in METRICS:
            each = [float(score(posts.label, column, splits)[metric] or 0.0) for column in values.T]
            found = paired_interval(posts, values, matrices[REFERENCE], metric, resamples=resamples)
            row |= {metric: float(np.mean(each)), f"{metric}_difference": found.value}
            row |= {f"{metric}_low": found.low, f"{metric}_high": found.high}
        rows.append(row)
    return rows


def _printed(row: Mapping[str, Any]) -> dict[str, Any]:
    line: dict[str, Any] = {"system": row["system"]}
    for metric in METRICS:
        difference, low, high = (row[f"{metric}_{name}"] for name in ("difference", "low", "high"))
        line[metric] = row[metric]
        line[f"{metric} - reference"] = f"{signed_interval(difference, low, high)} {verdict(metric, low, high)}".strip()
    return line


if __name__ == "__main__":
    run(main)
