"""The stage: parameters from a file, whole folders or nothing, and its errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from popularity.core.atomic import fingerprint, read_json
from popularity.core.errors import ConfigError
from stages.demo_data import main
from tests.conftest import Dataset
from tests.repository import stage_flags

TINY = (
    "demo: {seed: 20, posts: 300, users: 80, subcategories: 8, image_size: 32, test_fraction: 0.3, user_file: A, "
    "trend: 2.3, trend_along: time}\n"
)


def arguments(folder: Path, params: str) -> list[str]:
    (folder / "params.yaml").write_text(params)
    return stage_flags("demo_data", folder)


def test_stage_replaces_both_folders_and_records_its_cost(tmp_path: Path, tiny_dataset: Dataset) -> None:
    for name in ("demo", "demo_truth"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "stale").touch()
    main(arguments(tmp_path, TINY))
    assert fingerprint(tmp_path / "data" / "demo") == fingerprint(tiny_dataset.root)
    assert fingerprint(tmp_path / "data" / "demo_truth") == fingerprint(tiny_dataset.truth)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["demo", "demo_truth"]
    record = read_json(tmp_path / "reports/resources/demo_data.json")
    assert record["stage"] == "demo_data"
    assert record["seconds"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("users: 80", "users: 150"), "posts must be at least 3 times users"),
        (("subcategories: 8", "subcategories: 99"), "demo.subcategories: .*77"),
        (("user_file: A", "user_file: C"), "demo.user_file: .*'A' or 'B'"),
        (("seed: 20", "sead: 20"), "demo.sead: unknown key; allowed here: seed, posts"),
        (("test_fraction: 0.3", "test_fraction: 0.9"), "demo.test_fraction"),
    ],
)
def test_bad_parameters_stop_before_anything_is_written(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main(arguments(tmp_path, TINY.replace(*change)))
    assert not (tmp_path / "data").exists()
