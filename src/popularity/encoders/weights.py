"""Fetches the encoders that params.yaml takes from a hub, at their pinned revision: `make weights`.

    python -m popularity.encoders.weights --params params.yaml

Only safetensors, configuration and tokenizer files are fetched. Everything after it runs offline.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import RepositoryNotFoundError

from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.errors import ConfigError, MissingWeightsError
from popularity.core.stage import run
from popularity.encoders.image import EmbedImageParams
from popularity.encoders.sources import HUB_FILES, EncoderParams, find_weights, require_revision
from popularity.encoders.text import EmbedTextParams

logger = logging.getLogger(__name__)

SECTIONS: dict[str, type[EncoderParams]] = {"embed_image": EmbedImageParams, "embed_text": EmbedTextParams}


def fetch_weights(params: EncoderParams) -> Path:
    """The folder of an encoder's weights; from the hub when `params` says so.

    Raises:
        MissingWeightsError: the hub cannot be reached, or has no safetensors of that name and revision.
        ConfigError: no revision is pinned, or the hub is switched off by the environment.
    """
    if params.weights == "hub":
        require_revision(params)
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise ConfigError(
                f"{params.model} has to come from the hub, but HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: "
                "unset both for this one command"
            )
        logger.info("fetching %s at %s", params.model, params.revision)
        try:
            huggingface_hub.snapshot_download(params.model, revision=params.revision, allow_patterns=list(HUB_FILES))
        except RepositoryNotFoundError as error:
            raise MissingWeightsError(f"{params.model}: the hub has no such repository, or asks for a login") from error
        except Exception as error:  # of the hub, the proxy, the network or the disk
            raise MissingWeightsError(
                f"{params.model} at {params.revision} could not be fetched: {type(error).__name__}: {error}\n"
                "  next: run `make weights` where the hub can be reached, or take encoders from packages"
            ) from error
    return find_weights(params)


def main(argv: Sequence[str] | None = None) -> None:
    """Fetches the encoders of a file of parameters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    path = parser.parse_args(argv).params
    for name, section in SECTIONS.items():
        params = load_params(name, section, path)
        fetch_weights(params)
        fetched = "is on this machine" if params.weights == "hub" else "nothing to fetch"
        logger.info("%s: %s from %s: %s", name, params.model, params.weights, fetched)


if __name__ == "__main__":
    run(main)
