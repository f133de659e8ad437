"""The speed benchmarks at a small size: they run, print their table, and count the matrix products that there are."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import embed_speed
from benchmarks.network_speed import minilm, products, random_content
from popularity.config import load_params
from popularity.encoders.prompting import load_prompt_tower
from popularity.training.params import TrainParams
from tests.encoders.tiny_encoders import image_params, save_timm

REPOSITORY = Path(__file__).parents[1]


def test_network_speed_runs_without_tables_trees_and_dvc() -> None:
    """On a machine that only trains."""
    names = ("polars", "lightgbm", "optuna", "dvc", "dvclive", "scmrepo")
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in names)
    given = "--posts 300 --classes 3 --width 16 --layers 1 --tower minilm --steps 2 --warm-up 1 --precision fp32"
    code = f"import sys; {blocked}; from benchmarks.network_speed import main; main({given.split()!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert rows["precision"].strip() == "fp32"
    assert 0 < float(rows["matrix products / step"]) < 1.2
    assert float(rows["posts a second"].replace(",", "")) > 0
    assert any(name.startswith("4 epochs of 305,613 posts") for name in rows)


def test_the_products_are_those_of_a_step(tmp_path: Path) -> None:
    """Against torch's own count of forward and backward."""
    params = replace(load_params("train", TrainParams, REPOSITORY / "params.yaml"), batch_size=16)
    tower = load_prompt_tower(minilm())
    content = random_content(tmp_path, 300, 21, 64, tower.spec.width, params.network.prototypes.folds)
    network = content.network(tower, params)
    batch = content.vectors.batch(np.arange(16))
    with FlopCounterMode(display=False) as counted:
        terms = network.loss_terms(network(batch), batch)
        torch.stack([values.mean() for values in terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
    ours = sum(product.flops for product in products(network, params, tower, 64))
    assert ours == pytest.approx(counted.get_total_flops(), rel=0.02)


def test_embed_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    save_timm("test_efficientnet", tmp_path / "model")
    params = image_params(model="test_efficientnet", weights=f"path:{tmp_path / 'model'}")
    YAML().dump({"embed_image": vars(params)}, tmp_path / "params.yaml")
    monkeypatch.setenv("POPULARITY_WORKERS", "0")
    embed_speed.main(["--params", str(tmp_path / "params.yaml"), "--pictures", "24", "--side", "64"])
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    stage, bare = (float(rows[name].split()[0].replace(",", "")) for name in ("stage", "bare encoder fed from memory"))
    assert bare > 0
    assert float(rows["stage / bare encoder"]) == pytest.approx(stage / bare, abs=0.01)
