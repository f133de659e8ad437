"""A system is a function of one fold: ours, a part of it removed, a competitor's. Benchmarks that compare run them so.

    project = Project.read(Path("../run"))
    for data in project.folds(["matched"]):
        predictions = system(data)                       # (m,), of data.fold.score in its row order
        labels = project.labels(data)                    # (m,), which no system is given

A folder is a project in which the graph ran up to the embed stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from tqdm import tqdm

from popularity.config import PARAMS_FILE, load_params
from popularity.evaluation.metrics import score
from popularity.evaluation.probes import paired_interval
from popularity.files import STATE_ROOT, atomic_path, fingerprint
from popularity.schema import CUT_SCHEMES, FOLDS, POSTS, FoldKey, read_table
from popularity.splits import rows_of
from popularity.splits.folds import Fold, load_fold
from popularity.stack import StackParams, read_blocks
from popularity.stack.blocks import Blocks
from popularity.stack.fit import fit_and_predict

Array = npt.NDArray[np.float64]
METRICS: tuple[Literal["src", "mae"], ...] = ("src", "mae")
FACTS = ("scheme", "cut", "pid", "uid", "label")


@dataclass(frozen=True)
class FoldData:
    """All that a system may know of one fold.

    Args:
        fold: features of its fit and score rows (each sorted by pid), labels of its fit rows.
        posts: contract POSTS, sorted by pid: the fit and score rows alone, the labels of the score rows null.
        blocks: vectors and scalars of all posts, made without labels.
        params: section stack.
    """

    fold: Fold
    posts: pl.DataFrame
    blocks: Blocks
    params: StackParams


System = Callable[[FoldData], Array]


@dataclass(frozen=True)
class Project:
    """What the folds of a run are made of.

    Args:
        posts: contract POSTS.
        splits: contract FOLDS.
        features: folder that featurize wrote.
        blocks: of the embed stages.
        params: section stack.
        folder: of the run.
    """

    posts: pl.DataFrame
    splits: pl.DataFrame
    features: Path
    blocks: Blocks
    params: StackParams
    folder: Path

    @classmethod
    def read(cls, folder: Path, params: Path | None = None) -> Project:
        """The run in `folder`; `params` names another file of parameters than the run's own."""
        data = folder / "data"
        return cls(
            read_table(data / "interim/posts.parquet", POSTS),
            read_table(data / "interim/splits.parquet", FOLDS),
            data / "features",
            read_blocks(*(data / "embeddings" / name for name in ("image", "text", "prototype"))),
            load_params("stack", StackParams, params or folder / PARAMS_FILE),
            folder,
        )

    def folds(self, schemes: Sequence[str]) -> Iterator[FoldData]:
        """The folds of the schemes, in the order of the stage `stack`, which is that of time for `matched`."""
        for key, rows in rows_of(self.splits, list(schemes)):
            yield self.fold(key, rows)

    def fold(self, key: FoldKey, rows: pl.DataFrame) -> FoldData:
        """The fold `key` of `rows` (pid, role: fit or score)."""
        shown = rows.join(self.posts, on="pid", how="left", validate="1:1").sort("pid")
        hidden = shown.with_columns(label=pl.when(pl.col("role") == "fit").then(pl.col("label")))
        fold = load_fold(key, rows, self.posts, self.features)
        return FoldData(fold, hidden.select(self.posts.columns), self.blocks, self.params)

    def scored(self, data: FoldData) -> pl.DataFrame:
        """(pid, uid, label) of the fold's scored rows, in its row order."""
        facts = self.posts.select("pid", "uid", "label")
        return data.fold.score.select("pid").join(facts, on="pid", how="left", validate="1:1", maintain_order="left")

    def labels(self, data: FoldData) -> Array:
        """(m,) of the fold's scored rows, in its row order."""
        return self.scored(data)["label"].to_numpy()

    def run(self, systems: Mapping[str, System], scheme: str) -> pl.DataFrame:
        """(FACTS, a column a system) of all scored rows of a scheme.

        `cut` numbers the cuts, which are scored each by itself, and is 0 throughout where folds are parts of one score.
        """
        parts = []
        for data in tqdm(list(self.folds([scheme])), desc=scheme, unit="fold"):
            facts = self.scored(data).with_columns(
                scheme=pl.lit(scheme), cut=pl.lit(data.fold.key.fold if scheme in CUT_SCHEMES else 0, pl.Int64)
            )
            parts.append(facts.select(FACTS).with_columns(pl.Series(name, one(data)) for name, one in systems.items()))
        return pl.concat(parts)

    def kept(self, name: str, system: System, code: Sequence[Path]) -> System:
        """`system`, its predictions kept in .state/benchmarks of the run.

        Args:
            name: of the system.
            system: that is asked where nothing is kept.
            code: files whose content decides the result, beside the inputs and section stack.
        """

        def once(data: FoldData) -> Array:
            fold = (data.fold.key, data.fold.fit["pid"].to_list())
            key = fingerprint(fold, asdict(self.params), self._inputs, *code)
            path = self.folder / STATE_ROOT / "benchmarks/systems" / name / f"{key}.parquet"
            if not path.exists():
                with atomic_path(path) as partial:
                    pl.DataFrame({"prediction": system(data)}).write_parquet(partial)
            return pl.read_parquet(path)["prediction"].to_numpy()

        return once

    @cached_property
    def _inputs(self) -> str:
        tables = [self.folder / "data/interim" / name for name in ("posts.parquet", "splits.parquet")]
        embeddings = [self.folder / "data/embeddings" / name for name in ("image", "text", "prototype")]
        return fingerprint(*tables, self.features, *embeddings)


def compare(rows: pl.DataFrame, against: str, *, resamples: int) -> pl.DataFrame:
    """A row a scheme, metric and system: its score, and that minus the score of the system `against`.

    Args:
        rows: of `Project.run`, of one scheme or of several.
        against: the system whose scores are subtracted.
        resamples: draws of users behind the 95 % interval of a difference; both sides are scored on the same ones.
    """
    table = []
    for (scheme,), own in rows.group_by("scheme", maintain_order=True):
        labels, users, cuts = (own[name].to_numpy() for name in ("label", "uid", "cut"))
        for metric in METRICS:
            for name in (column for column in rows.columns if column not in FACTS):
                mine, other = (own[column].to_numpy() for column in (name, against))
                found = paired_interval(
                    labels, mine[:, None], other[:, None], users,
                    metric=metric, resamples=resamples, confidence=0.95, seed=0, cuts=cuts,
                )  # fmt: skip
                table.append(
                    {
                        "scheme": scheme, "metric": metric, "system": name, "score": score(labels, mine, cuts)[metric],
                        f"minus {against}": found.value, "low": found.low, "high": found.high,
                        "cuts": len(np.unique(cuts)), "posts": len(own), "users": len(np.unique(users)),
                    }
                )  # fmt: skip
    return pl.DataFrame(table)


def ours(data: FoldData) -> Array:
    """(m,) what the stage `stack` predicts for the scored rows: the mean over its seeds."""
    each = fit_and_predict(data.fold, data.blocks, data.params)
    means = each.sort("seed").group_by("pid", maintain_order=True).agg(pl.col("prediction").mean())
    return means.sort("pid")["prediction"].to_numpy()
