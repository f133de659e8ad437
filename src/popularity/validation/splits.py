"""The validation splits: the role of every post in every fold, made once and read by all later stages.

    time ->    |----------- before the holdout ------------|-- holdout --|---- test part ----|
    holdout    |  train, some users excluded              |    valid    |
    forward 2  |  train, some users excluded     | valid  |  excluded   |
    forward 1  |  train, some excluded  | valid  |       excluded       |
    forward 0  |  train ...    | valid  |            excluded           |
    group      |  five folds by user                      |  excluded   |
    random     |  five random folds                       |  excluded   |
    refit      |  train                                                 |       valid       |

An excluded post is neither trained on, nor counted in any feature, nor scored. A forward split starts at its origin:
posts from there to its end are valid, posts before it are train. Valid spans of forward splits may overlap. Splits are
numbered in order of time, and each excludes users of its own. `spans.py` says where they start and end.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.model_selection import GroupKFold, KFold

from popularity.core.arrays import Int64Array, rounded
from popularity.core.as_of import interleaved_horizon, lies_among
from popularity.core.collection_order import NOT_COLLECTED, pid_numbers
from popularity.core.contracts import FOLDS, HOLDOUT, FoldKey
from popularity.core.errors import DataError
from popularity.validation.collection import rows_to_keep
from popularity.validation.spans import SplitParams, SplitSpan, split_spans, wanted_span, whole_ratio
from popularity.validation.summary import DIGITS, count_rows, distance, scheme_to_quote

logger = logging.getLogger(__name__)

Roles = npt.NDArray[np.str_]

SCHEME_SEED = {"holdout": 1, "forward": 2, "group": 3, "random": 4}
MIN_TRAIN_FRACTION = 0.25  # of the rows before an origin that stays train, however many users should be excluded


@dataclass(frozen=True)
class Split:
    """The roles of some posts in one fold.

    Args:
        key: scheme and fold.
        pids: (n,).
        roles: (n,) train, valid or excluded.
        note: what the reader of the summary must know; empty as a rule.
        span_ratio: valid span / training span of a split in time.
    """

    key: FoldKey
    pids: pl.Series
    roles: Roles
    note: str = ""
    span_ratio: float | None = None

    def table(self) -> pl.DataFrame:
        """Returns (scheme, fold, pid, role), a row a post."""
        return pl.DataFrame(
            {"pid": self.pids, "role": pl.Series(self.roles.tolist(), dtype=pl.String)},
        ).select(pl.lit(self.key.scheme).alias("scheme"), pl.lit(self.key.fold, pl.Int32).alias("fold"), "pid", "role")


@dataclass(frozen=True)
class UnseenShare:
    """The share of valid posts that should be by unseen users, those without a train row.

    Args:
        target: 0 to 1.
        tolerance: by which it may be missed.
    """

    target: float
    tolerance: float

    def reached_by(self, share: float) -> bool:
        return abs(share - self.target) <= self.tolerance


@dataclass(frozen=True)
class Likeness:
    """What the valid rows of a split in time share with the test part.

    Args:
        unseen: the share of posts by unseen users.
        numbers: (m,) of the test posts' Pids; None: valid rows are of any place in the order of collection.
    """

    unseen: UnseenShare
    numbers: Int64Array | None


def make_splits(posts: pl.DataFrame, params: SplitParams) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Returns the roles of every post in every scheme, the `refit` included (contract FOLDS), and a summary.

    A training post has one row in each (scheme, fold); test posts occur in `refit` alone.

    Args:
        posts: contract POSTS.
        params: section split.

    Raises:
        DataError: too few posts or users for the schemes.
    """
    posts = posts.select("pid", "uid", "split", "posted_at").sort("posted_at", "pid")
    train, test = (posts.filter(pl.col("split") == part) for part in ("train", "test"))
    if train["uid"].n_unique() < params.n_folds:
        raise DataError(
            f"{train['uid'].n_unique()} users in the training part",
            expected=f"at least split.n_folds = {params.n_folds}",
            fix="check dataset.root, or lower split.n_folds in params.yaml",
        )
    target, source = _unseen_target(train, test, params)
    likeness = Likeness(UnseenShare(target, params.tolerance), _test_numbers(test, params))
    wanted = wanted_span(train, test, params.span)
    holdout, forward = split_spans(train, wanted, params)
    before = train.filter(pl.col("posted_at") < holdout.start)
    if before["posted_at"].n_unique() < 2 or before["uid"].n_unique() < params.n_folds:
        raise DataError(
            f"{before.height} posts before the holdout, which starts at {holdout.start}",
            expected="training posts spread over time, with more users than split.n_folds",
            fix="check the Postdate column, or lower split.holdout_fraction in params.yaml",
        )
    splits = [
        holdout_split(train, holdout, likeness, params),
        *forward_splits(train, forward, likeness, params),
        *group_folds(train, holdout.start, params),
        *random_folds(train, holdout.start, params),
        _refit(train, test),
    ]
    tables = [split.table() for split in splits]
    roles = pl.concat(tables).sort(FOLDS.key)
    horizon = interleaved_horizon(posts, roles)
    folds = [
        {
            "scheme": split.key.scheme,
            "fold": split.key.fold,
            "note": split.note,
            "span_ratio": rounded(split.span_ratio, DIGITS),
            **count_rows(rows),
            **distance(rows, horizon),
        }
        for split, table in zip(splits, tables, strict=True)
        for rows in [table.join(posts, on="pid", how="left", validate="1:1")]
    ]
    interleaved = lies_among(test["posted_at"], train["posted_at"])
    summary = {
        "wanted_unseen_post_share": round(target, 4),
        "wanted_from": source,
        "tolerance": params.tolerance,
        "wanted_span_ratio": rounded(wanted.ratio, DIGITS),
        "wanted_span_from": wanted.source,
        "interleaved": interleaved,
        "quote": scheme_to_quote(folds, target) if interleaved else HOLDOUT,
        "schemes": folds,
    }
    for split in splits:
        if split.note:
            logger.info("scheme %s: %s", split.key.scheme, split.note)
    if interleaved:
        logger.warning(
            "the test posts lie among the training posts in time: quote the score of scheme %s", summary["quote"]
        )
    return roles, summary


