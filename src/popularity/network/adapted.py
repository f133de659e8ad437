"""Prototypes of encoders that train: made of what they give for the representatives, and stored with the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from popularity.network.dataset import PostVectors
from popularity.network.model import PrototypeNetwork
from popularity.network.params import MODALITIES
from popularity.prototypes.vectors import ClassPrototypes, ClassSums, prototypes

ADAPTED = "adapted."  # prefix of the tensors of `network.prototype_tensors` in network.safetensors


def prototype_tensors(found: ClassPrototypes) -> dict[str, Tensor]:
    """The tensors of which `adapted_prototypes` makes the same prototypes again.

    Args:
        found: with the vectors of the representatives.

    Returns:
        `<level>.<modality>_sum` (k, d), and `members.<modality>` (m, d) float16, the vectors of the representatives.
    """
    tensors = {f"{level}.{kind}_sum": torch.from_numpy(sums.total) for (level, kind), sums in found.sums.items()}
    return tensors | {f"members.{kind}": torch.from_numpy(found.member_vectors[kind]) for kind in MODALITIES}


def adapted_prototypes(vectors: PostVectors, tensors: Mapping[str, Tensor]) -> PostVectors:
    """`vectors` whose prototypes, and what is left out of them for a post, are those of `prototype_tensors`."""
    known = vectors.prototypes
    sums = {
        (level, kind): ClassSums(tensors[f"{level}.{kind}_sum"].numpy(), found.count, found.parent)
        for (level, kind), found in known.sums.items()
    }
    members = {kind: tensors[f"members.{kind}"].numpy() for kind in MODALITIES}
    return replace(vectors, prototypes=replace(known, sums=sums, member_vectors=members))


@torch.no_grad()
def set_prototypes(network: PrototypeNetwork, vectors: PostVectors) -> None:
    """Replaces the prototypes in the network's sequence, and those that the posts of a fold see, by those of `vectors`.

    Args:
        network: with buffers of all levels.
        vectors: with the vectors of the representatives, see `adapted_prototypes`.
    """
    found = vectors.prototypes
    for level in network.level_names:
        for kind in MODALITIES:
            above = found.levels[: found.levels.index(level) + 1]
            whole = prototypes([found.sums[name, kind] for name in above])
            network.get_buffer(f"{level}_{kind}").copy_(torch.from_numpy(whole))
            of_folds: Tensor | None = getattr(network, f"{level}_fold_{kind}")
            if of_folds is not None:
                read = partial(found.member, kind)
                without = found.without_folds(level, kind, vectors.fold, len(of_folds), read)
                of_folds.copy_(torch.from_numpy(without))


def network_tensors(network: PrototypeNetwork) -> dict[str, Tensor]:
    """The weights that train, and the prototypes of encoders that train, under the prefix ADAPTED."""
    adapted = {f"{ADAPTED}{name}": values for name, values in (network.prototype_tensors or {}).items()}
    return {**network.state_dict(), **adapted}


def set_network_tensors(network: PrototypeNetwork, tensors: Mapping[str, Tensor], vectors: PostVectors | None) -> None:
    """Gives the network what `network_tensors` returned.

    Args:
        network: of the same shape.
        tensors: by name.
        vectors: of the posts, with their representatives; only prototypes of trained encoders need them.
    """
    adapted = {name.removeprefix(ADAPTED): tensors[name] for name in sorted(tensors) if name.startswith(ADAPTED)}
    network.load_state_dict({name: values for name, values in tensors.items() if not name.startswith(ADAPTED)})
    if adapted:
        assert vectors is not None
        network.prototype_tensors = adapted
        set_prototypes(network, adapted_prototypes(vectors, adapted))
