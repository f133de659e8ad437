"""Builds a network from parameters, prototypes and encoders; writes and reads models/network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from popularity.core.atomic import fingerprint, read_json, reading, write_json
from popularity.core.config import parse_section
from popularity.core.errors import ContractError
from popularity.core.tensors import write_tensors
from popularity.encoders.image import load_image_encoder
from popularity.encoders.prompting import load_prompt_tower, unfreeze_last
from popularity.network.adapted import ADAPTED, network_tensors, set_network_tensors
from popularity.network.inputs import EncoderPair, NetworkData
from popularity.network.model import PrototypeNetwork
from popularity.network.params import TrainParams


def build_network(params: TrainParams, data: NetworkData, encoders: EncoderPair) -> PrototypeNetwork:
    """A network with fresh weights drawn by `params.seed`, on the CPU.

    Args:
        params: section train.
        data: prototypes and class names.
        encoders: the text encoder reads the prompts; its last layers and those of the image encoder may train.

    Raises:
        ConfigError: a level without a class, or an encoder with fewer layers than `params.unfreeze_layers`.
        MissingWeightsError: the weights of an encoder are not on this machine.
    """
    tower = load_prompt_tower(encoders.text)
    unfreeze_last(tower, params.unfreeze_layers)
    image_tower = None
    if params.unfreeze_layers:
        image_tower = load_image_encoder(encoders.image)
        unfreeze_last(image_tower, params.unfreeze_layers)
    names = tower.tokenize(data.names, encoders.text.max_tokens)
    torch.manual_seed(params.seed)  # after the encoders, whose loading may draw too
    return PrototypeNetwork(params.network, data.levels, tower, names, image_tower)


def save_network(
    network: PrototypeNetwork, params: TrainParams, history: Sequence[Mapping[str, float]], folder: Path
) -> None:
    """Writes network.safetensors (the weights that train; frozen encoders keep their own files) and network.json.

    With encoders that trained, network.safetensors also holds the prototypes of the last epoch.

    Args:
        network: trained.
        params: section train of the run.
        history: the values of each epoch.
        folder: an existing folder.
    """
    write_tensors(network_tensors(network), None, folder / "network.safetensors")
    write_json(
        folder / "network.json",
        {"train": asdict(params), "classes": _class_identity(network), "history": list(history)},
    )


def trained_params(folder: Path) -> TrainParams:
    """Section train as it was when the network in `folder` was trained."""
    return parse_section("train", _metadata(folder)["train"], TrainParams, str(folder / "network.json"))


def load_network(folder: Path, data: NetworkData, encoders: EncoderPair) -> tuple[PrototypeNetwork, TrainParams]:
    """The network that `save_network` wrote, in evaluation mode on the CPU, and its section train.

    Args:
        folder: models/network.
        data: prototypes and class names.
        encoders: as in training.

    Raises:
        ContractError: it was trained with other classes or encoders.
    """
    params = trained_params(folder)
    network = build_network(params, data, encoders)
    with reading(folder / "network.safetensors"):
        tensors = load_file(folder / "network.safetensors")
    own = network.state_dict()
    found = {name: values for name, values in tensors.items() if not name.startswith(ADAPTED)}
    other = sorted(
        name for name in {*own, *found} if name not in own or name not in found or own[name].shape != found[name].shape
    )
    if _metadata(folder)["classes"] != _class_identity(network):
        other = ["classes"]
    if other:
        raise ContractError(f"{folder}: the network was trained with other classes or encoders ({other[0]} differs)")
    set_network_tensors(network, tensors, data.vectors)
    return network.eval(), params


def _metadata(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(folder / "network.json")
    return content


def _class_identity(network: PrototypeNetwork) -> dict[str, Any]:
    """The number of classes of each level, and a fingerprint of their names.

    The shapes of the weights do not depend on the classes, so they cannot reveal a change.
    """
    names = [ids[:length].tolist() for ids, length in zip(*network.names, strict=True)]
    counts = {name: len(network.get_buffer(f"{name}_parent")) for name in network.level_names}
    return {"counts": counts, "names": fingerprint(names)}
