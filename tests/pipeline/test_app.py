"""The page of `make app` over the models that the graph left: its numbers are those of `predict`; and in a browser."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import TypeAdapter

from popularity.app.answers import UNSEEN_USER, Answer, Answers, Ranking, Variants
from popularity.app.bodies import Draft, Drafts, Question, WhatIf
from popularity.app.pictures import crops
from popularity.app.server import HOST, make_server
from popularity.core.contracts import class_names
from popularity.core.errors import DataError
from popularity.predict import Prediction, Predictor, Project
from popularity.predict.__main__ import main
from tests.browser import WIDTHS, shown_at
from tests.clones import Clone
from tests.small_images import image_bytes

PICTURE = image_bytes(size=(120, 90))
SAME = 1e-3  # in bf16 a text's vector depends on the padding of its batch, in its last bits


@pytest.fixture(scope="module")
def answers(clone: Clone) -> Iterator[Answers]:
    before, workers = Path.cwd(), os.environ.get("POPULARITY_WORKERS")
    os.chdir(clone.root)
    os.environ["POPULARITY_WORKERS"] = "0"
    yield Answers(Predictor(Project.at(Path())))
    os.chdir(before)
    if workers is None:
        del os.environ["POPULARITY_WORKERS"]


@pytest.fixture(scope="module")
def draft(answers: Answers) -> Draft:
    post = answers._known.filter(split="test").sort("pid").row(0, named=True)
    category, subcategory = class_names(post["subcategory"])
    given = {"user": post["uid"], "category": category, "subcategory": subcategory, "date": "2016-05-04T12:30"}
    return Draft(title="Sea and sand", tags="beach sun", **given)


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def predicted(answers: Answers, draft: Draft, image: bytes = PICTURE) -> Prediction:
    return answers.predict(Question(post=draft, image=encoded(image))).prediction


def test_an_answer_is_what_predict_prints(
    answers: Answers, draft: Draft, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One post after another: what is kept in memory remembers none."""
    (tmp_path / "photo").write_bytes(PICTURE)
    unseen = draft.model_copy(update={"title": "Something else", "user": "", "date": "2031-01-01"})
    before = predicted(answers, draft)
    for each in (unseen, draft):
        found = answers.predict(Question(post=each, image=encoded(PICTURE)))
        flags = {name.replace("_", "-"): text for name, text in each.model_dump().items() if text}
        main([*(f"--{name}={text}" for name, text in flags.items()), f"--image={tmp_path / 'photo'}", "--json"])
        expected = json.loads(capsys.readouterr().out)
        assert {"row": 0, **TypeAdapter(Answer).dump_python(found, mode="json")["prediction"]} == expected
        TypeAdapter(Answer).validate_python(TypeAdapter(Answer).dump_python(found))
        beyond = any("days after the last post" in limit for limit in found.limits)
        assert (UNSEEN_USER in found.limits, beyond) == (each is unseen, each is unseen)
        assert all(near.posts for kind in found.prototypes.values() for near in kind)
    assert predicted(answers, draft) == before
    assert answers.picture(found.prototypes["visual"][0].posts[0].pid)


@pytest.mark.parametrize("what", ["hours", "tags", "titles", "users", "crops"])
def test_a_variant_has_the_numbers_that_it_has_alone(what: Any, answers: Answers, draft: Draft) -> None:
    """Variants are predicted together, and do not count one another."""
    values = {"hours": ("2", "6"), "titles": ("Sea and sand", "Night")}.get(what, ())
    found = answers.what_if(WhatIf(post=draft, image=encoded(PICTURE), what=what, values=values))
    TypeAdapter(Variants).validate_python(TypeAdapter(Variants).dump_python(found))
    assert found.popularity == pytest.approx(predicted(answers, draft).popularity, abs=SAME)
    assert all(one.difference == pytest.approx(one.popularity - found.popularity) for one in found.variants)
    for one in (found.variants[0], found.variants[-1]):
        image = crops(PICTURE)[one.label] if what == "crops" else PICTURE
        alone = predicted(answers, draft.model_copy(update=dict(one.changed)), image)
        assert one.popularity == pytest.approx(alone.popularity, abs=SAME)
        assert one.views == pytest.approx(2**one.popularity - 1)
        assert one.picture.startswith("data:image/jpeg;base64,") == (what == "crops")
    if what == "hours":
        own = next(one for one in found.variants if one.label == "Wed 12:30")
        assert own.popularity == pytest.approx(found.popularity, abs=SAME)
        assert len(found.variants) == 48
    if what == "tags":
        assert [one.label for one in found.variants[:2]] == ["without beach", "without sun"]
        assert found.variants[2].label.startswith("with ")


