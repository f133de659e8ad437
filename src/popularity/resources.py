"""Time and peak memory of every stage: python -m popularity.resources reports/resources.

Reads the files that `popularity.core.stage.record_resources` wrote; rows are in the order of dvc.yaml.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from popularity.core.atomic import read_json
from popularity.core.config import PARAMS_FILE, read_yaml
from popularity.core.errors import DataError
from popularity.core.stage import run
from popularity.encoders.names import names_in_use

FIELDS = ("stage", "seconds", "peak_mib", "largest_child_mib")


def read_records(folder: Path, order: Sequence[str]) -> list[dict[str, Any]]:
    """The records in `folder`, stages in `order` first, others after them by name.

    Left out are records of encoders that are no longer used: those of a group of stages, such as embed_text or
    embed_text@minilm, that are not in `order`.

    Raises:
        ContractError: a file holds no JSON.
        DataError: no record, or a file that is none.
    """
    records = []
    for file in sorted(folder.glob("*.json")):
        record = read_json(file)
        if not isinstance(record, dict) or set(record) != set(FIELDS):
            raise DataError("not a resource record", file=file, expected=f"keys {', '.join(FIELDS)}")
        records.append(record)
    if not records:
        raise DataError("no resource records", file=folder, expected="one JSON file per stage", fix="make repro")
    rank = {stage: index for index, stage in enumerate(order)}
    groups = {stage.partition("@")[0] for stage in order if "@" in stage}
    used = [one for one in records if one["stage"] in rank or one["stage"].partition("@")[0] not in groups]
    return sorted(used, key=lambda record: (rank.get(record["stage"], len(rank)), record["stage"]))


def cost_table(records: Sequence[dict[str, Any]]) -> str:
    """A table of fixed width with a total: the sum of seconds and the highest peaks.

    A stage of several processes needs its own peak and that of each child. Linux counts a program that a stage starts
    (such as git) with the memory of the stage at that moment: equal peaks mean that the children needed none.
    """
    rows = [[record[field] for field in FIELDS] for record in records]
    rows.append(["total", sum(row[1] for row in rows), max(row[2] for row in rows), max(row[3] for row in rows)])
    width = max(len(row[0]) for row in rows)
    lines = [f"{'stage':<{width}}  {'seconds':>9}  {'peak MiB':>9}  {'largest child MiB':>17}"]
    lines += [f"{name:<{width}}  {seconds:>9.1f}  {peak:>9,}  {child:>17,}" for name, seconds, peak, child in rows]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m popularity.resources", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of resource records")
    parser.add_argument("--graph", type=Path, default=Path("dvc.yaml"), help="file that orders the stages")
    parser.add_argument("--params", type=Path, default=PARAMS_FILE, help="file that names the encoders in use")
    args = parser.parse_args(argv)
    print(cost_table(read_records(args.folder, stage_order(read_yaml(args.graph), read_yaml(args.params)))))


def stage_order(graph: Mapping[str, Any], params: Mapping[str, Any]) -> list[str]:
    """The stages of a graph; of the encoders' stages those in use.

    Args:
        graph: content of dvc.yaml.
        params: content of params.yaml.
    """
    order: list[str] = []
    for name, stage in graph.get("stages", {}).items():
        if "foreach" in stage:
            order += [f"{name}@{entry}" for entry in names_in_use(params, name.removeprefix("embed_"))]
        else:
            order.append(name)
    return order


if __name__ == "__main__":
    run(main)
