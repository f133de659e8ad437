"""Diverse sampling: time first, then concept, then user, then the draw."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from popularity.core.arrays import Int64Array
from popularity.prototypes.sampling import diverse_sample


def sample(
    seconds: object, concepts: object = 0, users: object = 0, draw: Int64Array | None = None, limit: int = 4
) -> list[int]:
    """diverse_sample with single codes spread over all posts, and drawn in the given order unless said otherwise."""
    times = np.asarray(seconds)
    concept, user = (np.broadcast_to(np.asarray(given), len(times)) for given in (concepts, users))
    drawn = np.arange(len(times)) if draw is None else draw
    return list(diverse_sample(times, concept, user, drawn, limit))


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_no_more_posts_than_places_are_all_taken(count: int) -> None:
    assert sample(np.full(count, 7)) == list(range(count))


def test_each_segment_gives_one_post() -> None:
    # 0 ... 399 in four segments of 100: nearly all posts lie in the first.
    seconds = [*range(50), 150, 250, 260, 399]
    taken = sample(seconds)
    assert [seconds[post] // 100 for post in taken] == [0, 1, 2, 3]


def test_a_bursty_class_is_spread_over_its_time() -> None:
    rng = np.random.default_rng(0)
    seconds = np.sort(np.concatenate([rng.integers(0, 1000, 5000), rng.integers(0, 1_000_000, 300)]))
    taken = seconds[sample(seconds, draw=rng.permutation(5300), limit=256)]
    segments = seconds * 256 // (seconds.max() + 1)
    used = set((taken * 256 // (seconds.max() + 1)).tolist())
    assert len(taken) == 256
    assert used == set(segments.tolist())
    assert (taken < 1000).sum() <= 256 - len(used) + 1  # the burst only fills what others cannot


def test_empty_segments_leave_places_for_further_passes() -> None:
    # Segments 0 and 3 of four: two passes take two of each.
    assert sample([0, 1, 2, 3, 97, 98, 99]) == [0, 1, 4, 5]


def test_the_last_pass_is_evenly_spaced() -> None:
    """10 segments of two posts each and one of a single post; 11 + 4 places: the four lie apart in time."""
    seconds = sorted([*range(0, 1500, 150), *range(1, 1500, 150), 1799])
    taken = sample(seconds, limit=15)
    twice = [segment for segment, count in Counter(seconds[post] * 15 // 1800 for post in taken).items() if count == 2]
    assert len(taken) == 15
    assert len(twice) == 4
    assert max(twice) - min(twice) >= 7


def test_concepts_take_turns_then_users() -> None:
    # One moment: one segment. Concept 0 has nearly all posts, and so has user 0 within it.
    concepts = np.array([0] * 20 + [1] * 5 + [2])
    users = np.array([0] * 18 + [1, 2] + [0] * 4 + [3] + [0])
    taken = sample(np.zeros(26, int), concepts, users, limit=7)
    assert Counter(concepts[taken].tolist()) == {0: 3, 1: 3, 2: 1}
    assert set(users[taken].tolist()) >= {1, 2, 3}


def test_concepts_take_turns_over_segments() -> None:
    """Each segment offers both concepts: they alternate, though concept 0 was drawn first everywhere."""
    seconds = np.repeat(np.arange(8) * 10, 2)
    concepts = np.tile([0, 1], 8)
    taken = sample(seconds, concepts, limit=8)
    assert concepts[taken].tolist() == [0, 1] * 4


def test_the_draw_settles_ties() -> None:
    seconds = np.zeros(50, int)
    draws = [np.random.default_rng(seed).permutation(50) for seed in (0, 0, 1)]
    first, again, other = (sample(seconds, draw=draw) for draw in draws)
    assert first == again
    assert first == sorted(np.argsort(draws[0])[:4].tolist())
    assert first != other


@pytest.mark.parametrize("n_segments", [1, 256])
def test_each_place_costs_one_scan_of_a_segment(n_segments: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost that the function states: limit * n / segments in use. A search over all pairs of posts costs n * n."""
    n, limit, scans = 5_120, 256, []
    argmin = np.argmin

    def counted(values: npt.NDArray[np.int64]) -> np.intp:
        scans.append(len(values))
        return argmin(values)

    monkeypatch.setattr(np, "argmin", counted)
    taken = sample(np.arange(n) % n_segments, np.arange(n) % 50, np.arange(n), limit=limit)
    assert len(set(taken)) == limit
    assert len(scans) == limit
    assert sum(scans) <= limit * n // n_segments