def test_what_cannot_be_varied_is_refused(answers: Answers, draft: Draft) -> None:
    for what, values, said in (
        ("hours", ("7",), "0 .Monday. to 6"),
        ("titles", (), "titles"),
        ("crops", (), "picture"),
    ):
        with pytest.raises(DataError, match=said):
            answers.what_if(WhatIf(post=draft, what=what, values=values))
    with pytest.raises(DataError, match="is no date"):
        answers.predict(Question(post=Draft(date="someday")))


def test_a_ranking_is_what_predict_prints_for_a_file(
    answers: Answers, draft: Draft, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["date,title,user", f"2016-05-01,Sea,{draft.user}", "someday,Night,", f"2016-05-02,Sky,{draft.user}"]
    (tmp_path / "posts.csv").write_text("\n".join(lines), encoding="utf-8")
    main(["--posts", str(tmp_path / "posts.csv"), "--json"])
    expected = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = answers.rank(Drafts(csv="\n".join(lines)))
    TypeAdapter(Ranking).validate_python(TypeAdapter(Ranking).dump_python(found))
    assert [one.popularity for one in sorted(found.drafts, key=lambda one: one.row)] == [
        one.get("popularity") for one in expected
    ]
    assert [one.row for one in found.drafts][-1] == 1
    assert found.drafts[0].popularity >= found.drafts[1].popularity  # type: ignore[operator]
    assert "is no date" in found.drafts[2].problem
    with_files = answers.rank(Drafts(csv="date,image\n2016-05-01,/etc/passwd\n"))
    assert "no image: predicted from the rest" in with_files.drafts[0].notes
    with pytest.raises(DataError, match="date"):
        answers.rank(Drafts(csv="title\nx\n"))


@pytest.fixture(scope="module")
def address(answers: Answers) -> Iterator[str]:
    """Of the server, which runs in a thread."""
    started, loop = threading.Event(), asyncio.new_event_loop()
    found: list[str] = []

    async def start() -> web.AppRunner:
        runner = web.AppRunner(make_server(answers))
        await runner.setup()
        await web.TCPSite(runner, HOST, 0).start()
        found.append(f"http://{HOST}:{runner.addresses[0][1]}/")
        return runner

    def run() -> None:
        runner = loop.run_until_complete(start())
        started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    yield found[0]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.mark.parametrize("width", WIDTHS)
def test_in_a_browser_a_picture_is_dropped_and_the_hour_changed(
    width: int, address: str, draft: Draft, tmp_path: Path
) -> None:
    (tmp_path / "photo.jpg").write_bytes(PICTURE)
    pictures = Path(os.environ.get("SCREENSHOTS", tmp_path))
    with shown_at(address, width) as browser:
        page = browser.page
        page.set_default_timeout(300_000)
        page.locator("#image").set_input_files(tmp_path / "photo.jpg")
        for name in ("title", "tags", "category", "subcategory", "user", "date"):
            page.locator(f"[name={name}]").fill(getattr(draft, name))
        page.locator("[name=title]").press("Enter")  # by keyboard
        page.locator("#tiles strong").first.wait_for()
        before = page.locator("#tiles strong").first.inner_text()
        assert page.locator("#blocks dt").count() >= 3
        assert page.locator("#prototypes img").count() >= 3
        page.locator("#keep").click()
        page.locator("[data-what=hours]").press("Enter")
        page.locator(".map tbody tr").nth(6).wait_for()
        cells = page.locator(".map button")
        assert cells.count() == 168
        assert page.locator(".map button[aria-current]").get_attribute("aria-label").startswith("Wed 12:30")
        assert abs(float(page.locator(".map button[aria-current]").inner_text()) - float(before)) < 0.1
        page.screenshot(path=pictures / f"app-{width}-hours.png", full_page=True)
        cells.first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.locator("#comparison", has_text="2016-05-02T01:30").wait_for()
        page.locator("[data-what=crops]").click()
        page.locator(".crops img").nth(3).wait_for()
        browser.check(images=4)
        page.screenshot(path=pictures / f"app-{width}.png", full_page=True)
