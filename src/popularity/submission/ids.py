"""The ids of a submission in their order, by the code with which stage `ingest` reads the published files."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from popularity.core.config import read_yaml
from popularity.core.contracts import POSTS, read_table
from popularity.core.errors import DataError
from popularity.dataset.layout import named_files
from popularity.dataset.reading import JsonTable
from popularity.submission.validate import ID_PREFIX


def ids_of_run(params: Path, posts: Path) -> list[str]:
    """The ids of a submission in order, for the data set of params.yaml.

    Args:
        params: params.yaml.
        posts: posts.parquet, which has the order of a table's rows.

    Raises:
        DataError: as `expected_ids`.
    """
    dataset = read_yaml(params)["dataset"]
    if not dataset.get("table"):
        return expected_ids(Path(dataset["root"]) / "test_allmetadata_json")
    test = read_table(posts, POSTS).filter(split="test").sort("source_index")
    return (ID_PREFIX + test["pid"]).to_list()


def expected_ids(folder: Path) -> list[str]:
    """The ids of a submission in order: "post" + Pid of each row of the test metadata.

    They come from the first metadata file of the folder that has Pids, test_category.json before all others.

    Raises:
        DataError: no such file, broken JSON, or a Pid that is missing or doubled.
    """
    expected = "a folder such as data/demo/test_allmetadata_json, with test_category.json or another file with Pids"
    if not folder.is_dir():
        raise DataError("no such folder", file=folder, expected=expected)
    for file in named_files(folder, "test"):
        table = JsonTable(file, {"pid": ("Pid",)}, required=())
        pids = table.read()["pid"]
        if table.absent:
            continue  # user data of form A
        _refuse_unusable(pids, file)
        return [ID_PREFIX + pid for pid in pids]
    raise DataError("no file with Pids", file=folder, expected=expected)


def _refuse_unusable(pids: pl.Series, file: Path) -> None:
    missing = (pids.is_null() | (pids == "").fill_null(True)).arg_true()
    if len(missing):
        raise DataError(f"Pid {pids[int(missing[0])]!r}", file=file, row=int(missing[0]), expected="text or an integer")
    again = (~pids.is_first_distinct()).arg_true()
    if len(again):
        row = int(again[0])
        first = int((pids == pids[row]).arg_true()[0])
        raise DataError(f"Pid {pids[row]} again, first in row {first}", file=file, row=row, expected="each Pid once")
