"""The elements of a page, and its HTML. Every text is escaped; only the drawings of charts are markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class Text:
    """A paragraph; `Markup` passes as it is, anything else is escaped."""

    kind: ClassVar[str] = "text"
    words: str


@dataclass(frozen=True)
class Table:
    """Cells as text; after the first `names` columns they are numbers, set to the right."""

    kind: ClassVar[str] = "table"
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1


@dataclass(frozen=True)
class Tables:
    """Small tables side by side where there is room."""

    kind: ClassVar[str] = "tables"
    tables: Sequence[Table]


@dataclass(frozen=True)
class Chart:
    """A drawing, its description for screen readers, and a caption; a wide chart has its own row."""

    svg: Markup
    label: str
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Charts:
    """Drawings side by side where there is room."""

    kind: ClassVar[str] = "charts"
    items: Sequence[Chart]


@dataclass(frozen=True)
class Bar:
    """Lengths from 0 to 1 laid end to end, and the value as text."""

    name: str
    parts: Sequence[float]
    value: str


@dataclass(frozen=True)
class Bars:
    """Horizontal bars; `series` names the parts where there are several."""

    kind: ClassVar[str] = "bars"
    title: str
    rows: Sequence[Bar]
    series: Sequence[str] = ()

    @property
    def digits(self) -> int:
        """Letters of the longest value, for which all bars leave the same room, so that their lengths compare."""
        return max((len(bar.value) for bar in self.rows), default=0)


@dataclass(frozen=True)
class Post:
    """A post: its image as a data URI (None: it has none), its texts, and lines below them."""

    image: str | None
    title: str
    tags: str
    lines: Sequence[str]

    @property
    def alternative(self) -> str:
        return f"Image of the post: {self.title or self.tags or 'no title'}"


@dataclass(frozen=True)
class Posts:
    """Posts in a grid. `small` shows less of their words."""

    kind: ClassVar[str] = "posts"
    title: str
    posts: Sequence[Post]
    small: bool = False


@dataclass(frozen=True)
class Pair:
    """Two grids of posts side by side under a heading."""

    kind: ClassVar[str] = "pair"
    title: str
    note: str
    grids: tuple[Posts, Posts]


Element = Text | Table | Tables | Charts | Bars | Posts | Pair


@dataclass(frozen=True)
class Section:
    """A section of the page with an entry in the table of contents."""

    anchor: str
    title: str
    elements: Sequence[Element]


@dataclass(frozen=True)
class Tile:
    """A number at the head of the page."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    summary: str
    tiles: Sequence[Tile]
    properties: Sequence[tuple[str, str]]
    sections: Sequence[Section]


def render(page: Page) -> str:
    """The page as HTML that loads no other file: styles, drawings and images are inside."""
    environment = Environment(
        loader=PackageLoader("popularity.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(page=page) + "\n"
