"""The section `demo` of params.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from popularity.core.config import Section


@dataclass(frozen=True)
class DemoParams(Section):
    """Size and form of the demo data set; the same values give the same bytes.

    Args:
        seed: of every draw.
        posts: in both splits together.
        users: at most; at least 3 posts each on average.
        subcategories: second-level classes, spread over the first-level ones; more than 33 get numbered names.
        image_size: pixels, longer side.
        test_fraction: the last part of the posts in time.
        user_file: A: row-aligned list with vectors; B: columns with ids and texts.
        trend: fall of the mean label over the whole time span; 2.3 lowers the mean of the test split by about 1, as in
            SMPD; with 0 the splits are alike.
        trend_along: what the mean label falls along: time; or collection, an order of the Pids that has nothing to do
            with the dates and in which most test posts come late.
    """

    seed: Annotated[int, Field(ge=0)]
    posts: Annotated[int, Field(ge=50)]
    users: Annotated[int, Field(ge=10)]
    subcategories: Annotated[int, Field(ge=2, le=77)]
    image_size: Annotated[int, Field(ge=16)]
    test_fraction: Annotated[float, Field(ge=0.1, le=0.5)]
    user_file: Literal["A", "B"]
    trend: float
    trend_along: Literal["time", "collection"]

    def __post_init__(self) -> None:
        if self.posts < 3 * self.users:
            raise ValueError(f"posts must be at least 3 times users, found {self.posts} and {self.users}")
