"""The prototype network: prompts through a text encoder, and attention over class prototypes (Sec 3).

network = PrototypeNetwork(params, levels, tower, names)
outputs = network(batch)                        # p, p', q and the attended tokens
terms = loss_terms(network, outputs, batch)     # per post: L_g, L_o, L_c, ... (heads.py)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from popularity.core.errors import ConfigError
from popularity.encoders.prompting import PromptLayout, PromptTokens, PromptTower
from popularity.network.attention import CrossModalAttention, OwnTokens, SharedTokens
from popularity.network.dataset import Batch
from popularity.network.losses import attention_logits, cosines, global_logits, local_logits
from popularity.network.params import CLASS_LEVEL, MIN_TEMPERATURE, MODALITIES, NetworkParams, TemperatureParams
from popularity.network.prompts import InstancePrompt, SoftPrompt

COMPUTING_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of a precision, for `PrototypeNetwork.hold_in`


class TaxonomyLevel(NamedTuple):
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


class LevelTokens(NamedTuple):
    """Positions in the sequence of the k tokens of one level.

    Args:
        visual: of the visual prototypes, None where there are none.
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
        tokens: their positions in the sequence.
    """

    visual: Tensor | None
    text: Tensor | None
    logits: Tensor
    tokens: LevelTokens


class Outputs(NamedTuple):
    """The results of a forward pass over b posts.

    Args:
        image: (b, d_I) f_I(x), as the network reads it.
        pooled: (b, d_T) h; with instance prompts it depends on the image.
        global_prompts: (K, d_T) G.
        local_prompts: (K, d_T) L.
        global_logits: (b, K) p.
        local_logits: (b, K) p'.
        attended: (b, D) x~.
        levels: by name.
        projected_image: (b, D) P_I x.
        projected_text: (b, D) P_T h.
    """

    image: Tensor
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
        tower: text encoder; if none of its weights requires a gradient, it is frozen and not in the state dict.
        names: tokens of the K readable class names.
        image_tower: from pixels to f_I(x), for training with unfrozen layers; else cached vectors are read.

    Attributes:
        prompts_together: G and L pass through the tower in one pass of 2K prompts. That halves what is launched, but
            pads the shorter ones: None, the default, does it on an accelerator and not on a CPU.
        shared_attention: the first layer uses that posts share their prototypes, but those of their own classes outside
            of training. That saves most of the attention, and launches more: None, the default, does it on a CPU alone.

    Raises:
        ConfigError: a level without a class.
    """

    def __init__(
        self,
        params: NetworkParams,
        levels: Mapping[str, TaxonomyLevel],
        tower: PromptTower,
        names: PromptTokens,
        image_tower: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.params = params
        self.level_names = params.prototypes.levels
        self.class_level = self.level_names.index(CLASS_LEVEL)  # column of the K classes in targets
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
                self.register_buffer(f"{name}_{kind}", None if values is None else values.clone(), persistent=False)
        self.names = names
        trains = any(parameter.requires_grad for parameter in tower.parameters())
        self.tower = tower if trains else None
        self.image_tower = image_tower
        # Of trained encoders: what the prototypes of the last epoch were made of (network/adapted.py).
        self.prototype_tensors: dict[str, Tensor] | None = None
        self._frozen_tower = (tower,)  # in a tuple, so that a frozen tower is neither saved nor trained
        self.prompts_together: bool | None = None
        self.shared_attention: bool | None = None
        self._layouts: tuple[torch.device, bool, list[PromptLayout]] | None = None

    @property
    def text_tower(self) -> PromptTower:
        return self._frozen_tower[0]

    def temperature(self, name: str) -> Tensor:
        positive: Tensor = self.log_temperatures[name].exp()
        return positive.clamp(min=MIN_TEMPERATURE)

    def class_prompts(self) -> tuple[Tensor, Tensor]:
        """G (K, d_T) and L (K, d_T) of Eq 3: the pooled outputs of the text tower over context and class name."""
        pool, contexts = self.params.prompts.pool, [self.global_prompt.context, self.local_prompt.context]
        together, layouts = self._prompt_layouts()
        if together:
            global_prompts, local_prompts = self.text_tower.encode(contexts, layouts, pool).pooled.chunk(2)
            return global_prompts, local_prompts
        encoded = (
            self.text_tower.encode([context], [layout], pool).pooled
            for context, layout in zip(contexts, layouts, strict=True)
        )
        global_prompts, local_prompts = encoded
        return global_prompts, local_prompts

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As torch's own, but for the layouts, which are made once; a decorator would import the compiler always."""
        self._prompt_layouts = torch.compiler.disable(self._prompt_layouts)  # type: ignore[method-assign, no-untyped-call]
        super().compile(*args, **kwargs)

    def _prompt_layouts(self) -> tuple[bool, list[PromptLayout]]:
        """Whether G and L share a pass, and their layouts, which are made once and stay on the tower's device."""
        device = self.text_tower.prefix.device
        together = device.type != "cpu" if self.prompts_together is None else self.prompts_together
        if self._layouts is None or self._layouts[:2] != (device, together):
            lengths = [len(prompt.context) for prompt in (self.global_prompt, self.local_prompt)]
            parts = [lengths] if together else [[length] for length in lengths]
            with torch.inference_mode(False):  # they outlive the pass
                layouts = [layout for part in parts for layout in self.text_tower.layouts(self.names, part)]
            self._layouts = device, together, layouts
        return together, self._layouts[2]

    def hold_in(self, dtype: torch.dtype | None) -> None:
        """Keeps the matrices of a frozen text tower in `dtype`, to which autocast would turn them in every pass.

        The numbers are the same; the tower then runs under autocast alone. Other weights stay as autocast reads them.

        Args:
            dtype: of the computation; None: float32, nothing to do.
        """
        if dtype is not None and self.tower is None:
            for module in self.text_tower.modules():
                if isinstance(module, nn.Linear):
                    module.to(dtype)

    def forward(
        self,
        batch: Batch,
        prompts: tuple[Tensor, Tensor] | None = None,
        attention_weights: list[Tensor] | None = None,
    ) -> Outputs:
        """All logits of Sec 3: p (Eq 4), p' (Eq 5), q (Eq 7), and the attended tokens (Eq 6).

        Args:
            batch: b posts.
            prompts: G (K, d_T) and L (K, d_T) of `class_prompts`, computed once where nothing trains them.
            attention_weights: a list that gets those of the image, layer by layer: see `CrossModalAttention.forward`.

        Raises:
            ConfigError: the prompts leave no room for a text in the encoder.
        """
        global_prompts, local_prompts = self.class_prompts() if prompts is None else prompts
        batch = self.read(batch)
        has_token = batch.token_mask.any(dim=1, keepdim=True)
        p = global_logits(batch.pooled, global_prompts)
        p_local = local_logits(batch.tokens, batch.token_mask, local_prompts, self.temperature("tokens"))
        # An empty text has no token: its p' is the row mean of p.
        p_local = torch.where(has_token, p_local, p.detach().mean(dim=1, keepdim=True))
        image = self.attention.project(batch.image, "image")
        attended, levels = self._attend(image, batch, attention_weights)
        return Outputs(
            batch.image,
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

    @property
    def adapted(self) -> dict[str, bool]:
        """Whether the network reads other vectors than the cached ones, of the image and of the text."""
        trains = self.image_tower is not None
        return {"image": trains, "text": trains or self.tower is not None or self.instance_prompt is not None}

    def read(self, batch: Batch) -> Batch:
        """The batch with new vectors from the encoders that train; the others stay cached."""
        if self.image_tower is not None and batch.pixels is not None:
            image = nn.functional.normalize(self.image_tower(batch.pixels).float(), dim=-1)
            batch = batch._replace(image=image * batch.has_image[:, None])
        if batch.texts is not None and (self.tower is not None or self.instance_prompt is not None):
            context = None if self.instance_prompt is None else self.instance_prompt(batch.image)
            out = self.text_tower(context, batch.texts)
            batch = batch._replace(
                pooled=nn.functional.normalize(out.pooled.float(), dim=-1), tokens=out.tokens, token_mask=out.token_mask
            )
        return batch

    def _attend(
        self, image: Tensor, batch: Batch, attention_weights: list[Tensor] | None
    ) -> tuple[Tensor, dict[str, LevelOutputs]]:
        """x~ (b, D) and the attended tokens of every level."""
        if self._shares_tokens(batch):
            shared, spans = self._shared_tokens(image, batch)
            out = self.attention.forward_shared(shared, attention_weights)
        else:
            sequence, spans = self.sequence(image, batch)
            out = self.attention(sequence, attention_weights)
        # One split, not a slice each: its gradient is written once.
        sizes = [kind.stop - kind.start for span in spans.values() for kind in span[:2] if kind is not None]
        first, *rest = torch.split(out, [1, *sizes], dim=1)
        attended, parts = first[:, 0], iter(rest)
        levels: dict[str, LevelOutputs] = {}
        for name, span in spans.items():
            visual, text = (None if kind is None else next(parts) for kind in span[:2])
            logits = attention_logits(attended, visual, text, self.temperature("visual"), self.temperature("text"))
            levels[name] = LevelOutputs(visual, text, logits, span)
        return attended, levels

    def sequence(self, image: Tensor, batch: Batch) -> tuple[Tensor, dict[str, LevelTokens]]:
        """The projected tokens (b, n, D) of Eq 6, and the positions of each level's tokens.

        Prototypes that posts share are projected once. In training the posts of a fold share all of them; otherwise
        only the prototypes of a post's own classes, which leave it out, differ from post to post.

        Args:
            image: (b, D) the image tokens, projected.
            batch: b posts.
        """
        tokens, spans, start = [image.unsqueeze(1)], dict[str, LevelTokens](), 1
        for index, name in enumerate(self.level_names):
            target = batch.target[:, index]
            classes = self._top_k_classes(batch, index) if self._takes_top_k(name) else None
            found, column = (target >= 0, target.clamp(min=0)) if classes is None else _find(classes, target)
            slices: dict[str, slice | None] = {"visual": None, "text": None}
            for kind, own in (("visual", batch.own_visual), ("text", batch.own_text)):
                if kind not in self.params.attention.prototypes:
                    continue
                prototypes, fold = self._shared(name, kind, batch)
                shared = self.attention.project(prototypes, kind)  # (folds, k, D)
                k, dim = shared.shape[1:]
                # An embedding sums its gradient in a fixed order; indexing does not.
                if classes is None:
                    level_tokens = nn.functional.embedding(fold, shared.flatten(1)).view(-1, k, dim)
                else:
                    level_tokens = nn.functional.embedding(fold[:, None] * k + classes, shared.flatten(0, 1))
                if not self.training:
                    without_itself = self.attention.project(own[:, index], kind)  # (b, D)
                    level_tokens = _replace_found(level_tokens, without_itself, found, column)
                tokens.append(level_tokens)
                slices[kind] = slice(start, start + level_tokens.shape[1])
                start += level_tokens.shape[1]
            spans[name] = LevelTokens(**slices, classes=classes, target=torch.where(found, column, -1))
        return torch.cat(tokens, dim=1), spans

    def _shares_tokens(self, batch: Batch) -> bool:
        """Whether the posts of a fold share all prototypes, which is used where matrices are what a step waits for."""
        shared = not any(self._takes_top_k(name) for name in self.level_names)
        return shared and (batch.image.device.type == "cpu" if self.shared_attention is None else self.shared_attention)

    def _shared_tokens(self, image: Tensor, batch: Batch) -> tuple[SharedTokens, dict[str, LevelTokens]]:
        """`sequence` without a copy of the prototypes for every post."""
        parts, spans, start = list[Tensor](), dict[str, LevelTokens](), 1
        own = list[tuple[Tensor, Tensor, Tensor]]()  # as the fields of OwnTokens
        fold = torch.zeros_like(batch.fold)
        for index, name in enumerate(self.level_names):
            slices: dict[str, slice | None] = {"visual": None, "text": None}
            for kind in MODALITIES:
                if kind not in self.params.attention.prototypes:
                    continue
                prototypes, fold = self._shared(name, kind, batch)
                parts.append(self.attention.project(prototypes, kind))
                if not self.training:
                    vectors = batch.own_visual if kind == "visual" else batch.own_text
                    target = batch.target[:, index]
                    column = start - 1 + target.clamp(min=0)
                    own.append((self.attention.project(vectors[:, index], kind), column, target >= 0))
                slices[kind] = slice(start, start + prototypes.shape[1])
                start += prototypes.shape[1]
            spans[name] = LevelTokens(**slices, classes=None, target=batch.target[:, index])
        own_tokens = OwnTokens(*(torch.stack(part, dim=1) for part in zip(*own, strict=True))) if own else None
        return SharedTokens(image, torch.cat(parts, dim=1), fold, own_tokens), spans

    def _shared(self, level: str, kind: str, batch: Batch) -> tuple[Tensor, Tensor]:
        """(folds, k, d) prototypes that the posts of each fold share, and the posts' folds (b,).

        Outside of training there is one fold.
        """
        folds: Tensor | None = getattr(self, f"{level}_fold_{kind}")
        if self.training and folds is not None:
            return folds, batch.fold
        return self.get_buffer(f"{level}_{kind}")[None], torch.zeros_like(batch.fold)

    def _takes_top_k(self, name: str) -> bool:
        settings = self.params.prototypes
        return (
            name == "concept" and settings.tokens == "top_k" and settings.top_k < len(self.get_buffer(f"{name}_visual"))
        )

    def _top_k_classes(self, batch: Batch, index: int) -> Tensor:
        """(b, top_k) concepts nearest to the post: largest sum of both cosines to the prototypes that it sees."""
        name, target = self.level_names[index], batch.target[:, index]
        total = torch.zeros(len(target), 1, device=target.device)
        for values, kind, own in ((batch.image, "visual", batch.own_visual), (batch.pooled, "text", batch.own_text)):
            prototypes, fold = self._shared(name, kind, batch)
            similarity = cosines(values, prototypes)[fold, torch.arange(len(fold), device=fold.device)]
            if self.training:
                total = total + similarity
                continue
            itself = (values * own[:, index]).sum(dim=1, keepdim=True).to(similarity.dtype)
            similarity = similarity.scatter(
                1, target.clamp(min=0)[:, None], torch.where(target[:, None] >= 0, itself, similarity[:, :1])
            )
            total = total + similarity
        return total.topk(self.params.prototypes.top_k, dim=1).indices


def _replace_found(tokens: Tensor, own: Tensor, found: Tensor, column: Tensor) -> Tensor:
    """`tokens` (b, k, D) with `own` (b, D) at `column` (b,) where `found` (b,); the device is not waited for."""
    index = column[:, None, None].expand(-1, 1, tokens.shape[2])
    return tokens.scatter(1, index, torch.where(found[:, None, None], own[:, None], tokens.gather(1, index)))


def _find(classes: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Whether `target` (b,) is in its row of `classes` (b, k), and in which column."""
    match = classes == target[:, None]
    return match.any(dim=1), match.int().argmax(dim=1)
