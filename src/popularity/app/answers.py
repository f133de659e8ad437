"""The answers of the page: a prediction, what would change it, and a ranking of drafts.

Each number is one of `predict`: an answer and every variant as if that post were the only new one, a ranking as
`predict --posts` does a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from popularity.app.bodies import MAX_DRAFTS, Draft, Drafts, Question, WhatIf
from popularity.app.pictures import crops, read_picture, thumbnail
from popularity.core import paths
from popularity.core.config import read_yaml
from popularity.core.contracts import COLUMNS, IMAGES, MODALITIES, NEAREST, class_key, class_names, read_table
from popularity.core.errors import DataError
from popularity.predict import (
    N_FEATURES,
    FurtherColumns,
    NewPosts,
    Prediction,
    Predictor,
    Request,
    counted,
    make_posts,
    read_requests,
    refuse_unknown_columns,
    table_columns,
)
from popularity.report.run_folder import RunFolder

SHOWN_USERS = 200  # in the list of users, those with most posts
SHOWN_CATEGORIES = 200  # values of a further column
SHOWN_CLASSES, SHOWN_POSTS = 3, 3  # nearest prototypes, and posts nearest to each
DROPPED_TAGS, ADDED_TAGS = 12, 8
COMPARED_USERS = 4  # where no user is named
CROP_SIZE = 240  # pixels of a crop as it is shown
NEVER_CAUSE = (
    "The models know what went together with views in the past, not what causes views: a post that is changed as shown "
    "here may do otherwise."
)
UNSEEN_USER = "The user has no post in the data: what followers bring is unknown, so that the error is larger."


@dataclass(frozen=True)
class PrototypePost:
    """A stored post near a prototype; where it has a `picture`, that is at /api/pictures/PID."""

    pid: str
    title: str
    popularity: float | None
    cosine: float
    picture: bool


@dataclass(frozen=True)
class NearPrototype:
    """A class whose prototype is near the draft, and the stored posts nearest to that prototype."""

    name: str
    cosine: float
    posts: Sequence[PrototypePost]


@dataclass(frozen=True)
class Answer:
    """A draft's prediction: `prediction` is what `predict --json` prints, without the row.

    `prototypes` are those of `prediction.nearest`, by modality; `limits` says what the prediction does not know.
    """

    prediction: Prediction
    prototypes: Mapping[str, Sequence[NearPrototype]]
    limits: Sequence[str]


@dataclass(frozen=True)
class Varied:
    """A variant of a draft: what is changed, its prediction, and how far that lies above the draft's.

    `picture` is a data URI of a crop, else empty.
    """

    label: str
    changed: Mapping[str, str]
    popularity: float
    views: float
    difference: float
    picture: str = ""


@dataclass(frozen=True)
class Variants:
    """The draft's own popularity and its variants."""

    popularity: float
    variants: Sequence[Varied]


@dataclass(frozen=True)
class Ranked:
    """A row of a file of drafts; `problem` says why it has no prediction."""

    row: int
    title: str
    popularity: float | None
    views: float | None
    interval: Sequence[float | None]
    notes: Sequence[str]
    problem: str


@dataclass(frozen=True)
class Ranking:
    """The drafts, the most popular first, and `coverage` of their intervals."""

    coverage: str
    drafts: Sequence[Ranked]


@dataclass(frozen=True)
class _Variant:
    label: str
    changed: Mapping[str, str]
    image: bytes


