"""The metadata of a feature's column, by its name; no other file knows how columns are named."""

from __future__ import annotations

from dataclasses import dataclass

from popularity.core.contracts import LEVELS
from popularity.features.classes import CLASSES, TIMED
from popularity.features.past_labels import HALF_LIVES, TEXTS

FROM_LABELS = frozenset(
    [
        *(f"{key}_target_{quantity}" for key in ("uid", *LEVELS) for quantity in ("posts", "level", "last", "age")),
        *(
            f"user_target.{quantity}"
            for quantity in ("level", "beyond_class", "last", "trend", "spread", "days", "own_class")
        ),
        *(f"words.{text}_{quantity}" for text in TEXTS for quantity in ("mean", "least", "greatest", "known")),
        *(f"class_time.{level}_level" for level in CLASSES),
        *(f"class_time.{level}_level_{half_life}" for level in TIMED for half_life in HALF_LIVES),
    ]
)


@dataclass(frozen=True)
class FeatureColumn:
    """A column of the features.

    Args:
        name: of the column; <group>.<quantity> for a column of a feature group.
        group: that `stack.columns.feature_groups` switches on; None: the column is always there.
        fitted_on_labels: whether it was computed from labels of earlier train rows.
    """

    name: str
    group: str | None
    fitted_on_labels: bool

    @classmethod
    def named(cls, name: str) -> FeatureColumn:
        """Returns the column of that name.

        >>> FeatureColumn.named("rhythm.user_week")
        FeatureColumn(name='rhythm.user_week', group='rhythm', fitted_on_labels=False)
        """
        group, dot, _ = name.partition(".")
        return cls(name, group if dot else None, name in FROM_LABELS)
