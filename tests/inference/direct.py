"""The columns of one post by the equations of method.md alone: no batches, no shared code but tower and layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn import functional

from popularity.core.contracts import CLASSES, MEMBERS, MODALITIES, read_table
from popularity.network.build import load_network
from popularity.network.model import PrototypeNetwork
from tests.inference.small_world import World
from tests.training.small_training import train_params


def unit(values: Any) -> Tensor:
    return functional.normalize(torch.as_tensor(np.asarray(values, dtype=np.float64)), dim=-1)


def log_softmax(values: Tensor) -> Tensor:
    return values - values.logsumexp(dim=-1, keepdim=True)


def without_own(logits: Tensor, known: list[int], others: list[int]) -> Tensor:
    """Logits (3, K) with the mean of the others' in place of the own one."""
    logits = logits.clone()
    for index in known:
        logits[:, index] = logits[:, others].mean(dim=1)
    return logits


@dataclass(frozen=True)
class Direct:
    """What is expected of a post: vectors by block, scalars by column (None for null), and weights of attention.

    Args:
        similarity: (K,) by modality, None without an image or a text.
        attention: (1 + 2K,).
    """

    vectors: dict[str, Tensor]
    scalars: dict[str, float | None]
    similarity: dict[str, Tensor | None]
    q: Tensor
    attention: Tensor