def rows_of(splits: pl.DataFrame, schemes: list[str]) -> Iterator[tuple[FoldKey, pl.DataFrame]]:
    """Yields (key, rows (pid, role) without the excluded ones) of each fold, in order."""
    kept = splits.filter(pl.col("scheme").is_in(schemes) & (pl.col("role") != "excluded"))
    for (scheme, fold), rows in kept.sort(FOLDS.key).group_by("scheme", "fold", maintain_order=True):
        yield FoldKey(str(scheme), int(str(fold))), rows.select("pid", "role")


def holdout_split(train: pl.DataFrame, span: SplitSpan, likeness: Likeness, params: SplitParams) -> Split:
    """Returns the holdout: posts of the span are valid, posts before it are train, some users are excluded.

    Args:
        train: (pid, uid, posted_at) of the training part.
        span: of the holdout.
        likeness: of the valid rows.
        params: section split.
    """
    return _time_split(FoldKey("holdout", 0), train, span, likeness, _split_rng(params, "holdout", later=0))


def forward_splits(
    train: pl.DataFrame, spans: Sequence[SplitSpan], likeness: Likeness, params: SplitParams
) -> list[Split]:
    """Returns the forward splits in order of time; a post may be valid in several, and none is valid in the holdout.

    Args:
        train: (pid, uid, posted_at) of the training part, sorted by time.
        spans: of the splits, in order of time.
        likeness: of the valid rows.
        params: section split.
    """
    splits = []
    for fold, span in enumerate(spans):
        rng = _split_rng(params, "forward", later=len(spans) - 1 - fold)
        splits.append(_time_split(FoldKey("forward", fold), train, span, likeness, rng))
    return splits


def group_folds(train: pl.DataFrame, end: datetime, params: SplitParams) -> list[Split]:
    """Returns `n_folds` folds of the posts before `end`, each user's posts in one of them.

    Args:
        train: (pid, uid, posted_at) of the training part.
        end: the start of the holdout.
        params: section split.
    """
    before = _rows_before(train, end)
    # Numbers in the order of the names: scikit-learn would search all names for each user.
    groups = train["uid"].rank("dense").to_numpy()[before]
    folds = GroupKFold(params.n_folds, shuffle=True, random_state=_fold_seed(params, "group"))
    return _fold_splits("group", train, before, folds.split(before, groups=groups))


def random_folds(train: pl.DataFrame, end: datetime, params: SplitParams) -> list[Split]:
    """Returns `n_folds` random folds of the posts before `end`, which flatter every model.

    Args:
        train: (pid, posted_at) of the training part.
        end: the start of the holdout.
        params: section split.
    """
    before = _rows_before(train, end)
    folds = KFold(params.n_folds, shuffle=True, random_state=_fold_seed(params, "random"))
    return _fold_splits("random", train, before, folds.split(before))


def _refit(train: pl.DataFrame, test: pl.DataFrame) -> Split:
    both = pl.concat([train, test])
    roles = np.where(both["split"].to_numpy() == "train", "train", "valid")
    note = "" if test.height else "no test part: nothing to score"
    return Split(FoldKey("refit", 0), both["pid"], roles, note, whole_ratio(train, test))


def _split_rng(params: SplitParams, scheme: str, *, later: int) -> np.random.Generator:
    # Trailing zeros seed alike: the last forward split excludes the users that it would exclude on its own.
    return np.random.default_rng([params.seed, SCHEME_SEED[scheme], 0, later])


def _fold_seed(params: SplitParams, scheme: str) -> int:
    return int(np.random.default_rng([params.seed, SCHEME_SEED[scheme], 0]).integers(2**31))


def _unseen_target(train: pl.DataFrame, test: pl.DataFrame, params: SplitParams) -> tuple[float, str]:
    """The share of valid posts that should be by unseen users, and where it comes from."""
    if test.is_empty():
        return params.unseen_user_fraction, "split.unseen_user_fraction (no test part)"
    known = test["uid"].is_in(train["uid"].unique().to_list())
    return 1.0 - float(known.sum()) / test.height, "test part"


