"""The bodies of requests, and what is taken: their fields, their lengths."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from popularity.predict import Request

MAX_IMAGE_BYTES = 20_000_000  # of the file
MAX_CSV = 2_000_000  # characters
MAX_DRAFTS = 500  # rows of a CSV file
MAX_COLUMNS = 1000  # further columns of a post
MAX_VALUES = 7  # weekdays; of titles and users the page takes five
MAX_BODY_BYTES = MAX_IMAGE_BYTES * 4 // 3 + 1_000_000  # an image in base64, and texts

Text = Annotated[str, Field(max_length=10_000)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Draft(_Body):
    """A post that somebody may publish: fields and forms are those of `python -m popularity.predict`."""

    date: Annotated[str, Field(max_length=100, description="2016-05-01T12:00 (UTC), with a zone, or unix seconds")]
    title: Text = ""
    tags: Annotated[str, Field(max_length=10_000, description="separated by spaces")] = ""
    user: Text = ""
    category: Text = ""
    subcategory: Text = ""
    concept: Text = ""
    latitude: Text = ""
    longitude: Text = ""
    columns: Annotated[
        dict[Text, Text],
        Field(
            max_length=MAX_COLUMNS, description="further columns of the user's own table: name in the table -> value"
        ),
    ] = {}
    days_after: Annotated[str, Field(max_length=100, description="days from the post until its count is read")] = ""

    def request(self, row: int = 0, image: str = "") -> Request:
        """The request of `predict`; `image` is the name of a file in its folder."""
        fields = {**self.columns, **self.model_dump(exclude={"columns"}), "image": image}
        return Request(row, {name: text for name, text in fields.items() if text})


class Question(_Body):
    """A draft and its picture."""

    post: Draft
    image: Annotated[str, Field(description="the file in base64; empty for none")] = ""


class WhatIf(Question):
    """A draft, and what of it is varied."""

    what: Literal["hours", "tags", "titles", "crops", "users"]
    values: Annotated[
        tuple[Text, ...],
        Field(max_length=MAX_VALUES, description="weekdays 0 (Monday) to 6, titles or users; else none"),
    ] = ()


class Drafts(_Body):
    """A CSV file of drafts, with the columns that `predict --posts` reads; images are not."""

    csv: Annotated[str, Field(max_length=MAX_CSV)]
