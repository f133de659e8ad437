"""Statistics of images whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from popularity.images import decode_image, decode_reduced
from popularity.images.statistics import NAMES, SIDE, image_statistics, thumbnail_size
from tests.small_images import photograph


def described(image: Image.Image) -> dict[str, float]:
    return dict(zip(NAMES, image_statistics(image).tolist(), strict=True))


def lettered() -> Image.Image:
    """A grey image with a white line of text, outlined in black, at the top."""
    image = Image.new("RGB", (128, 128), (128, 128, 128))
    draw = ImageDraw.Draw(image)
    for left in range(0, 128, 6):
        draw.rectangle((left, 6, left + 3, 26), fill="white", outline="black")
    return image


def test_one_colour() -> None:
    found = described(Image.new("RGB", (60, 90), (255, 0, 0)))
    assert found["brightness"] == pytest.approx(0.299, abs=1e-6)
    assert found["saturation"] == 1
    for name in ("contrast", "dark", "bright", "entropy", "edges", "text"):
        assert abs(found[name]) < 1e-6, name
    grey = described(Image.new("RGB", (60, 90), (90, 90, 90)))
    assert grey["colourfulness"] < 1e-6 < found["colourfulness"]


def test_black_and_white_halves() -> None:
    values = np.zeros((128, 128, 3), np.uint8)
    values[:, 64:] = 255
    found = described(Image.fromarray(values))
    assert (found["dark"], found["bright"], found["contrast"]) == (0.5, 0.5, 0.5)
    assert found["entropy"] == pytest.approx(1 / 8)
    assert found["edges"] == pytest.approx(1 / 128)


def test_text_is_found_where_it_is() -> None:
    found = described(lettered())
    assert found["text_top"] > 0.3
    assert found["text_middle"] == found["text_bottom"] == 0
    assert 0 < found["text"] < found["text_top"]


def test_blur_takes_sharpness_away() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8))
    assert described(noise)["sharpness"] > described(noise.filter(ImageFilter.GaussianBlur(2)))["sharpness"] + 1


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (3, 2), (2000, 1500)])
def test_any_size_is_finite(size: tuple[int, int]) -> None:
    values = image_statistics(Image.effect_noise(size, 60).convert("RGB"))
    assert values.shape == (len(NAMES),)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()


def test_the_image_stays_as_it_is() -> None:
    image = Image.effect_noise((300, 200), 60).convert("RGB")
    before = image.tobytes()
    image_statistics(image)
    assert image.tobytes() == before


def test_the_small_copy_is_pillows_thumbnail() -> None:
    rng = np.random.default_rng(0)
    for width, height in [*rng.integers(1, 900, (200, 2)).tolist(), (1, 5000), (5000, 1), (SIDE, SIDE), (SIDE + 1, 1)]:
        image = Image.new("L", (width, height))
        image.thumbnail((SIDE, SIDE))
        assert thumbnail_size(width, height) == image.size


def test_a_jpeg_at_a_reduced_scale_has_the_statistics_of_the_whole() -> None:
    """As near as the same photograph saved at another size: two cells of text at most, of a third of them one row's."""
    contents = [photograph(seed, (1000 + 7 * seed, 770 + 3 * seed)) for seed in range(6)]
    whole = np.array([image_statistics(decode_image(each, 10**6)) for each in contents])
    reduced = np.array([image_statistics(*decode_reduced(each, 10**6, 3 * SIDE)) for each in contents])
    bounds = np.full(len(NAMES), 0.005)
    bounds[NAMES.index("sharpness")] = 0.15  # of a logarithm
    bounds[NAMES.index("text")], bounds[NAMES.index("text") + 1 :] = 2.1 / 192, 2.1 / 64
    assert (whole != reduced).any()
    np.testing.assert_array_less(np.abs(whole - reduced).max(axis=0), bounds)
