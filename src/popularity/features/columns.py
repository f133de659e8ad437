"""The metadata of a feature's column, by its name; no other file knows how columns are named."""

from __future__ import annotations

import re
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


# Ids, counts and target statistics of the class or of one below it. The first level stays: that of an unseen class may
# be known.
OF_CLASS = re.compile(r"(subcategory|concept)(_.*)?|(user|day)_subcategory_share|class_time\..*|user_target\.own_class")
# All that says something of classes, left out where posts have none of their own.
ABOUT_CLASSES = re.compile(
    r"(category|subcategory|concept)(_.*)?|user_subcategor.*|day_subcategory_share|class_time\..*"
    r"|user_target\.(own|beyond)_class"
)
OF_USER_PAST = ("uid_target_", "user_target.")
CLASS_PASTS = ("subcategory_target_posts", "concept_target_posts")


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

    @property
    def of_class(self) -> bool:
        """Whether it is missing for a post of a class that no train row has."""
        return OF_CLASS.fullmatch(self.name) is not None

    @property
    def about_classes(self) -> bool:
        """Whether it says anything of classes, and so nothing where posts have none of their own."""
        return ABOUT_CLASSES.fullmatch(self.name) is not None

    @property
    def of_user_past(self) -> bool:
        """Whether it is made of past labels of the post's user."""
        return self.name.startswith(OF_USER_PAST)

    @property
    def counts_class_past(self) -> bool:
        """Whether it counts train rows of the class: 0 for a class that has none."""
        return self.name in CLASS_PASTS

    @classmethod
    def named(cls, name: str) -> FeatureColumn:
        """Returns the column of that name.

        >>> FeatureColumn.named("rhythm.user_week")
        FeatureColumn(name='rhythm.user_week', group='rhythm', fitted_on_labels=False)
        """
        group, dot, _ = name.partition(".")
        return cls(name, group if dot else None, name in FROM_LABELS)