class Equations:
    """Reads what the stage reads; the network is in float64."""

    def __init__(self, world: World) -> None:
        self.posts = world.posts()
        outputs = world.outputs()
        self.image = dict(zip(outputs.image.pids, unit(outputs.image.values), strict=True))
        self.text = dict(zip(outputs.text.pids, unit(outputs.text.values), strict=True))
        offsets = outputs.tokens.offsets
        self.tokens = {
            pid: torch.as_tensor(outputs.tokens.values[offsets[row] : offsets[row + 1]].astype(np.float64))
            for row, pid in enumerate(outputs.tokens.pids)
        }
        self.classes = read_table(world.folder / "prototypes" / "classes.parquet", CLASSES)
        self.members = read_table(world.folder / "prototypes" / "members.parquet", MEMBERS)
        network, _ = load_network(world.folder / "network", world.inputs(train_params()), world.towers)
        with torch.inference_mode():
            self.prompts = [prompts.double() for prompts in network.class_prompts()]
        self.network: PrototypeNetwork = network.double()

    def prototypes(self, level: str, modality: str, left_out: str) -> list[Tensor]:
        """Of all classes, made without the post `left_out`; its lone class has its category's."""
        vectors = self.image if modality == "visual" else self.text
        found = []
        for index, parent in self.classes.filter(level=level).select("index", "parent").iter_rows():
            pids = self.members.filter(level=level, index=index, modality=modality)["pid"]
            own = [vectors[pid] for pid in pids if pid != left_out]
            found.append(
                unit(torch.stack(own).sum(dim=0)) if own else self.prototypes("category", modality, left_out)[parent]
            )
        return found

    def __call__(self, pid: str) -> Direct:
        with torch.inference_mode():
            return self._describe(pid)

    def _describe(self, pid: str) -> Direct:
        attention = self.network.attention
        has_image, has_text = pid in self.image, len(self.tokens[pid]) > 0
        global_prompts, local_prompts = (unit(values) for values in self.prompts)
        x, h = self.image.get(pid, torch.zeros(len(next(iter(self.image.values()))))).double(), self.text[pid]
        prototypes = {modality: torch.stack(self.prototypes("subcategory", modality, pid)) for modality in MODALITIES}
        k = len(global_prompts)
        p = global_prompts @ h
        p_local = p.mean().expand(k)
        if has_text:
            cosines = unit(self.tokens[pid]) @ local_prompts.T  # (l, K)
            p_local = ((cosines / 0.1).softmax(dim=0) * cosines).sum(dim=0)
        image, visual, text = attention.image_projection, prototypes["visual"], prototypes["text"]
        kinds = attention.kinds
        sequence = torch.cat(
            [
                image(x)[None] + kinds["image"],
                image(visual) + kinds["visual"],
                attention.text_projection(text) + kinds["text"],
            ]
        )[None]
        out = attention(sequence)[0]
        attended, visual, text = out[0], out[1 : 1 + k], out[1 + k :]
        q = (unit(visual) @ unit(attended) / 0.07 + unit(text) @ unit(attended) / 0.05) / 2
        heads = {"global": p / 0.07, "local": p_local / 0.07, "attention": q}
        shares = {head: log_softmax(values) for head, values in heads.items()}
        there = {"global": True, "local": has_text, "attention": has_image}
        mean = log_softmax(torch.stack([shares[head] for head in heads if there[head]]).mean(dim=0))
        key = self.posts.filter(pid=pid)["subcategory"].item()
        known = self.classes.filter(level="subcategory", key=key)["index"].to_list()
        weight = functional.one_hot(torch.tensor(known[0]), k).double() if known else mean.exp()
        similarity: dict[str, Tensor | None] = {
            "visual": prototypes["visual"] @ x if has_image else None,
            "text": prototypes["text"] @ h if has_text else None,
        }
        scalars: dict[str, float | None] = {"class_unseen": float(not known)}
        values = {"global": p, "local": p_local, "attention": q}
        for head in heads:
            names = f"losses.{head}", f"logits.own_{head}", f"logits.margin_{head}"
            scalars |= dict.fromkeys(names)
            if known and there[head]:
                own = values[head][known[0]]
                best_other = max(values[head][index] for index in range(k) if index != known[0])
                described = -shares[head][known[0]], own, own - best_other
                scalars |= {name: float(value) for name, value in zip(names, described, strict=True)}
            entropy = -float((shares[head].exp() * shares[head]).sum())
            scalars[f"logits.entropy_{head}"] = entropy if there[head] else None
        scalars["logits.rank"] = float((mean > mean[known[0]]).sum()) if known else None
        for modality, found in similarity.items():
            own_name, other_name = f"distance.{modality}_own", f"distance.{modality}_other"
            scalars |= dict.fromkeys((own_name, other_name))
            if found is not None:
                scalars[other_name] = float(min(1 - found[index] for index in range(k) if [index] != known))
                scalars[own_name] = 1 - float(found[known[0]]) if known else None
        logits = torch.stack([p, p_local, q if has_image else q.mean().expand(k)])
        others = [index for index in range(k) if [index] != known]
        other_weight = torch.zeros(k, dtype=torch.float64)
        other_weight[others] = mean[others].exp() / mean[others].exp().sum()
        vectors = {
            "global_prompt": weight @ self.prompts[0],
            "local_prompt": weight @ self.prompts[1],
            "logits": logits.flatten(),
            "masked_global_prompt": other_weight @ self.prompts[0],
            "masked_local_prompt": other_weight @ self.prompts[1],
            "masked_logits": without_own(logits, known, others).flatten(),
        }
        if has_image:
            vectors |= {"attended_image": attended, "attended_visual": weight @ visual, "attended_text": weight @ text}
            vectors |= {"masked_attended_visual": other_weight @ visual, "masked_attended_text": other_weight @ text}
        return Direct(vectors, scalars, similarity, q, self._attention_of_image(sequence))

    def _attention_of_image(self, tokens: Tensor) -> Tensor:
        """Weights (n,) by softmax(q k / sqrt(width of a head)), mean over heads and layers."""
        layers: Any = self.network.attention.layers
        total = torch.zeros(tokens.shape[1], dtype=torch.float64)
        for layer in layers:
            normed = layer.attention_norm(tokens)[0]
            width, heads = normed.shape[1], layer.attention.num_heads
            weight, bias = layer.attention.in_proj_weight, layer.attention.in_proj_bias
            queries = (normed[:1] @ weight[:width].T + bias[:width]).view(heads, -1)
            keys = (normed @ weight[width : 2 * width].T + bias[width : 2 * width]).view(len(normed), heads, -1)
            scores = torch.einsum("hw,nhw->hn", queries, keys) / (width / heads) ** 0.5
            total += scores.softmax(dim=1).mean(dim=0) / len(layers)
            tokens = layer(tokens)
        return total


def of_class(posts: pl.DataFrame, key: str) -> list[str]:
    pids: list[str] = posts.filter(subcategory=key)["pid"].to_list()
    return pids