class Answers:
    """Answers over the models of a project, one call at a time.

    Args:
        predictor: with the models.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor, self._known = predictor, predictor.known
        root = predictor.project.root
        self._columns = table_columns(predictor.project.params)
        self._further = FurtherColumns.of(self._columns)
        self._run = RunFolder(root, root / read_yaml(predictor.project.params)["dataset"]["root"])

    def predict(self, question: Question) -> Answer:
        """The prediction of a draft, and what explains it."""
        image = self._picture(question.image)
        with self._posts([(question.post, image)]) as new:
            if new.requests[0].problem:
                raise DataError(new.requests[0].problem)
            (found,) = self._predictor.predict(new, N_FEATURES)
            posted_at = new.table["posted_at"][0]
        prototypes = {
            kind: [self._near(kind, entry) for entry in found.nearest[kind][:SHOWN_CLASSES]] for kind in MODALITIES
        }
        return Answer(found, prototypes, self._limits(found, posted_at))

    def what_if(self, body: WhatIf) -> Variants:
        """Variants of a draft, predicted together."""
        image = self._picture(body.image)
        make = {"hours": self._hours, "tags": self._tags, "titles": self._titles, "users": self._users}
        if body.what == "crops":
            if not image:
                raise DataError("no picture to crop", expected="a post with a picture")
            variants = [_Variant(name, {}, cropped) for name, cropped in crops(image).items()]
        else:
            variants = [_Variant(*found, image) for found in make[body.what](body.post, body.values)]
        drafts = [(body.post.model_copy(update=dict(one.changed)), one.image) for one in variants]
        with self._posts([(body.post, image), *drafts]) as new:
            if problem := next((request.problem for request in new.requests if request.problem), ""):
                raise DataError(problem)
            found = {one.pid: one for one in self._predictor.predict(new, 1, alone=True)}
        own, *others = (found[request.pid] for request in new.requests)
        return Variants(
            own.popularity,
            [
                Varied(
                    variant.label,
                    variant.changed,
                    one.popularity,
                    one.views,
                    one.popularity - own.popularity,
                    thumbnail(variant.image, CROP_SIZE) if body.what == "crops" else "",
                )
                for variant, one in zip(variants, others, strict=True)
            ],
        )

    def rank(self, body: Drafts) -> Ranking:
        """The drafts of a CSV file, the most popular first."""
        with TemporaryDirectory(prefix="popularity-app-", dir=self._predictor.scratch) as name:
            file = Path(name) / "posts.csv"
            file.write_text(body.csv, encoding="utf-8")
            try:
                requests = read_requests(file, self._further.names)
            except DataError as error:
                raise DataError(error.problem, row=error.row, expected=error.expected, fix=error.fix) from error
            if len(requests) > MAX_DRAFTS:
                raise DataError(
                    f"{len(requests)} drafts", expected=f"at most {MAX_DRAFTS}; `predict --posts` takes more"
                )
            for request in requests:
                request.fields = {name: text for name, text in request.fields.items() if name != "image"}
            new = make_posts(requests, self._known, Path(name), self._further)
            found = {one.pid: one for one in self._predictor.predict(new, 1)} if new.table.height else {}
        ranked = [_ranked(request, found.get(request.pid)) for request in requests]
        ranked.sort(key=lambda one: (one.popularity is None, -(one.popularity or 0.0), one.row))
        return Ranking(COVERAGE, ranked)

    @cached_property
    def options(self) -> dict[str, Any]:
        """What a form can offer: users and classes of the data, the dates of its posts, and how they are named."""
        users = self._known["uid"].value_counts().sort(["count", "uid"], descending=[True, False]).head(SHOWN_USERS)
        classes: dict[str, list[str]] = {}
        for key in self._known["subcategory"].unique().sort():
            category, subcategory = class_names(key)
            if category:
                classes.setdefault(category, []).append(subcategory)
        first, last = self._dates
        return {
            "users": users["uid"].to_list(),
            "classes": classes,
            "posts": self._known.height,
            "counted": counted(self._columns),
            "columns": {name: self._values(name) for name in self._further.names},
            "first": first.isoformat(),
            "last": last.isoformat(),
        }

    def _values(self, name: str) -> list[str]:
        """The values of a further column of categories, the most frequent first; none for a column of numbers."""
        if name not in self._further.categories:
            return []
        column = read_table(self._predictor.project.root / paths.COLUMNS, COLUMNS)[self._further.categories[name]]
        counts = column.drop_nulls().rename("value").value_counts().sort(["count", "value"], descending=[True, False])
        return counts["value"].head(SHOWN_CATEGORIES).to_list()

    def picture(self, pid: str) -> str | None:
        """The small picture of a stored post as a data URI; None if there is none."""
        return self._run.thumbnails.data_uri(pid)

    @cached_property
    def _dates(self) -> tuple[datetime, datetime]:
        dates = self._known["posted_at"]
        first, last = dates.min(), dates.max()
        assert isinstance(first, datetime)
        assert isinstance(last, datetime)
        return first, last

    def _picture(self, encoded: str) -> bytes:
        return read_picture(encoded, self._predictor.settings.index.max_pixels) if encoded else b""

    def _posts(self, drafts: Sequence[tuple[Draft, bytes]]) -> _Posts:
        for draft, _ in drafts[:1]:
            refuse_unknown_columns(draft.columns, self._further, '"columns": {"NAME": "VALUE"}')
        return _Posts(self._predictor, self._further, drafts)

    def _near(self, kind: str, entry: Mapping[str, Any]) -> NearPrototype:
        nearest = self._nearest.filter(pl.col("head") == kind, pl.col("key") == entry["class"]).head(SHOWN_POSTS)
        posts = [PrototypePost(*row) for row in nearest.select("pid", "title", "label", "value", "picture").iter_rows()]
        return NearPrototype(entry["name"], entry["cosine"], posts)

    @cached_property
    def _nearest(self) -> pl.DataFrame:
        """The stored posts nearest to each prototype: pid, head, key, value, title, label, picture."""
        table = self._run.table(paths.NEAREST_CLASSES, NEAREST).filter(pl.col("head").is_in(MODALITIES))
        table = table.sort("value", "pid", descending=[True, False])
        table = table.group_by("head", "key", maintain_order=True).head(SHOWN_POSTS)
        shown = self._run.table(paths.IMAGES, IMAGES).select("pid", picture=pl.col("status") == "ok")
        shown = self._known.select("pid", "title", "label").join(shown, on="pid", how="left", validate="1:1")
        return table.join(shown, on="pid", how="left", validate="m:1", maintain_order="left")

    def _limits(self, found: Prediction, posted_at: datetime) -> list[str]:
        first, last = self._dates
        limits = [NEVER_CAUSE]
        if any(note.startswith("unknown user") for note in found.notes):
            limits.append(UNSEEN_USER)
        if posted_at > last:
            days = (posted_at - last) / timedelta(days=1)
            limits.append(
                f"The date lies {days:,.0f} days after the last post of the data ({last:%Y-%m-%d}): from there on the "
                "trend is assumed."
            )
        if posted_at < first:
            limits.append(f"The date lies before the first post of the data ({first:%Y-%m-%d}).")
        return limits

    def _hours(self, post: Draft, values: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
        """Each hour of the days `values` of the draft's week, in UTC, at the draft's minute."""
        request = post.request()
        table = make_posts([request], self._known, Path()).table
        if request.problem:
            raise DataError(request.problem)
        at: datetime = table["posted_at"][0]
        days = [int(value) for value in values or "0123456" if value in tuple("0123456")]
        if len(days) < len(values) or not days:
            raise DataError(f"weekdays {', '.join(values)}", expected="0 (Monday) to 6")
        found = []
        for day in days:
            for hour in range(24):
                moment = (at + timedelta(days=day - at.weekday())).replace(hour=hour)
                found.append((f"{moment:%a %H:%M}", {"date": moment.isoformat()}))
        return found

    def _tags(self, post: Draft, values: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
        """The draft without each of its tags, and with each of those that posts of its class have most often."""
        if values:
            raise DataError("values for tags", expected="none: the tags are those of the post and of its class")
        words = list(dict.fromkeys(post.tags.split()))
        found = [
            (f"without {word}", {"tags": " ".join(other for other in words if other != word)})
            for word in words[:DROPPED_TAGS]
        ]
        own = {word.lower() for word in words}
        more = [word for word in self._frequent_tags(post) if word not in own][:ADDED_TAGS]
        return found + [(f"with {word}", {"tags": " ".join([*words, word])}) for word in more]

    def _frequent_tags(self, post: Draft) -> list[str]:
        posts = self._known
        for level, names in (("subcategory", (post.category, post.subcategory)), ("category", (post.category,))):
            of_class = self._known.filter(pl.col(level) == class_key(*(name.strip() for name in names)))
            if post.category and of_class.height:
                posts = of_class
                break
        words = posts.select(tag=pl.col("tags").str.to_lowercase().str.extract_all(r"\S+").list.unique()).explode("tag")
        counts = words["tag"].drop_nulls().value_counts().sort(["count", "tag"], descending=[True, False])
        return counts["tag"].head(ADDED_TAGS + len(post.tags.split())).to_list()

    def _titles(self, post: Draft, values: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
        del post
        if not values:
            raise DataError("no titles", expected="titles to compare")
        return [(title, {"title": title}) for title in values]

    def _users(self, post: Draft, values: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
        others = [uid for uid in self.options["users"] if uid != post.user.strip()][:COMPARED_USERS]
        return [(user or "a user without posts", {"user": user}) for user in values or [*others, ""]]


COVERAGE = "0.8"  # of the intervals of a ranking


def _ranked(request: Request, found: Prediction | None) -> Ranked:
    title = request.get("title")
    if found is None:
        return Ranked(request.row, title, None, None, (None, None), [], request.problem)
    interval = found.intervals.get(COVERAGE, (None, None))
    return Ranked(request.row, title, found.popularity, found.views, interval, found.notes, "")


class _Posts:
    """Drafts as new posts, their pictures in files that are there while the posts are read: a context manager."""

    def __init__(self, predictor: Predictor, further: FurtherColumns, drafts: Sequence[tuple[Draft, bytes]]) -> None:
        self._known, self._further, self._drafts = predictor.known, further, drafts
        self._folder = TemporaryDirectory(prefix="popularity-app-", dir=predictor.scratch)

    def __enter__(self) -> NewPosts:
        root, names = Path(self._folder.name), dict[bytes, str]()
        requests = []
        for row, (draft, image) in enumerate(self._drafts):
            if image and image not in names:
                names[image] = f"picture-{len(names)}"
                (root / names[image]).write_bytes(image)
            requests.append(draft.request(row, names.get(image, "")))
        return make_posts(requests, self._known, root, self._further)

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()
