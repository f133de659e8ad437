"""Raw files in the official layout to the tables posts, users and quarantine, and a summary of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl
from tqdm import tqdm

from popularity.core.config import Section
from popularity.core.contracts import LEVELS, POSTS, QUARANTINE, USERS, check_table, class_key
from popularity.core.errors import DataError
from popularity.dataset.dates import DateColumn, post_dates
from popularity.dataset.layout import SplitFiles, find_splits
from popularity.dataset.parsing import MISSING, Parser, Quarantine, Rows, from_seconds
from popularity.dataset.reading import JsonTable, read_lines, stored_as
from popularity.dataset.summary import Notes, Source, summarise
from popularity.dataset.table_columns import TableColumns
from popularity.dataset.users import USER_FIELDS, UserVectors, holds_vectors, user_columns

log = logging.getLogger(__name__)

FINEST_GEO_ACCURACY = 16
LAST_POST = "last_post"  # dataset.collected_at: the counts were read when the last post was made
MAX_LABEL = 40  # log2(views + 1) of no picture; a larger one is a count
IMAGE_SUFFIX = r"(?i)\.(jpe?g|png|webp)$"

_IDS = {"uid": ("Uid",), "pid": ("Pid",)}
_FIELDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "category": {name: (name,) for name in ("Category", "Subcategory", "Concept")},
    "text": {name: (name,) for name in ("Title", "Mediatype", "Alltags")},
    "temporalspatial": {name: (name,) for name in ("Postdate", "Latitude", "Longitude", "Geoaccuracy")},
    "additional": {name: (name,) for name in ("Pathalias", "Ispublic", "Mediastatus")},
}


@dataclass(frozen=True)
class DatasetParams(Section):
    """Section `dataset` of params.yaml.

    Args:
        root: of the data set.
        collected_at: when the counts were read, UTC; `last_post`: on the date of the last post.
        labels: what train_label.txt holds: log2(views + 1), or the counts of views themselves.
        without_user_file: True if the data set may lack its user files.
        table: a table of posts, from `root` on, which then is the folder of its pictures; "": the official layout.
        test_table: the table of test posts, from `root` on; the same as `table`: test posts are rows of it.
        test_from: posts of the table from this date on are the test part; "": those without a count.
        follow_links: True to take pictures of the table that are links to files outside of the folder.
        several_pictures: of a post of the table: the first is its picture, or the mean of their vectors.
        columns: what each column of the table is.
    """

    root: str
    collected_at: str
    labels: Literal["log2", "counts"]
    without_user_file: bool
    table: str = ""
    test_table: str = ""
    test_from: str = ""
    follow_links: bool = False
    several_pictures: Literal["first", "mean"] = "first"
    columns: TableColumns = field(default_factory=TableColumns)


@dataclass(frozen=True)
class Ingested:
    """A data set as tables that keep the contracts POSTS, USERS and QUARANTINE, and a summary of what was found."""

    posts: pl.DataFrame
    users: pl.DataFrame
    quarantine: pl.DataFrame
    summary: dict[str, Any]


def ingest(
    root: Path,
    labels: Literal["log2", "counts"] = "log2",
    *,
    without_user_file: bool = False,
    collected_at: datetime | None = None,
) -> Ingested:
    """The data set under `root`, checked.

    A value that is only implausible becomes null (a date becomes the median of its split) and gets a row in
    `quarantine`; no post is lost. The test labels are never opened.

    Args:
        root: of the data set.
        labels: as in DatasetParams.
        without_user_file: as in DatasetParams.
        collected_at: when the counts of all posts were read, UTC; None: not known.

    Raises:
        DataError: unknown layout, a missing file, broken JSON, files whose rows are not of the same posts,
            a duplicate pid, a label that cannot be log2(views + 1), or too many unusable dates.
    """
    splits = find_splits(root, without_user_file=without_user_file)
    quarantine, notes, users = Quarantine(), Notes(), UserVectors()
    posts = []
    files = sum(len(source.files) for source in splits)
    with tqdm(total=files, desc="ingest", unit="file") as progress:
        for source in splits:
            reader = _SplitReader(source, quarantine, notes, counts=labels == "counts")
            posts.append(_read_split(reader, users, progress))
    collected = pl.lit(collected_at).cast(POSTS.columns["collected_at"].dtype)
    table = pl.concat(posts).sort(POSTS.key).with_columns(collected_at=collected).select(list(POSTS.columns))
    _refuse_shared_pids(table, splits)
    user_table, differing = users.table()
    entries = quarantine.table()
    for frame, contract in ((table, POSTS), (user_table, USERS), (entries, QUARANTINE)):
        check_table(frame, contract)
    if len(splits) == 1:
        log.info("%s has no test split: posts hold the training split alone, and no submission can be made", root)
    if len(entries):
        log.info("%d values could not be used as published; see the summary and the quarantine table", len(entries))
    notes.users_with_differing_vectors = differing
    sources = [Source(source.split, source.folder, source.unread) for source in splits]
    return Ingested(table, user_table, entries, summarise(root, sources, table, entries, notes))


def collection_date(text: str) -> datetime | None:
    """The date of `dataset.collected_at`, UTC; None for `last_post`.

    Raises:
        DataError: it is neither.
    """
    if text == LAST_POST:
        return None
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(
            f"dataset.collected_at is {text!r}",
            expected=f"{LAST_POST}, or a date such as 2016-05-01 or 2016-05-01T12:00 (UTC)",
            fix="set dataset.collected_at in params.yaml",
        ) from None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)


def _read_split(reader: _SplitReader, users: UserVectors, progress: tqdm[Any]) -> pl.DataFrame:
    """The posts of one split in file order. Each file is parsed to typed columns before the next is opened."""
    source = reader.source
    columns: dict[str, pl.Series] = {}
    for role, read in (
        ("category", reader.categories),
        ("text", reader.texts),
        ("temporalspatial", reader.times_and_places),
        ("additional", reader.additional),
        ("images", reader.image_paths),
        ("label", reader.labels),
        ("user", lambda: reader.user_columns(users)),
    ):
        progress.set_postfix_str(source.files[role].name if role in source.files else "")
        columns |= read()
        progress.update(role in source.files)
    frame = pl.DataFrame(columns).with_columns(
        pl.lit(source.split).alias("split"), pl.int_range(pl.len(), dtype=pl.Int64).alias("source_index")
    )
    return frame.select([name for name in POSTS.columns if name in frame.columns])


class _SplitReader:
    """Reads the files of one split; the category file comes first, and all others must follow its rows."""

    def __init__(self, source: SplitFiles, quarantine: Quarantine, notes: Notes, *, counts: bool) -> None:
        self.source, self.quarantine, self.notes, self.counts = source, quarantine, notes, counts
        self.uids = self.pids = pl.Series(dtype=pl.String)

    def categories(self) -> dict[str, pl.Series]:
        frame = self._table("category")
        path = self.source.files["category"]
        for name in _IDS:
            _refuse_unusable_ids(frame[name], _IDS[name][0], path)
        self.uids, self.pids = frame["uid"], frame["pid"]
        if self.pids.is_duplicated().any():
            pid = self.pids.filter(self.pids.is_duplicated())[0]
            first, second = (self.pids == pid).arg_true()[:2]
            raise DataError(
                f"Pid {pid} occurs again; its first row is {first}", file=path, row=second, expected="each Pid once"
            )
        parser = self._parser("category")
        names = frame.select("Category", "Subcategory", "Concept")
        names = names.with_columns(parser.text(column.name, column) for column in names)
        for level, column in zip(LEVELS, names, strict=True):
            self.notes.empty_class_names[level] += int((column == "").sum())
        # Paths repeat: each is joined once.
        paths = names.unique(maintain_order=True)
        keys = {level: [class_key(*path[: depth + 1]) for path in paths.rows()] for depth, level in enumerate(LEVELS)}
        joined = names.join(
            paths.with_columns(pl.Series(level, values, dtype=pl.String) for level, values in keys.items()),
            on=names.columns,
            how="left",
            maintain_order="left",
            validate="m:1",
        )
        return {"pid": self.pids, "uid": self.uids, **{level: joined[level] for level in LEVELS}}

    def texts(self) -> dict[str, pl.Series]:
        frame, parser = self._aligned_table("text"), self._parser("text")
        columns = {"title": "Title", "tags": "Alltags", "media_type": "Mediatype"}
        return {name: parser.text(source, frame[source]) for name, source in columns.items()}

    def times_and_places(self) -> dict[str, pl.Series]:
        frame, parser = self._aligned_table("temporalspatial"), self._parser("temporalspatial")
        dates = DateColumn(self.source.files["temporalspatial"], "Postdate", f"the {self.source.split} split")
        accuracy = parser.integer("Geoaccuracy", frame["Geoaccuracy"], 0, FINEST_GEO_ACCURACY, "set to 0")
        latitude = parser.number("Latitude", frame["Latitude"], -90, 90)
        longitude = parser.number("Longitude", frame["Longitude"], -180, 180)
        # Where nothing is known, sites write the point in the Gulf of Guinea, at times with a fine accuracy.
        nowhere = ((latitude == 0) & (longitude == 0)).fill_null(False)
        self.notes.places_at_zero[self.source.split] = int(nowhere.sum())
        return {
            "posted_at": from_seconds(post_dates(frame["Postdate"], parser, dates)),
            "latitude": latitude.set(nowhere, None),
            "longitude": longitude.set(nowhere, None),
            "geo_accuracy": accuracy.fill_null(0).set(nowhere, 0).cast(pl.Int8),
        }

    def additional(self) -> dict[str, pl.Series]:
        frame, parser = self._aligned_table("additional"), self._parser("additional")
        alias = frame["Pathalias"].str.strip_chars()
        return {
            "has_path_alias": ~alias.is_in(MISSING).fill_null(True),
            "is_public": parser.flag("Ispublic", frame["Ispublic"]),
            "media_status": parser.text("Mediastatus", frame["Mediastatus"]),
        }

    def image_paths(self) -> dict[str, pl.Series]:
        """The paths split/Uid/Pid.jpg; "" for a post whose line is empty: it has no picture.

        A line may spell it otherwise: back slashes, a leading "./", another suffix of a picture. `index_images` finds
        the file under each suffix.
        """
        lines = self._lines("images", header=lambda line: ~line.str.contains(r"[/\\]"))
        frame = pl.DataFrame({"uid": self.uids, "pid": self.pids})
        expected = frame.select(pl.format(f"{self.source.split}/{{}}/{{}}.jpg", "uid", "pid")).to_series()
        named = lines != ""
        plain = lines.str.replace(r"^(\./)+", "").str.replace(IMAGE_SUFFIX, ".jpg")
        plain = pl.select(
            pl.when(plain == expected)
            .then(plain)
            .otherwise(plain.str.replace_all("\\", "/", literal=True).str.replace(r"^(\./)+", ""))
        ).to_series()
        path, reference = self.source.files["images"], self.source.files["category"]
        differing = (named & (plain != expected)).arg_true()
        if len(differing):
            row = int(differing[0])
            _refuse_difference(lines[row : row + 1], expected[row : row + 1], "image path", path, reference, row)
        spelled = int((named & (lines != expected)).sum())
        self.notes.files[str(path)] |= {"without_picture": int((~named).sum()), "spelled_otherwise": spelled}
        return {"image_path": expected.set(~named, "")}

    def labels(self) -> dict[str, pl.Series]:
        if "label" not in self.source.files:
            return {"label": pl.repeat(None, len(self.pids), dtype=pl.Float64, eager=True)}
        texts = self._lines("label", header=lambda line: line.cast(pl.Float64, strict=False).is_null())
        labels = texts.cast(pl.Float64, strict=False)
        file = self.source.files["label"]
        unusable = ~labels.is_finite().fill_null(False)
        if unusable.any():
            row = int(unusable.arg_true()[0])
            raise DataError(
                f"label {texts[row]!r} is no finite number",
                file=file,
                row=row,
                expected="one number a line: log2(views + 1)",
            )
        beyond = labels < 0 if self.counts else ~labels.is_between(0, MAX_LABEL, closed="left")
        if beyond.any():
            row = int(beyond.arg_true()[0])
            raw = not self.counts and (labels == labels.floor()).all() and labels.min() >= 0  # type: ignore[operator]
            raise DataError(
                f"label {texts[row]} cannot be log2(views + 1)" + ("; are these raw counts?" if raw else ""),
                file=file,
                row=row,
                expected=(
                    "counts of views, 0 or more"
                    if self.counts
                    else f"log2(views + 1), which lies between 0 and {MAX_LABEL} for every picture"
                ),
                fix=(
                    "dataset.labels: counts in params.yaml takes the logarithm"
                    if raw
                    else "write a label that can be one, or remove the post from every file"
                ),
            )
        return {"label": (labels + 1).log(2) if self.counts else labels}

    def user_columns(self, users: UserVectors) -> dict[str, pl.Series]:
        if "user" not in self.source.files:
            return self._no_user_columns(users)
        path = self.source.files["user"]
        table = JsonTable(path, {**_IDS, **USER_FIELDS}, required=())
        ids = pl.DataFrame({"uid": self.uids, "pid": self.pids})
        frames, start, vectors = [], 0, False
        for chunk in table.frames():
            if table.rows > len(ids):
                continue  # counted to the end for the message
            owners = ids[start : table.rows]
            _refuse_other_ids(chunk, owners, path, self.source.files["category"], start)
            vectors = vectors or holds_vectors(chunk)
            parser = Parser(Rows(path.name, start, owners["pid"]), self.quarantine)
            frames.append(user_columns(chunk, parser, vectors))
            users.add(owners["uid"], chunk, parser, vectors)
            start = table.rows
        self._note("user", table, f"{table.layout}, " + ("vectors (form A)" if vectors else "texts (form B)"))
        self._refuse_row_count(table.rows, path)
        if set(USER_FIELDS) <= set(table.absent):
            raise DataError(
                "no row has a field of the user file",
                file=path,
                expected=f"the fields {', '.join(' or '.join(names) for names in USER_FIELDS.values())}",
            )
        return {column.name: column for column in pl.concat(frames)}

    def _no_user_columns(self, users: UserVectors) -> dict[str, pl.Series]:
        """The user columns of a split without a user file: all null."""
        self.notes.without_user_file.append(self.source.split)
        nothing = pl.Series([None] * len(self.pids), dtype=pl.String)
        rows = pl.DataFrame(dict.fromkeys(USER_FIELDS, nothing))
        parser = Parser(Rows("", 0, self.pids), self.quarantine)
        users.add(self.uids, rows, parser, vectors=False)
        return {column.name: column for column in user_columns(rows, parser, vectors=False)}

    def _table(self, role: str) -> pl.DataFrame:
        table = JsonTable(self.source.files[role], {**_IDS, **_FIELDS[role]}, required=[*_IDS, *_FIELDS[role]])
        frame = table.read()
        self._note(role, table, table.layout)
        return frame

    def _aligned_table(self, role: str) -> pl.DataFrame:
        frame, path = self._table(role), self.source.files[role]
        self._refuse_row_count(len(frame), path, frame["pid"])
        ids = pl.DataFrame({"uid": self.uids, "pid": self.pids})
        _refuse_other_ids(frame, ids, path, self.source.files["category"], 0)
        return frame

    def _lines(self, role: str, header: Callable[[pl.Series], pl.Series]) -> pl.Series:
        """The lines of a file; a first one too many is left out if `header` is true of it and of no second."""
        path = self.source.files[role]
        lines = read_lines(path, len(self.pids))
        entry = {"role": role, "layout": "lines", "rows": len(lines), "stored_as": stored_as(path)}
        if len(lines) == len(self.pids) + 1 and header(lines.head(2)).to_list() == [True, False]:
            log.info("%s: line 1 is a header, %r: left out", path, lines[0])
            entry |= {"rows": len(lines) - 1, "header": lines[0]}
            lines = lines[1:]
        self.notes.files[str(path)] = entry
        self._refuse_row_count(len(lines), path)
        return lines

    def _parser(self, role: str) -> Parser:
        return Parser(Rows(self.source.files[role].name, 0, self.pids), self.quarantine)

    def _note(self, role: str, table: JsonTable, layout: str) -> None:
        self.notes.files[str(table.path)] = {
            "role": role,
            "layout": layout,
            "stored_as": stored_as(table.path),
            "rows": table.rows,
            "ignored_fields": table.unknown,
            "absent_fields": [name for name in table.absent if name not in _IDS],
        }
        if table.unknown:
            log.info("%s: ignored the unknown fields %s", table.path, ", ".join(table.unknown))

    def _refuse_row_count(self, rows: int, path: Path, pids: pl.Series | None = None) -> None:
        """`pids`: those of the file, if it has any; they show which row was lost or added."""
        if rows == len(self.pids):
            return
        row = shared = min(rows, len(self.pids))
        if pids is not None:
            differing = pids[:shared].ne_missing(self.pids[:shared]).arg_true()
            row = int(differing[0]) if len(differing) else shared
        raise DataError(
            f"{rows} rows, but {self.source.files['category'].name} has {len(self.pids)}; this row differs first",
            file=path,
            row=row,
            expected=f"{len(self.pids)} rows, in the same order",
            fix="compare both files with the published ones and repair the incomplete one",
        )


def _refuse_unusable_ids(ids: pl.Series, name: str, path: Path) -> None:
    """Ids name folders and files: an empty one, or one that could leave its folder, is refused."""
    usable = (ids.str.contains(r"^[^/\x00\r\n]+$") & ~ids.is_in([".", ".."])).fill_null(False)
    if not usable.all():
        row = int((~usable).arg_true()[0])
        expected = f"a {name} of at least one character, without '/' and line breaks"
        raise DataError(f"{name} {ids[row]!r} cannot be used", file=path, row=row, expected=expected)


def _refuse_other_ids(frame: pl.DataFrame, ids: pl.DataFrame, path: Path, reference: Path, start: int) -> None:
    """Uid and Pid of `frame`, where it has them, must be those of the category file."""
    for name, (published,) in _IDS.items():
        if frame[name].null_count() < len(frame):
            _refuse_difference(frame[name], ids[name], published, path, reference, start)


def _refuse_difference(
    found: pl.Series, expected: pl.Series, what: str, path: Path, reference: Path, start: int = 0
) -> None:
    differing = found.ne_missing(expected)
    if differing.any():
        row = int(differing.arg_true()[0])
        raise DataError(
            f"{what} is {found[row]!r}",
            file=path,
            row=start + row,
            expected=f"{expected[row]!r}, as in the same row of {reference.name}",
            fix="the files of a split list the same posts in one order: find the row that was added, lost or moved",
        )


def _refuse_shared_pids(posts: pl.DataFrame, splits: Sequence[SplitFiles]) -> None:
    shared = posts.filter(posts["pid"].is_duplicated())
    if len(shared):
        test, train = (shared.filter(split=split).row(0, named=True) for split in ("test", "train"))
        raise DataError(
            f"Pid {test['pid']} is also row {train['source_index']} of the training split",
            file=splits[-1].files["category"],
            row=test["source_index"],
            expected="no post in both splits",
        )
