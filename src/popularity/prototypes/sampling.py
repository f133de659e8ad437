"""Diverse sampling of a class's representatives: over time, then concepts, then users (method.md, Sec 3.1)."""

from __future__ import annotations

import numpy as np

from popularity.core.arrays import Int64Array


def diverse_sample(
    seconds: Int64Array, concepts: Int64Array, users: Int64Array, draw: Int64Array, limit: int
) -> Int64Array:
    """Returns ascending positions of at most `limit` of n posts of one class; all of them if there are no more.

    The time from the first post to the last is split into `limit` segments of equal length. A pass goes over the
    segments in time order and takes one post of each that has any left: of the concept taken least often so far, then
    of the user taken least often so far, then the first in `draw`. Passes repeat until `limit` posts are taken; the
    last one uses segments evenly spaced among those that still have posts.

    Cost: one sort, and at most `limit` scans of a segment's posts, so limit * n / segments in use.

    Args:
        seconds: (n,) time of each post.
        concepts: (n,) codes of the third-level names.
        users: (n,) codes of the users.
        draw: (n,) distinct random numbers, which break ties.
        limit: posts to take.
    """
    if len(seconds) <= limit:
        return np.arange(len(seconds))
    concept, user = (np.unique(codes, return_inverse=True)[1] for codes in (concepts, users))
    concept_taken, user_taken = (np.zeros(codes.max() + 1, dtype=np.int64) for codes in (concept, user))
    since = seconds - seconds.min()
    segment = since * limit // (since.max() + 1)
    order = np.lexsort((draw, segment))
    waiting = np.split(order, np.flatnonzero(np.diff(segment[order])) + 1)
    taken: list[int] = []
    while len(taken) < limit:
        n_segments = min(limit - len(taken), len(waiting))
        for turn in range(n_segments):
            index = (2 * turn + 1) * len(waiting) // (2 * n_segments)  # all in order, or evenly spaced
            posts = waiting[index]
            # Posts are in order of `draw`, so argmin takes the first of equals; a count never exceeds `limit`.
            best = int(np.argmin(concept_taken[concept[posts]] * (limit + 1) + user_taken[user[posts]]))
            post = int(posts[best])
            taken.append(post)
            concept_taken[concept[post]] += 1
            user_taken[user[post]] += 1
            waiting[index] = np.delete(posts, best)
        waiting = [posts for posts in waiting if len(posts)]
    return np.sort(np.array(taken, dtype=np.int64))
