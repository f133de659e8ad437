"""The prototype network: prompts, cross-modal attention, and the losses over them (method.md, Sec 3).

network = PrototypeNetwork(params, prototypes, tower, names)
outputs = network(batch)                        # p, p', q and the attended tokens
terms = network.loss_terms(outputs, batch)      # per post: L_g, L_o, L_c, ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Literal, NamedTuple, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from popularity.config import Section
from popularity.encoders.prompting import PromptTokens, PromptTower
from popularity.errors import ConfigError
from popularity.network.attention import AttentionParams, CrossModalAttention
from popularity.network.losses import (
    attention_logits,
    class_loss,
    consistency_loss,
    contrastive_loss,
    cosines,
    global_logits,
    local_logits,
)
from popularity.network.prompts import InstancePrompt, SoftPrompt

CLASS_LEVEL = "subcategory"  # whose K classes prompts and Eq 11 speak of
LevelName = Literal["category", "subcategory", "concept"]
LOWEST_TEMPERATURE = 0.005
Temperature = Annotated[float, Field(ge=LOWEST_TEMPERATURE)]
Weight = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class PromptParams(Section):
    """Numbers of context vectors (Eq 1-2) and how a mean-pooled tower pools a prompt.

    Args:
        global_length: k.
        local_length: s.
        instance_length: m of the instance prompt; 0 leaves it out (wider reading).
        pool: all positions, or those of the class name alone.
    """

    global_length: Annotated[int, Field(ge=1)]
    local_length: Annotated[int, Field(ge=1)]
    instance_length: Annotated[int, Field(ge=0)]
    pool: Literal["all", "name"]


@dataclass(frozen=True)
class LevelParams(Section):
    """Which prototypes stand in the sequence (wider reading: all three levels).

    Args:
        levels: from the top down, with subcategory.
        tokens: `all` of them, or, of the concepts, only the `near` ones to the post. (Coarser levels stay whole: a
            post's ancestors alone would give its class away.)
        near: number of concepts in the sequence under `near`.
        folds: in training a post sees prototypes that no post of its fold represents. Were it taken out of its own
            class alone, as in features, the network would learn to find the class that lacks it. 1: the whole ones.
    """

    levels: tuple[LevelName, ...]
    tokens: Literal["all", "near"]
    near: Annotated[int, Field(ge=1)]
    folds: Annotated[int, Field(ge=1)]

    def __post_init__(self) -> None:
        in_order = tuple(name for name in get_args(LevelName) if name in self.levels)
        if self.levels != in_order or CLASS_LEVEL not in self.levels:
            raise ValueError(
                f"levels must hold {CLASS_LEVEL} and run from the top down: {', '.join(get_args(LevelName))}; "
                f"found {', '.join(self.levels)}"
            )


@dataclass(frozen=True)
class TemperatureParams(Section):
    """tau of each softmax; `learn` makes them parameters of the network, which do not fall below LOWEST_TEMPERATURE."""

    global_prompt: Temperature  # tau_g
    local_prompt: Temperature  # tau_o
    tokens: Temperature  # tau_s
    visual: Temperature  # tau_v
    text: Temperature  # tau_t
    contrastive: Temperature
    learn: bool


@dataclass(frozen=True)
class WeightParams(Section):
    """Weight of each term of Eq 8; 0 leaves it out, and whatever only it trains."""

    global_prompt: Weight  # L_g
    local_prompt: Weight  # L_o
    attention: Weight  # L_c
    contrastive: Weight  # InfoNCE between image and text
    consistency: Weight  # of child and parent prototypes


@dataclass(frozen=True)
class NetworkParams(Section):
    prompts: PromptParams
    attention: AttentionParams
    prototypes: LevelParams
    temperatures: TemperatureParams
    weights: WeightParams
    same_class_positives: bool  # the supervised form of InfoNCE

    def __post_init__(self) -> None:
        if self.weights.consistency and len(self.prototypes.levels) == 1:
            raise ValueError("weights.consistency is between prototypes.levels: at least two, or the weight 0")


class Level(NamedTuple):
    """Prototypes of one level, L2-normalised.

    Args:
        visual: (k, d_I).
        text: (k, d_T).
        parent: (k,) row of the level above, -1 for none.
        fold_visual: (folds, k, d_I) those that the posts of each fold see in training; None: the whole ones.
        fold_text: (folds, k, d_T) likewise.
    """

    visual: Tensor
    text: Tensor
    parent: Tensor
    fold_visual: Tensor | None = None
    fold_text: Tensor | None = None


class Facts(NamedTuple):
    """What of b posts decides which terms they count for: see Batch."""

    valid: Tensor
    has_image: Tensor
    has_token: Tensor  # (b,) bool, false for an empty text
    target: Tensor


class Batch(NamedTuple):
    """b posts. Vectors are L2-normalised; levels are those of `NetworkParams.prototypes.levels`, in that order.

    Args:
        image: (b, d_I) f_I(x); zeros where a post has no picture.
        has_image: (b,) bool.
        pooled: (b, d_T) h.
        tokens: (b, l, d_T) H, padded.
        content: (b, l) bool, true where a token is.
        target: (b, levels) class of each level, -1 where it is not among those of training.
        fold: (b,) whose prototypes the post sees in training.
        own_visual: (b, levels, d_I) the visual prototype of the post's class without the post itself.
        own_text: (b, levels, d_T) likewise.
        valid: (b,) bool, false on rows that only fill the batch.
        texts: the own tokens of r; needed by instance prompts and unfrozen towers alone.
        pixels: (b, 3, size, size); needed by unfrozen towers alone.
    """

    image: Tensor
    has_image: Tensor
    pooled: Tensor
    tokens: Tensor
    content: Tensor
    target: Tensor
    fold: Tensor
    own_visual: Tensor
    own_text: Tensor
    valid: Tensor
    texts: PromptTokens | None = None
    pixels: Tensor | None = None

    @property
    def facts(self) -> Facts:
        return Facts(self.valid, self.has_image, self.content.any(dim=1), self.target)


class Places(NamedTuple):
    """Where the k tokens of one level stand in the sequence.

    Args:
        visual: places of the visual prototypes, None where there are none.
        text: likewise.
        classes: (b, k) the class of each; None: token i is class i.
        target: (b,) token of the post's class, -1 where it is not among them.
    """

    visual: slice | None
    text: slice | None
    classes: Tensor | None
    target: Tensor


class LevelOutputs(NamedTuple):
    """Attended tokens of one level, and Eq 7 over them.

    Args:
        visual: (b, k, D) V~, None where the sequence has no visual prototypes.
        text: (b, k, D) T~, likewise.
        logits: (b, k) q, temperatures applied.
        places: of the tokens.
    """

    visual: Tensor | None
    text: Tensor | None
    logits: Tensor
    places: Places


class Outputs(NamedTuple):
    """What the network says of b posts.

    Args:
        pooled: (b, d_T) h, read in the light of the picture where there are instance prompts.
        global_prompts: (K, d_T) G.
        local_prompts: (K, d_T) L.
        global_logits: (b, K) p.
        local_logits: (b, K) p'.
        attended: (b, D) x~.
        levels: by name.
        projected_image: (b, D) P_I x.
        projected_text: (b, D) P_T h.
    """

    pooled: Tensor
    global_prompts: Tensor
    local_prompts: Tensor
    global_logits: Tensor
    local_logits: Tensor
    attended: Tensor
    levels: Mapping[str, LevelOutputs]
    projected_image: Tensor
    projected_text: Tensor


class PrototypeNetwork(nn.Module):
    """Prompts through a text tower, and attention over class prototypes.

    Args:
        params: its shape, temperatures and terms.
        levels: the prototypes of each level in `params.prototypes.levels`.
        tower: text tower; frozen, and then no part of the state, unless some of its weights require a gradient.
        names: tokens of the K readable class names.
        image_tower: from pixels to f_I(x), for training with unfrozen blocks; else cached vectors are read.

    Raises:
        ConfigError: a level without a class.
    """

    def __init__(
        self,
        params: NetworkParams,
        levels: Mapping[str, Level],
        tower: PromptTower,
        names: PromptTokens,
        image_tower: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.params = params
        self.level_names = params.prototypes.levels
        own = levels[CLASS_LEVEL]
        spec = tower.spec
        prompts = params.prompts
        self.global_prompt = SoftPrompt(prompts.global_length, spec.token_width, spec.context_deviation)
        self.local_prompt = SoftPrompt(prompts.local_length, spec.token_width, spec.context_deviation)
        self.attention = CrossModalAttention(params.attention, own.visual, own.text)
        self.instance_prompt = (
            InstancePrompt(prompts.instance_length, own.visual.shape[1], spec.token_width, spec.context_deviation)
            if prompts.instance_length
            else None
        )
        self.log_temperatures = nn.ParameterDict(
            {
                field.name: nn.Parameter(torch.tensor(float(getattr(params.temperatures, field.name))).log())
                for field in fields(TemperatureParams)
                if field.name != "learn"
            }
        ).requires_grad_(params.temperatures.learn)
        for name in self.level_names:
            if not len(levels[name].parent):
                raise ConfigError(f"train.network.prototypes.levels: no training post has a {name}")
            for kind, values in levels[name]._asdict().items():
                self.register_buffer(f"{name}_{kind}", values, persistent=False)
        self.names = names
        trains = any(parameter.requires_grad for parameter in tower.parameters())
        self.tower = tower if trains else None
        self.image_tower = image_tower
        self._frozen_tower = (tower,)  # in a tuple, so that a frozen tower is neither saved nor trained

    @property
    def text_tower(self) -> PromptTower:
        return self._frozen_tower[0]

    def temperature(self, name: str) -> Tensor:
        positive: Tensor = self.log_temperatures[name].exp()
        return positive.clamp(min=LOWEST_TEMPERATURE)

    def class_prompts(self) -> tuple[Tensor, Tensor]:
        """G (K, d_T) and L (K, d_T) of Eq 3: the pooled outputs of the text tower over context and class name."""
        pool = self.params.prompts.pool
        encoded = (
            self.text_tower(prompt.context, self.names, pool).pooled
            for prompt in (self.global_prompt, self.local_prompt)
        )
        global_prompts, local_prompts = encoded
        return global_prompts, local_prompts

    def forward(
        self, batch: Batch, prompts: tuple[Tensor, Tensor] | None = None, looks: list[Tensor] | None = None
    ) -> Outputs:
        """All logits of Sec 3.

        Args:
            batch: posts.
            prompts: G and L of `class_prompts`, where the network does not train and they stay the same.
            looks: gets the attention of x, layer by layer: see `CrossModalAttention.forward`.
        """
        global_prompts, local_prompts = self.class_prompts() if prompts is None else prompts
        batch = self._read(batch)
        has_token = batch.content.any(dim=1, keepdim=True)
        p = global_logits(batch.pooled, global_prompts)
        p_local = local_logits(batch.tokens, batch.content, local_prompts, self.temperature("tokens"))
        # An empty text has no token: its p' is the row mean of p.
        p_local = torch.where(has_token, p_local, p.detach().mean(dim=1, keepdim=True))
        image = self.attention.project(batch.image, "image")
        attended, levels = self._attend(image, batch, looks)
        return Outputs(
            batch.pooled,
            global_prompts,
            local_prompts,
            p,
            p_local,
            attended,
            levels,
            image - self.attention.kinds["image"],
            self.attention.text_projection(batch.pooled),
        )

    def eligible(self, facts: Facts) -> dict[str, Tensor]:
        """For each term of the objective, the posts (b,) that it is averaged over; no forward pass is needed.

        L_o needs a token, L_c a picture, InfoNCE both, and every class loss a class that training knows.
        """
        weights = self.params.weights
        known = facts.valid[:, None] & (facts.target >= 0)  # (b, levels)
        own = known[:, self.level_names.index(CLASS_LEVEL)]
        posts: dict[str, Tensor] = {}
        if weights.global_prompt:
            posts["global_prompt"] = own
        if weights.local_prompt:
            posts["local_prompt"] = own & facts.has_token
        if weights.attention:
            for number, name in enumerate(self.level_names):
                posts[_attention_term(name)] = known[:, number] & facts.has_image
        if weights.contrastive:
            posts["contrastive"] = facts.valid & facts.has_image & facts.has_token
        if weights.consistency:
            posts["consistency"] = facts.valid
        return posts

    def loss_terms(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The terms of Eq 8 and of the wider reading, unweighted: one loss a post (b,), 0 where it is not `eligible`.

        L_c is 0 as well where the post's own concept is not among the near ones. `consistency` is one value that
        every post carries.
        """
        target = batch.target[:, self.level_names.index(CLASS_LEVEL)]
        posts, values = self.eligible(batch.facts), dict[str, Tensor]()
        if "global_prompt" in posts:
            values["global_prompt"] = class_loss(outputs.global_logits / self.temperature("global_prompt"), target)
        if "local_prompt" in posts:
            values["local_prompt"] = class_loss(outputs.local_logits / self.temperature("local_prompt"), target)
        if self.params.weights.attention:
            for name, level in outputs.levels.items():
                values[_attention_term(name)] = class_loss(level.logits, level.places.target)
        if "contrastive" in posts:
            values["contrastive"] = contrastive_loss(
                outputs.projected_image,
                outputs.projected_text,
                posts["contrastive"],
                self.temperature("contrastive"),
                target if self.params.same_class_positives else None,
            )
        if "consistency" in posts:
            values["consistency"] = self._consistency().expand(len(batch.valid))
        return {name: torch.where(posts[name], value, 0.0) for name, value in values.items()}

    def weight(self, term: str) -> float:
        """Weight of a term of `loss_terms`: all levels of L_c share one."""
        return float(getattr(self.params.weights, "attention" if term.startswith("attention") else term))

    def _read(self, batch: Batch) -> Batch:
        """Runs the towers over the batch where cached vectors do not do."""
        if self.image_tower is not None and batch.pixels is not None:
            image = nn.functional.normalize(self.image_tower(batch.pixels).float(), dim=-1)
            batch = batch._replace(image=image * batch.has_image[:, None])
        if batch.texts is not None and (self.tower is not None or self.instance_prompt is not None):
            context = None if self.instance_prompt is None else self.instance_prompt(batch.image)
            out = self.text_tower(context, batch.texts)
            batch = batch._replace(
                pooled=nn.functional.normalize(out.pooled.float(), dim=-1), tokens=out.tokens, content=out.content
            )
        return batch

    def _attend(
        self, image: Tensor, batch: Batch, looks: list[Tensor] | None
    ) -> tuple[Tensor, dict[str, LevelOutputs]]:
        """x~ (b, D) and the attended tokens of every level."""
        sequence, places = self.sequence(image, batch)
        out = self.attention(sequence, looks)
        attended = out[:, 0]
        levels: dict[str, LevelOutputs] = {}
        for name, place in places.items():
            visual = out[:, place.visual] if place.visual is not None else None
            text = out[:, place.text] if place.text is not None else None
            logits = attention_logits(attended, visual, text, self.temperature("visual"), self.temperature("text"))
            levels[name] = LevelOutputs(visual, text, logits, place)
        return attended, levels

    def sequence(self, image: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Places]]:
        """The projected tokens (b, n, D) of Eq 6, and where those of each level stand.

        What posts share is projected once. In training those of a fold share all; else only the post's own classes,
        which leave it out, are its own.
        """
        parts, places, start = [image.unsqueeze(1)], dict[str, Places](), 1
        rows = torch.arange(len(image), device=image.device)
        for number, name in enumerate(self.level_names):
            target = batch.target[:, number]
            classes = self._near_classes(batch, number) if self._is_cut(name) else None
            found, column = (target >= 0, target.clamp(min=0)) if classes is None else _find(classes, target)
            replaced = rows[found], column[found]
            slices: dict[str, slice | None] = {"visual": None, "text": None}
            for kind, own in (("visual", batch.own_visual), ("text", batch.own_text)):
                if kind not in self.params.attention.prototypes:
                    continue
                prototypes, fold = self._shared(name, kind, batch)
                shared = self.attention.project(prototypes, kind)  # (folds, k, D)
                k, width = shared.shape[1:]
                # The gradient of an embedding has one order of summation, that of an index has not.
                if classes is None:
                    tokens = nn.functional.embedding(fold, shared.flatten(1)).view(-1, k, width)
                else:
                    tokens = nn.functional.embedding(fold[:, None] * k + classes, shared.flatten(0, 1))
                if not self.training:
                    own_tokens = self.attention.project(own[:, number], kind)  # (b, D)
                    tokens = tokens.index_put(replaced, own_tokens[found])
                parts.append(tokens)
                slices[kind] = slice(start, start + tokens.shape[1])
                start += tokens.shape[1]
            places[name] = Places(**slices, classes=classes, target=torch.where(found, column, -1))
        return torch.cat(parts, dim=1), places

    def _shared(self, level: str, kind: str, batch: Batch) -> tuple[Tensor, Tensor]:
        """(folds, k, d) prototypes that the posts of each fold share, and the posts' folds (b,).

        Outside of training there is one fold.
        """
        folds: Tensor | None = getattr(self, f"{level}_fold_{kind}")
        if self.training and folds is not None:
            return folds, batch.fold
        return self.get_buffer(f"{level}_{kind}")[None], torch.zeros_like(batch.fold)

    def _is_cut(self, name: str) -> bool:
        settings = self.params.prototypes
        return name == "concept" and settings.tokens == "near" and settings.near < len(getattr(self, f"{name}_visual"))

    def _near_classes(self, batch: Batch, number: int) -> Tensor:
        """(b, near) concepts nearest to the post in both modalities, of the prototypes that stand in its sequence."""
        name, target = self.level_names[number], batch.target[:, number]
        near = torch.zeros(len(target), 1, device=target.device)
        for values, kind, own in ((batch.image, "visual", batch.own_visual), (batch.pooled, "text", batch.own_text)):
            prototypes, fold = self._shared(name, kind, batch)
            similarity = cosines(values, prototypes)[fold, torch.arange(len(fold), device=fold.device)]
            if self.training:
                near = near + similarity
                continue
            itself = (values * own[:, number]).sum(dim=1, keepdim=True).to(similarity.dtype)
            similarity = similarity.scatter(
                1, target.clamp(min=0)[:, None], torch.where(target[:, None] >= 0, itself, similarity[:, :1])
            )
            near = near + similarity
        return near.topk(self.params.prototypes.near, dim=1).indices

    def _consistency(self) -> Tensor:
        """Mean over levels and modalities of the distance between projected children and their parents."""
        losses = []
        for name, above in zip(self.level_names[1:], self.level_names, strict=False):
            parent = getattr(self, f"{name}_parent")
            for kind in self.params.attention.prototypes:
                child, top = (getattr(self, f"{level}_{kind}") for level in (name, above))
                losses.append(
                    consistency_loss(self.attention.project(child, kind), self.attention.project(top, kind), parent)
                )
        return torch.stack(losses).mean()


def _find(classes: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Whether `target` (b,) is among the columns of `classes` (b, k), and in which."""
    match = classes == target[:, None]
    return match.any(dim=1), match.int().argmax(dim=1)


def _attention_term(level: str) -> str:
    return "attention" if level == CLASS_LEVEL else f"attention_{level}"
