"""Is the network better than what it starts from? Its heads against bare class names and against linear probes.

For each seed a fifth of the posts is held out: neither trained on nor among the representatives. On them the top-1
accuracy of the three heads and of their mean stands beside that of bare class names (zero-shot: the same text tower
without context vectors) and of logistic regressions on the same frozen vectors, penalty tuned inside the fit rows.

    python -m benchmarks.class_heads
    python -m benchmarks.class_heads --folder ../other --seeds 3

Seeds 0 to 2 chose the default temperatures of the demo data; the default here is others.

Needs `dvc repro embed_image embed_text`. Intervals are over users and seeds, of differences on the same posts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from benchmarks.networks import Bench
from popularity.evaluation.bootstrap import interval
from popularity.evaluation.probes import linear_probe
from popularity.network.heads import HEADS, head_log_probabilities
from popularity.network.inputs import training_rows
from popularity.network.losses import global_logits
from popularity.network.params import CLASS_LEVEL
from popularity.stage import run
from popularity.training.batches import load_batches

Hits = dict[str, npt.NDArray[np.bool_]]
PENALTIES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 0.2
COMPARED = (
    ("global_prompt", "zero-shot"),
    ("local_prompt", "zero-shot"),
    ("mean", "probe image + text"),
    ("mean", "probe image"),
    ("mean", "probe text"),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="project folder with data and params.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args(argv)
    bench = Bench.here(args.folder)
    each = [_hits(bench, seed) for seed in args.seeds]
    table = [{"system": name, "top_1": float(np.mean([hits[name].mean() for hits, _ in each]))} for name in each[0][0]]
    print(pl.DataFrame(table))
    print(pl.DataFrame([_difference(each, *pair, resamples=args.resamples) for pair in COMPARED]))


def _hits(bench: Bench, seed: int) -> tuple[Hits, npt.NDArray[np.str_]]:
    """Whether each system is right about each held-out post, and the posts' users."""
    params = replace(bench.train, seed=seed, validation_share=0.0)
    inputs = bench.inputs(bench.prototypes(params.transductive), params)
    fit, held_out = training_rows(bench.posts, inputs.vectors, replace(params, validation_share=HELD_OUT))
    without = bench.posts["pid"].gather(held_out)
    folder = bench.network(params, without=without)
    network, posts, inputs = bench.load(folder, without=without)
    target = inputs.vectors.target[:, inputs.vectors.levels.index(CLASS_LEVEL)]
    # A class may have lost all its posts to those held out.
    fit, held_out = fit[target[fit] >= 0], held_out[target[held_out] >= 0]
    users = bench.posts["uid"].to_numpy().astype(np.str_)
    every = np.arange(bench.posts.height)
    image, text = inputs.vectors.images(every), inputs.vectors.texts(every)
    found: Hits = {}
    with torch.inference_mode():
        names = global_logits(torch.from_numpy(text[held_out]), network.text_tower(None, network.names).pooled)
        found["zero-shot"] = names.argmax(dim=1).numpy() == target[held_out]
        passes = [held_out[start : start + 256] for start in range(0, len(held_out), 256)]
        prompts = network.class_prompts()
        outputs = [
            head_log_probabilities(network, network(batch, prompts))
            for batch in load_batches(posts.read, passes, torch.device("cpu"), 0)
        ]
    for head in HEADS:
        found[head] = torch.cat([part[head].argmax(dim=1) for part in outputs]).numpy() == target[held_out]
    for name, features in (("image", image), ("text", text), ("image + text", np.hstack([image, text]))):
        shares = linear_probe(
            features[fit], target[fit], features[held_out],
            classes=len(inputs.names), penalties=PENALTIES, folds=3, groups=users[fit], seed=seed,
        )  # fmt: skip
        found[f"probe {name}"] = shares.argmax(axis=1) == target[held_out]
    return found, users[held_out]


def _difference(
    each: Sequence[tuple[Hits, npt.NDArray[np.str_]]], first: str, second: str, resamples: int
) -> dict[str, object]:
    """Mean over the seeds of the difference in accuracy; a draw takes seeds, and users in each, with replacement."""
    rng = np.random.default_rng(0)
    values, draws = [], np.zeros((len(each), resamples))
    for number, (hits, users) in enumerate(each):
        difference = hits[first].astype(float) - hits[second]
        values.append(difference.mean())
        place = np.unique(users, return_inverse=True)[1]
        totals, counts = np.bincount(place, difference), np.bincount(place)
        picked = rng.integers(len(counts), size=(resamples, len(counts)))
        draws[number] = totals[picked].sum(axis=1) / counts[picked].sum(axis=1)
    seeds = rng.integers(len(each), size=(len(each), resamples))
    low, high = interval(np.take_along_axis(draws, seeds, axis=0).mean(axis=0), 0.95)
    return {"first": first, "minus": second, "difference": float(np.mean(values)), "low": low, "high": high}


if __name__ == "__main__":
    run(main)
