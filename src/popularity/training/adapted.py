"""Class prototypes of encoders that train, made anew before an epoch by all processes together (method.md, Sec 3.1)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator

from popularity.core.arrays import Float16Array, Int64Array
from popularity.encoders.sharding import loader_workers
from popularity.network.adapted import prototype_tensors, set_prototypes
from popularity.network.dataset import PostReader
from popularity.network.model import PrototypeNetwork
from popularity.network.params import MODALITIES
from popularity.training.batches import BatchPlan, load_batches


@torch.no_grad()
def rebuild_prototypes(
    network: PrototypeNetwork, reader: PostReader, plan: BatchPlan, accelerator: Accelerator
) -> None:
    """Replaces all prototypes by those of the vectors that the encoders give now; nothing where they are frozen.

    The network, its `prototype_tensors` and the reader, whose posts are left out of these prototypes, get the new ones.

    Args:
        network: is left in evaluation mode.
        reader: of all posts.
        plan: how posts are shared out.
        accelerator: of this process.
    """
    live = reader.live
    if network.image_tower is None or live is None:
        return
    network.eval()
    found = live.vectors.prototypes
    levels = found.levels[: found.levels.index(network.level_names[-1]) + 1]
    represents = np.stack([found.members[level, kind] for level in levels for kind in MODALITIES]) >= 0
    steps = plan.steps(np.flatnonzero(represents.any(axis=0)))
    vectors = {kind: _none(found.member_rows[kind], network, kind) for kind in MODALITIES}
    passes = [rows for step in steps for rows in step.passes]
    workers = loader_workers() if accelerator.device.type == "cuda" else 0
    batches = load_batches(reader.read, passes, accelerator.device, workers)
    for rows, batch in zip(passes, batches, strict=True):
        with accelerator.autocast():
            read = network.read(batch)
        own = torch.from_numpy(rows).to(accelerator.device)
        every, image, text = (accelerator.gather(each) for each in (own, read.image.float(), read.pooled.float()))
        for kind, values in (("visual", image), ("text", text)):
            row = np.where(every.cpu().numpy() >= 0, found.member_rows[kind][every.cpu().numpy()], -1)
            vectors[kind][row[row >= 0]] = values.cpu().numpy()[row >= 0]
    live.vectors = replace(live.vectors, prototypes=found.of_vectors(vectors))
    set_prototypes(network, live.vectors)
    network.prototype_tensors = prototype_tensors(live.vectors.prototypes)


def _none(member_rows: Int64Array, network: PrototypeNetwork, kind: str) -> Float16Array:
    """(m, d) zeros for the m representatives of one modality."""
    width = network.get_buffer(f"{network.level_names[0]}_{kind}").shape[1]
    return np.zeros((int(member_rows.max(initial=-1)) + 1, width), np.float16)
