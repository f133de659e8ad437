"""Does the network know how well picture and text of a post agree? A ridge probe of the demo generator's true effect.

For each seed the generator makes another data set, the graph runs on it up to embed_posts, and a ridge reads the true
effect `agreement` of data/demo_truth on the test posts: from the block `prototype`, and from the raw image and text
vectors with the products of their leading components. Same rows, same number of principal components; the penalty is
tuned on the training posts, where it is fitted.

    python -m benchmarks.agreement_probe
    python -m benchmarks.agreement_probe --seeds 20 --posts 900 --work .state/agreement
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.decomposition import PCA

from benchmarks.demo_ladder import params_of, run_stages
from popularity.config import PARAMS_FILE
from popularity.evaluation.probes import ridge_probe
from popularity.schema import POSTS, read_table
from popularity.stack.blocks import PROTOTYPE_VECTORS, dense_rows, read_blocks
from popularity.stage import run

STAGES = (
    "demo_data", "ingest", "index_images", "embed_image", "embed_text", "prototypes", "train", "embed_posts",
)  # fmt: skip
PENALTIES = tuple(10.0**power for power in range(-1, 6))
FACTORS = 16  # leading components of each side whose products are taken


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22])
    parser.add_argument("--posts", type=int, help="default: as params.yaml says")
    parser.add_argument("--components", type=int, default=64)
    parser.add_argument("--work", type=Path, help="folder that is kept, so that a broken-off run goes on")
    args = parser.parse_args(argv)
    table = []
    with ExitStack() as exits:
        work = args.work or Path(exits.enter_context(tempfile.TemporaryDirectory()))
        for seed in args.seeds:
            folder = run_stages(STAGES, params_of(seed, args.posts, PARAMS_FILE), work.resolve())
            found = _explained(folder, args.components)
            table.append({"seed": seed, **found})
    print(pl.DataFrame(table))


def _explained(folder: Path, components: int) -> dict[str, float | None]:
    """Explained variance of the true effect on the test posts, by features."""
    data = folder / "data"
    posts = read_table(data / "interim/posts.parquet", POSTS)
    truth = posts.select("pid").join(pl.read_parquet(data / "demo_truth/effects.parquet"), on="pid", how="left")
    effect = truth["agreement"].to_numpy()
    blocks = read_blocks(*(data / "embeddings" / name for name in ("image", "text", "prototype")))
    pids = posts["pid"].to_list()
    image, title, tags = (dense_rows(blocks, name, pids) for name in ("image", "title", "tags"))
    prototype = np.hstack([dense_rows(blocks, name, pids) for name in PROTOTYPE_VECTORS])
    scalars = blocks.scalars.drop("pid").to_numpy().astype(np.float32)
    whole = ~np.isnan(np.hstack([image[:, :1], prototype])).any(axis=1) & ~np.isnan(scalars).any(axis=1)
    fit = whole & (posts["split"] == "train").to_numpy()
    test = whole & (posts["split"] == "test").to_numpy()
    raw = np.hstack([image, title, tags])
    features = {
        "prototype": np.hstack([prototype, scalars]),
        "raw and products": np.hstack([raw, _products(image, np.hstack([title, tags]), fit)]),
        "raw": raw,
    }
    return {
        name: ridge_probe(
            values[fit], effect[fit], values[test], effect[test], components=components, penalties=PENALTIES
        )
        for name, values in features.items()
    }


def _products(
    image: npt.NDArray[np.float32], text: npt.NDArray[np.float32], fit: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """(n, FACTORS ** 2) products of every leading component of the pictures with every one of the texts."""
    left, right = (
        PCA(FACTORS, svd_solver="covariance_eigh").fit(side[fit]).transform(np.nan_to_num(side))
        for side in (image, text)
    )
    products: npt.NDArray[np.float32] = np.einsum("ni,nj->nij", left, right).reshape(len(image), -1).astype(np.float32)
    return products


if __name__ == "__main__":
    run(main)
