"""A newcomer's questions: README.md leads in one step to the section that answers each of them."""

from __future__ import annotations

import pytest

from tests.docs.pages import section_of, text_of
from tests.repository import REPOSITORY

# (question, what README.md says or links, page, section, what stands there)
QUESTIONS = [
    ("where is Eq 5", "docs/method.md#equations", "docs/method.md", "Equations", "network/losses.py: local_logits"),
    ("what does the search minimise", "MAE divided by", "README.md", "How it is validated", "selection_loss"),
    ("what does the search minimise", "docs/validation.md", "docs/validation.md", "Selection loss", "selection_loss"),
    ("a user in train and test", "Users in train and test", "README.md", "How it is validated", "target statistics"),
    ("add a column", "contributing.md#add-a-feature", "docs/contributing.md", "Add a feature", "features/rows.py"),
    ("add an encoder", "contributing.md#add-an-encoder", "docs/contributing.md", "Add an encoder", "register_encoder"),
    ("add a learner", "contributing.md#add-a-learner", "docs/contributing.md", "Add a learner", "LEARNERS"),
    ("add a member", "contributing.md#add-a-member", "docs/contributing.md", "Add a member", "popularity.member"),
    ("try 63 leaves", "63 leaves", "README.md", "Change one thing and compare", "stack.lightgbm.num_leaves=63"),
    ("start from my own files", "## Your own data", "README.md", "Your own data", "make repro ROOT="),
    ("what is in models/", "models/README.md", "models/README.md", "models/", "the members' parameters"),
    ("why does random flatter", "`random` flatters", "docs/validation.md", "Splits", "Why `random` flatters"),
    ("how far ahead is the test part", "docs/validation.md#splits", "docs/validation.md", "Splits", "How far ahead"),
    ("read a promised score", "docs/validation.md#intervals", "docs/validation.md", "Intervals", "To read them"),
    ("two stages at once", "JOBS=2", "docs/scaling.md", "Stages at the same time", "popularity.repro"),
    ("the official data", "scaling.md#the-official-data", "docs/scaling.md", "The official data", "smpd_cpu"),
    ("what does make app give", "docs/app.md", "docs/app.md", "What if?", "127.0.0.1"),
]


@pytest.mark.parametrize(
    ("question", "lead", "page", "heading", "answer"), QUESTIONS, ids=[row[0] for row in QUESTIONS]
)
def test_readme_leads_to_the_answer(question: str, lead: str, page: str, heading: str, answer: str) -> None:
    assert lead in text_of(REPOSITORY / "README.md"), question
    assert answer in section_of(text_of(REPOSITORY / page), heading), question
