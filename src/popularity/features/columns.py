"""What a feature's column is, by its name: the one place that knows the names that the tables of features have."""

from __future__ import annotations

from dataclasses import dataclass

from popularity.core.contracts import LEVELS
from popularity.features.classes import CLASSES, TIMED
from popularity.features.past_labels import HALF_LIVES, TEXTS

FROM_LABELS = frozenset(
    [
        *(f"{key}_history_{what}" for key in ("uid", *LEVELS) for what in ("posts", "level", "last", "age")),
        *(f"history.{what}" for what in ("level", "beyond_class", "last", "trend", "spread", "days", "own_class")),
        *(f"words.{text}_{what}" for text in TEXTS for what in ("mean", "least", "greatest", "known")),
        *(f"class_time.{level}_level" for level in CLASSES),
        *(f"class_time.{level}_level_{half_life}" for level in TIMED for half_life in HALF_LIVES),
    ]
)


@dataclass(frozen=True)
class FeatureColumn:
    """A column of the features.

    Args:
        name: of the column; that of a group's column is <group>.<what>.
        group: that `stack.columns.feature_groups` switches on; None: the column is always there.
        fitted_on_labels: whether it was computed from labels of earlier fit rows.
    """

    name: str
    group: str | None
    fitted_on_labels: bool

    @classmethod
    def named(cls, name: str) -> FeatureColumn:
        """The column of that name.

        >>> FeatureColumn.named("rhythm.user_week")
        FeatureColumn(name='rhythm.user_week', group='rhythm', fitted_on_labels=False)
        """
        group, dot, _ = name.partition(".")
        return cls(name, group if dot else None, name in FROM_LABELS)
