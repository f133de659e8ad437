"""Finds the weights of an encoder on this machine, without network access."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from pydantic import Field

from popularity.core.atomic import sha256_of
from popularity.core.config import Section, load_params
from popularity.core.errors import ConfigError, MissingWeightsError

# The files that loading needs; none of them can run code.
HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model")

Precision = Literal["auto", "bf16", "fp16", "fp32"]
ComputedPrecision = Literal["bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class EncoderParams(Section):
    """The keys that every encoder section of params.yaml has.

    Args:
        loader: name of a registered encoder, such as a file of this folder that ends in _image or _text.
        model: a name that timm knows, or a hub repository (owner/name).
        weights: `package:<module>` of an installed package, `hub`, or `path:<folder>`.
        revision: commit of the hub repository, 40 hex digits, or a branch of it until `make weights` has run; empty for
            other sources.
        batch_size: rows per forward pass.
        shard_rows: rows per resumable shard.
        precision: bf16 and fp16 run under autocast, fp32 does not; auto: see `precision.resolve_precision`.
    """

    loader: Annotated[str, Field(pattern=r"^[a-z]\w*$")]
    model: Annotated[str, Field(min_length=1)]
    weights: Annotated[str, Field(pattern=r"^(hub|package:\w+|path:.+)$")]
    revision: Annotated[str, Field(pattern=r"^[\w./-]*$")]
    batch_size: Annotated[int, Field(gt=0)]
    shard_rows: Annotated[int, Field(gt=0)]
    precision: Precision


P = TypeVar("P", bound=EncoderParams)


def find_weights(params: EncoderParams) -> Path:
    """The folder with the model's configuration and safetensors, or the one .pth file of a package.

    Raises:
        MissingWeightsError: they are not on this machine; the message names the command that fetches them.
        ConfigError: weights from a hub without a pinned revision.
    """
    source, _, location = params.weights.partition(":")
    if source == "package":
        return _in_package(location)
    folder = _in_hub_cache(params) if source == "hub" else path_of(params.weights)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        advice = "run `make weights`" if source == "hub" else "run `make weights`, or write it with save_pretrained"
        raise MissingWeightsError(f"{params.model}: {folder} lacks config.json or *.safetensors; {advice}")
    return folder


def require_revision(params: EncoderParams) -> None:
    """Refuses a hub repository without a pinned commit: a branch may change under a result.

    Raises:
        ConfigError: `params.revision` is empty or a branch.
    """
    if not is_commit(params.revision):
        raise ConfigError(
            f"{params.model}: weights 'hub' need a revision of 40 hex digits (a commit of that repository), found "
            f"{params.revision!r}; `make weights` fetches them and writes the commit into params.yaml"
        )


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit, not a branch."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def path_of(weights: str) -> Path:
    """The folder of weights `path:<folder>`; ~ is the user's home."""
    return Path(weights.removeprefix("path:")).expanduser()


def network_entry(kind: Literal["image", "text"], section: type[P], path: Path) -> P:
    """The encoder that encoders.network names: an entry of section embed_image or embed_text.

    Args:
        kind: of the encoder.
        section: what the entry is parsed as.
        path: of the file of parameters.

    Raises:
        ConfigError: there is no such entry, it is not valid, or it has another loader than encoders.network (see
            NetworkEncoders).
    """
    name, loader = (load_params(f"encoders.network.{key}", str, path) for key in (kind, f"{kind}_loader"))
    params = load_params(f"embed_{kind}.{name}", section, path)
    if params.loader != loader:
        raise ConfigError(
            f"encoders.network.{kind}_loader is {loader}, but the loader of the {kind} encoder that "
            f"encoders.network.{kind} names is {params.loader}: set it to {params.loader}, too"
        )
    return params


def weights_identity(location: Path) -> str:
    """`sha256:` and the digest of the weights file; of a folder, of its safetensors in name order."""
    files = sorted(location.glob("*.safetensors")) if location.is_dir() else [location]
    return "sha256:" + "+".join(sha256_of(file) for file in files)


def describe(
    params: EncoderParams, location: Path, fields: dict[str, Any], column: str, out_features: int
) -> dict[str, Any]:
    """The metadata of a block, for its .json.

    Args:
        params: an entry of section embed_image or embed_text.
        location: of the weights; their digest is in the metadata.
        fields: further metadata: preprocessing and pooling.
        column: prefix of the names of the columns.
        out_features: d.
    """
    return {
        "encoder": params.model,
        "weights": weights_identity(location),
        "revision": params.revision,
        "precision": params.precision,
        **fields,
        "columns": [f"{column}_{index:04d}" for index in range(out_features)],
    }


def _in_package(module: str) -> Path:
    """The folder or file that a weights package names through its own path function."""
    try:
        package = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingWeightsError(
            f"the Python package {module} is not installed; run `make env`, or `make weights` for an encoder of a hub"
        ) from error
    holders = [package, *(value for value in vars(package).values() if isinstance(value, type))]
    for holder in holders:
        for function in ("get_model_path", "get_model_file_path"):
            if hasattr(holder, function):
                return Path(getattr(holder, function)())
    raise ConfigError(f"the Python package {module} offers neither get_model_path nor get_model_file_path")


def _in_hub_cache(params: EncoderParams) -> Path:
    require_revision(params)
    try:
        return Path(
            snapshot_download(
                params.model, revision=params.revision, allow_patterns=list(HUB_FILES), local_files_only=True
            )
        )
    except LocalEntryNotFoundError as error:
        raise MissingWeightsError(
            f"{params.model} at revision {params.revision} is not on this machine; "
            "run `make weights` where the hub can be reached"
        ) from error