def _test_numbers(test: pl.DataFrame, params: SplitParams) -> Int64Array | None:
    """Numbers of the test posts' Pids where the valid rows should have their spread."""
    if not params.match_collection_order or test.is_empty():
        return None
    numbers = pid_numbers(test["pid"])
    if (numbers == NOT_COLLECTED).all():
        raise DataError(
            "no Pid of the test part is a number",
            expected="numbers, whose order is that of collection",
            fix="set split.match_collection_order: false in params.yaml",
        )
    return numbers


def _time_split(
    key: FoldKey,
    train: pl.DataFrame,
    span: SplitSpan,
    likeness: Likeness,
    rng: np.random.Generator,
) -> Split:
    """Posts in `span` are valid, earlier ones train, later ones excluded; some valid posts and users are, too."""
    times = train["posted_at"]
    after = (times >= span.end).to_numpy() if span.end is not None else np.zeros(train.height, dtype=bool)
    is_valid = (times >= span.start).to_numpy() & ~after
    is_train = ~is_valid & ~after
    place = ""
    if likeness.numbers is not None:
        keep, place = rows_to_keep(pid_numbers(train["pid"].filter(is_valid)), likeness.numbers, rng)
        after[np.flatnonzero(is_valid)[~keep]] = True
        is_valid &= ~after
    uids = train["uid"].to_numpy()
    users, note = users_to_exclude(uids[is_train], uids[is_valid], likeness.unseen, rng)
    excluded = after | (is_train & train["uid"].is_in(users).to_numpy())
    roles = np.where(excluded, "excluded", np.where(is_valid, "valid", "train"))
    return Split(key, train["pid"], roles, "; ".join(filter(None, (span.note, place, note))), span.ratio)


def users_to_exclude(
    train_uids: npt.NDArray[np.object_],
    valid_uids: npt.NDArray[np.object_],
    unseen: UnseenShare,
    rng: np.random.Generator,
) -> tuple[list[str], str]:
    """Returns the users to exclude from train, so that unseen users wrote the wanted share of the valid posts.

    Users come in random order; one that would overshoot is passed over. When all users left are too large, the one
    that ends nearest is taken. No user is excluded whose loss would leave less than MIN_TRAIN_FRACTION of the train
    rows.

    Args:
        train_uids: (train rows,) users.
        valid_uids: (valid rows,) users.
        unseen: the wanted share.
        rng: draws the order of the users.

    Returns:
        Users, and why the share was missed; empty if it was not.
    """
    train_counts = Counter(train_uids.tolist())
    spare = len(train_uids) * (1 - MIN_TRAIN_FRACTION)
    users, counts = np.unique(valid_uids.astype(str), return_counts=True)
    seen = np.array([user in train_counts for user in users], dtype=bool)
    total = len(valid_uids)
    by_unseen = int(counts[~seen].sum())
    wanted, tolerance = unseen.target, unseen.tolerance
    if by_unseen / total > wanted + tolerance:
        return [], f"{_share_text(by_unseen / total)}, more than the {100 * wanted:.1f} % wanted: no user was excluded"
    excluded: list[str] = []
    passed_over: list[int] = []
    for index in rng.permutation(np.flatnonzero(seen)):
        if by_unseen / total >= wanted - tolerance:
            break
        if train_counts[users[index]] > spare:
            continue
        if (by_unseen + counts[index]) / total <= wanted + tolerance:
            by_unseen += int(counts[index])
            spare -= train_counts[users[index]]
            excluded.append(str(users[index]))
        else:
            passed_over.append(int(index))
    passed_over = [index for index in passed_over if train_counts[users[index]] <= spare]
    if by_unseen / total < wanted - tolerance and passed_over:
        nearest = min(passed_over, key=lambda index: (abs((by_unseen + counts[index]) / total - wanted), index))
        if abs((by_unseen + counts[nearest]) / total - wanted) < abs(by_unseen / total - wanted):
            by_unseen += int(counts[nearest])
            excluded.append(str(users[nearest]))
    if unseen.reached_by(by_unseen / total):
        return excluded, ""
    reached = _share_text(by_unseen / total)
    return excluded, f"{reached}; no choice of whole users comes nearer to the {100 * wanted:.1f} % wanted"


def _share_text(share: float) -> str:
    return f"{100 * share:.1f} % of the valid posts are by unseen users"


def _rows_before(train: pl.DataFrame, end: datetime) -> Int64Array:
    return np.flatnonzero((train["posted_at"] < end).to_numpy())


def _fold_splits(
    scheme: str, train: pl.DataFrame, before: Int64Array, folds: Iterator[tuple[Int64Array, Int64Array]]
) -> list[Split]:
    """The roles in each fold of the rows `before` the holdout; `folds` holds positions in `before`."""
    splits = []
    for fold, (_, valid) in enumerate(folds):
        roles = np.full(train.height, "excluded", dtype="<U8")
        roles[before] = "train"
        roles[before[valid]] = "valid"
        splits.append(Split(FoldKey(scheme, fold), train["pid"], roles))
    return splits
