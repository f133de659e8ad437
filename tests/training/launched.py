"""Runs of several settings, for processes that `popularity.launch` starts.

python -m popularity.launch tests.training.launched <settings.json> <folder of the tower> <folder for results>
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file

from popularity.core.atomic import write_json
from popularity.core.stage import run
from popularity.network.accelerator import make_accelerator
from tests.training.small_training import small_run, train_params


def main() -> None:
    settings, tower, out = map(Path, sys.argv[1:])
    for name, changes in json.loads(settings.read_text(encoding="utf-8")).items():
        accelerator = make_accelerator("fp32")
        history, weights = small_run(train_params(**changes), tower, out / name / "state", accelerator)
        if accelerator.is_main_process:
            save_file(weights, out / name / "weights.safetensors")
            group: Any = dist.distributed_c10d._get_default_group()
            waits = group._get_backend(accelerator.device).options._timeout.total_seconds()
            found = {"processes": accelerator.num_processes, "seconds": waits, "history": history}
            write_json(out / name / "history.json", found)
        accelerator.wait_for_everyone()


if __name__ == "__main__":
    run(main)
