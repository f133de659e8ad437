"""The mean over data sets from tables that were printed apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.comparison_tables import MEAN, Comparison, write_tables
from benchmarks.mean_of_sets import main, mean_of_tables, read_table_of_docs
from benchmarks.means import SHARE, mean_over_sets
from benchmarks.rows import OURS
from benchmarks.systems import compare
from popularity.core.contracts import FORWARD, HOLDOUT
from popularity.core.errors import ConfigError, DataError
from popularity.ensemble.members import CONSTANT


def set_of(users: int, noise: float, seed: int) -> pl.DataFrame:
    """Predictions of one split: `peer` errs a little more than ours."""
    rng = np.random.default_rng(seed)
    labels, errors, further = rng.normal(6, 2, 4 * users), rng.normal(size=4 * users), rng.normal(size=4 * users)
    return pl.DataFrame(
        {
            "scheme": FORWARD, "fold": 0, "pid": [f"{row}" for row in range(4 * users)],
            "uid": [f"u{row // 4}" for row in range(4 * users)], "label": labels,
            OURS: labels + noise * errors, "peer": labels + noise * (errors + 0.5 * further), CONSTANT: 6.0,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def sets() -> dict[str, pl.DataFrame]:
    return {"one": set_of(120, 1.0, 0), "two": set_of(60, 1.5, 1), "three": set_of(200, 0.8, 2)}


@pytest.fixture(scope="module")
def tables(sets: dict[str, pl.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A table of each set, written by itself."""
    folder = tmp_path_factory.mktemp("tables")
    for name, rows in sets.items():
        scored = compare(rows, OURS, resamples=1000)
        both = [scored.with_columns(split=pl.lit(split)) for split in (MEAN, HOLDOUT)]
        write_tables(Comparison(OURS, {name: pl.concat(both)}), folder)
    return {name: folder / f"{name}-systems.csv" for name in sets}


def test_tables_printed_apart_have_the_mean_of_draws_of_all_sets(
    sets: dict[str, pl.DataFrame], tables: dict[str, Path]
) -> None:
    found = mean_of_tables({name: read_table_of_docs(file).filter(split=MEAN) for name, file in tables.items()})
    expected = mean_over_sets(sets, OURS, resamples=1000)
    key = ["metric", "system"]
    both = found.join(expected.filter(pl.col("metric").is_in(["src", SHARE])), on=key, suffix=" drawn", how="full")
    assert both.height == found.height == 6
    peer = both.filter(system="peer")
    for name, atol in {"score": 0.001, "difference": 0.001, "low": 0.01, "high": 0.01}.items():
        np.testing.assert_allclose(peer[name].to_numpy(), peer[f"{name} drawn"].to_numpy(), rtol=0, atol=atol)
    assert both["sets"].to_list() == [3, 3, 0, 3, 3, 3]  # the constant has no SRC
    width = (peer["high"] - peer["low"]) / (peer["high drawn"] - peer["low drawn"])
    assert width.is_between(0.85, 1.15).all()


def test_the_table_of_means_is_written(tables: dict[str, Path], tmp_path: Path) -> None:
    main([*(f"{name}={file}" for name, file in tables.items()), "--tables", str(tmp_path)])
    (row,) = pl.read_csv(tmp_path / "mean-systems.csv", infer_schema=False).filter(system="peer").iter_rows(named=True)
    assert row["sets"] == "3"
    assert float(row["MAE / constant holdout - ours low"]) > 0
    assert [file.name for file in tmp_path.iterdir()] == ["mean-systems.csv"]


def test_a_system_that_a_set_lacks_has_a_difference_alone(tables: dict[str, Path]) -> None:
    each = {name: read_table_of_docs(file).filter(split=MEAN) for name, file in tables.items()}
    each["two"] = each["two"].filter(pl.col("system") != "peer")
    row = mean_of_tables(each).filter(system="peer", metric="src").row(0, named=True)
    own = [each[name].filter(system="peer", metric="src")["difference"].item() for name in ("one", "three")]
    assert row["score"] is None
    assert row["sets"] == 2
    assert row["difference"] == pytest.approx(np.mean(own))


def test_other_files_and_words_are_refused(tables: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("system,SRC\nours,.5\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"other.csv.*no table of systems"):
        read_table_of_docs(tmp_path / "other.csv")
    with pytest.raises(ConfigError, match="expected NAME=FILE"):
        main([str(tables["one"])])
