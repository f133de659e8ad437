"""Text components are converged: the axes of an exact decomposition, with the same bytes on any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.sparse import csr_array

from popularity.features.text_components import DECIMALS, principal_axes
from tests.random_posts import random_posts


@pytest.mark.parametrize("sparse", [False, True])
def test_axes_are_those_of_an_exact_decomposition(sparse: bool) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(60, 30)) * np.arange(30, 0, -1)
    axes = principal_axes(csr_array(matrix) if sparse else matrix, 5, seed=0)
    exact = np.linalg.svd(matrix)[2][:5]
    exact *= np.sign(exact[np.arange(5), np.abs(exact).argmax(axis=1)])[:, None]
    assert axes.dtype == np.float32
    np.testing.assert_allclose(axes, exact, atol=2 * 10.0**-DECIMALS)
    np.testing.assert_array_equal(axes, principal_axes(matrix, 5, seed=1))  # converged: the start does not matter


def test_directions_without_variance_are_left_out() -> None:
    rng = np.random.default_rng(0)
    assert principal_axes(rng.normal(size=(40, 2)) @ rng.normal(size=(2, 30)), 5, seed=0).shape == (2, 30)


CODE = """
import sys
import polars as pl
from popularity.features.text_components import TextReducer
from popularity.features.user_text import no_users, user_text_features
posts, users = (pl.read_parquet(path) for path in sys.argv[1:3])
reducer = TextReducer.fit(posts, 32, 0)
reducer.table.write_ipc(sys.argv[3] + "_table")
reducer.apply(posts).write_ipc(sys.argv[3] + "_posts")
user_text_features(posts, no_users(), 32, 0).write_ipc(sys.argv[3] + "_texts")
user_text_features(posts, users, 32, 0).write_ipc(sys.argv[3] + "_vectors")
"""


def test_the_number_of_threads_changes_no_bit(tmp_path: Path) -> None:
    """At this size BLAS shares the work out; a randomised SVD without a limit differs in the last bits."""
    rng = np.random.default_rng(0)
    words = [f"word{number}" for number in range(12_000)]

    def texts(rows: int, length: int) -> list[str]:
        chosen = rng.zipf(1.2, size=(rows, length)) % len(words)
        return [" ".join(words[number] for number in row) for row in chosen]

    posts = random_posts(0, train=4500, test=1500, users=2000).with_columns(
        title=pl.Series(texts(6000, 6)), tags=pl.Series(texts(6000, 8)), user_description=pl.Series(texts(6000, 10))
    )
    uids = posts["uid"].unique().sort()
    vectors = pl.Series(rng.normal(size=(len(uids), 64)).astype(np.float32)).arr.to_list()
    posts.write_parquet(tmp_path / "posts")
    pl.DataFrame({"uid": uids, "description_vector": vectors, "location_vector": vectors}).write_parquet(
        tmp_path / "users"
    )
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        arguments = [tmp_path / "posts", tmp_path / "users", tmp_path / threads]
        subprocess.run([sys.executable, "-c", CODE, *map(str, arguments)], env=environment, check=True, timeout=300)
    for name in ("table", "posts", "texts", "vectors"):
        assert (tmp_path / f"1_{name}").read_bytes() == (tmp_path / f"2_{name}").read_bytes(), name
        assert pl.read_ipc(tmp_path / f"1_{name}").width >= 33
