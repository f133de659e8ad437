"""The benchmark of several networks, on random posts: what is blended, and on which labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks import ensemble
from popularity.errors import DataError
from popularity.schema import POSTS, read_table, write_table
from tests.test_cuts_benchmarks import write_project

NETWORKS = ("sharp", "noisy")


def rows_of_three_cuts() -> pl.DataFrame:
    draw = np.random.default_rng(0)
    label = draw.normal(6, 2, 300)
    return pl.DataFrame(
        {
            "scheme": "matched",
            "cut": np.repeat([0, 1, 2], 100),
            "pid": [f"{number}" for number in range(300)],
            "uid": [f"{number}@N00" for number in draw.integers(0, 40, 300)],
            "label": label,
            "sharp": label + draw.normal(0, 0.5, 300),
            "noisy": label + draw.normal(0, 4, 300),
        }
    )


def test_the_better_network_weighs_more() -> None:
    rows = ensemble.with_blend(rows_of_three_cuts(), NETWORKS, "weighted")
    label = rows["label"].to_numpy()
    error = {name: np.abs(rows[name].to_numpy() - label).mean() for name in (*NETWORKS, "weighted")}
    assert error["weighted"] == pytest.approx(error["sharp"], abs=0.05)
    assert error["noisy"] > 2 * error["weighted"]


def test_labels_of_a_cut_have_no_part_in_its_own_blend() -> None:
    rows = rows_of_three_cuts()
    turned = rows.with_columns(label=pl.when(pl.col("cut") == 1).then("noisy").otherwise("label"))
    first, second = (ensemble.with_blend(each, NETWORKS, "blend") for each in (rows, turned))
    assert first.filter(cut=1)["blend"].equals(second.filter(cut=1)["blend"])
    assert not first.filter(cut=0)["blend"].equals(second.filter(cut=0)["blend"])


def test_rows_stay_in_their_places() -> None:
    rows = rows_of_three_cuts()
    assert ensemble.with_blend(rows, NETWORKS, "blend").select(rows.columns).equals(rows)


def test_the_same_network_twice_is_no_ensemble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (write_project(tmp_path / name) for name in ("one", "two"))
    out = tmp_path / "table.csv"
    ensemble.main(["--folder", f"{one}", "--runs", f"{two}", "--resamples", "30", "--out", f"{out}"])
    table = pl.read_csv(out, schema_overrides={"cut": pl.String}).filter(cut="mean")
    alike = table.filter(pl.col("system").is_in([f"{two}", "mean", "weighted"]))
    assert alike.height == 6
    assert alike["minus ours"].to_list() == pytest.approx([0] * 6, abs=1e-9)
    assert any(table.filter(system=ensemble.MORE)["minus ours"].to_list())
    assert "weighted" in capsys.readouterr().out


def test_other_posts_are_refused(tmp_path: Path) -> None:
    one, two = (write_project(tmp_path / name) for name in ("one", "two"))
    path = two / "data/interim/posts.parquet"
    write_table(read_table(path, POSTS).head(-1), path, POSTS)
    with pytest.raises(DataError, match="other posts than those of the first run"):
        ensemble.main(["--folder", f"{one}", "--runs", f"{two}"])
