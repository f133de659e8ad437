"""Fits AutoGluon on a table: python autogluon_fit.py FOLDER SECONDS PRESETS CPUS.

Reads table.npz of FOLDER (numbers, categories, is_fit, label), writes prediction.npy: (rows that are not fitted,).
It imports nothing of this repository, so another environment with AutoGluon can run it: see benchmarks.peers.
"""

import sys
from pathlib import Path


def main(folder: Path, seconds: int, presets: str, cpus: int) -> None:
    import numpy as np  # noqa: PLC0415
    import pandas as pd  # noqa: PLC0415
    from autogluon.tabular import TabularPredictor  # noqa: PLC0415

    with np.load(folder / "table.npz", allow_pickle=False) as stored:
        numbers, categories, is_fit, label = (stored[name] for name in ("numbers", "categories", "is_fit", "label"))
    table = pd.DataFrame(numbers).add_prefix("number_")
    for index in range(categories.shape[1]):
        table[f"category_{index}"] = pd.Categorical(categories[:, index])
    predictor = TabularPredictor("label", "regression", "mean_absolute_error", path=str(folder / "models"), verbosity=2)
    fit = table[is_fit].assign(label=label)
    # Its test of whether stacking pays needs ray, and fails without: so it stacks.
    predictor.fit(fit, presets=presets, time_limit=seconds, num_cpus=cpus, num_gpus=0, dynamic_stacking=False)
    np.save(folder / "prediction.npy", np.asarray(predictor.predict(table[~is_fit]), dtype=np.float64))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
