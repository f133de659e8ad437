"""Pictures that are uploaded: good ones are taken as they are, hostile ones refused."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from popularity.app.pictures import crops, read_picture, thumbnail
from popularity.core.errors import DataError
from popularity.images.reading import FORMATS
from tests.app.hostile import encoded, grey, pictures

HOSTILE = {name: (content, said) for name, content, said in pictures()}
MAX_PIXELS = 178_956_970  # of section index_images


def test_thirty_uploads_are_hostile() -> None:
    assert len(HOSTILE) == 30


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_uploads_are_refused(name: str) -> None:
    content, said = HOSTILE[name]
    with pytest.raises(DataError) as error:
        read_picture(encoded(content), MAX_PIXELS)
    assert said in str(error.value)
    assert "a picture (JPEG, PNG" in str(error.value)


@pytest.mark.parametrize("text", ["é", "a", "data:image/png;base64,AAAA", "../../etc/passwd"])
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="not base64"):
        read_picture(text, MAX_PIXELS)


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_of_the_graph_are_taken_unchanged(kind: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(stream, kind)
    assert read_picture(encoded(stream.getvalue()), MAX_PIXELS) == stream.getvalue()


def test_the_limit_of_the_graph_holds() -> None:
    with pytest.raises(DataError, match="40 x 30 pixels, more than 1,000"):
        read_picture(encoded(grey(40, 30)), 1000)


def test_crops_have_their_aspects() -> None:
    sizes = {name: Image.open(io.BytesIO(content)).size for name, content in crops(grey(160, 100)).items()}
    assert sizes == {"square": (100, 100), "upright 4:5": (80, 100), "wide 16:9": (160, 90), "closer": (112, 70)}
    assert all(Image.open(io.BytesIO(content)).size >= (1, 1) for content in crops(grey(1, 300)).values())


def test_a_thumbnail_is_small() -> None:
    assert len(thumbnail(grey(2000, 1000), 100)) < 3000
