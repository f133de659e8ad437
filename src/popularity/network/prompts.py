"""Learnable prompts: global and local ones of the classes (Sec 3.2, Eq 1-3), and one per post (wider reading)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SoftPrompt(nn.Module):
    """Context vectors theta_1..m that all classes share, before each class name: Eq 1 (global), Eq 2 (local).

    Args:
        length: m.
        width: e of the text tower's token table.
        deviation: standard deviation at the start, as the tower's spec states it.
    """

    def __init__(self, length: int, width: int, deviation: float) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.randn(length, width) * deviation)


class InstancePrompt(nn.Module):
    """A small network from a post's image to m vectors that stand before the post's own text (lineage: CoCoOp).

    The last layer starts at zero, so the prompt starts as m shared vectors and learns what the image adds to them.

    Args:
        length: m.
        image_width: d_I.
        token_width: e of the text tower's token table.
        deviation: standard deviation of the shared vectors at the start.
    """

    def __init__(self, length: int, image_width: int, token_width: int, deviation: float) -> None:
        super().__init__()
        hidden = max(image_width // 16, 8)
        self.shared = nn.Parameter(torch.randn(length, token_width) * deviation)
        last = nn.Linear(hidden, length * token_width)
        self.network = nn.Sequential(nn.Linear(image_width, hidden), nn.ReLU(), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, image: Tensor) -> Tensor:
        """(b, m, e) of L2-normalised images (b, d_I)."""
        own: Tensor = self.network(image)
        return self.shared + own.view(len(image), *self.shared.shape)
