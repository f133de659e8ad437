"""Bytes out of shards, and every kind of image as upright RGB."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from torch.utils.data import DataLoader, Dataset

from popularity.core.errors import DataError
from popularity.images import ImageDecodeError, ImageReader, decode_image, decode_reduced
from tests.small_images import image_bytes, photograph, write_tar

LIMIT = 10_000


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def colour() -> Image.Image:
    """30 x 20; red on the left, blue on the right."""
    image = Image.new("RGB", (30, 20), (200, 0, 0))
    image.paste((0, 0, 200), (15, 0, 30, 20))
    return image


def gray16(value: int) -> bytes:
    return encoded(Image.fromarray(np.full((20, 30), value, np.uint16)), "PNG")


def transparent() -> Image.Image:
    image = colour().convert("RGBA")
    image.putalpha(0)
    return image


GRAY, RED, WHITE = (128, 128, 128), (200, 0, 0), (255, 255, 255)
KINDS: dict[str, tuple[Callable[[], bytes], tuple[int, int, int]]] = {
    "jpeg": (lambda: encoded(colour(), "JPEG", quality=95), RED),
    "cmyk jpeg": (lambda: encoded(colour().convert("CMYK"), "JPEG", quality=95), RED),
    "png": (lambda: encoded(colour(), "PNG"), RED),
    "webp": (lambda: encoded(colour(), "WEBP", lossless=True), RED),
    "bmp": (lambda: encoded(colour(), "BMP"), RED),
    "tiff": (lambda: encoded(colour(), "TIFF"), RED),
    "palette": (lambda: encoded(colour().quantize(4), "PNG"), RED),
    "palette, transparent": (lambda: encoded(transparent().quantize(4), "PNG"), WHITE),
    "alpha": (lambda: encoded(transparent(), "PNG"), WHITE),
    "gray": (lambda: encoded(Image.new("L", (30, 20), 128), "JPEG", quality=95), GRAY),
    "gray, alpha": (lambda: encoded(Image.new("LA", (30, 20), (128, 255)), "PNG"), GRAY),
    "one bit": (lambda: encoded(Image.new("1", (30, 20), 1), "PNG"), WHITE),
    "16 bit": (lambda: gray16(128 * 257), GRAY),
    "16 bit, dark": (lambda: gray16(200), (1, 1, 1)),
    "32 bit": (lambda: encoded(Image.fromarray(np.full((20, 30), 128 * 257, np.int32)), "TIFF"), GRAY),
    "float": (lambda: encoded(Image.fromarray(np.full((20, 30), 128, np.float32)), "TIFF"), GRAY),
    "animated": (lambda: encoded(colour(), "GIF", save_all=True, append_images=[Image.new("RGB", (30, 20))]), RED),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_rgb(kind: str) -> None:
    make, expected = KINDS[kind]
    image = decode_image(make(), LIMIT)
    assert (image.mode, image.size) == ("RGB", (30, 20))
    assert image.getpixel((4, 10)) == pytest.approx(expected, abs=6)


@pytest.mark.parametrize(("orientation", "left"), [(1, 200), (2, 0), (3, 0)])
def test_exif_orientation(orientation: int, left: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encoded(colour(), "JPEG", exif=exif, quality=95), LIMIT)
    pixel = image.getpixel((4, 10))
    assert isinstance(pixel, tuple)
    assert pixel[0] == pytest.approx(left, abs=6)


def test_exif_rotation_swaps_the_sides() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(colour(), "JPEG", exif=exif), LIMIT).size == (20, 30)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_costs_only_the_rotation() -> None:
    exif = b"Exif\x00\x00II*\x00\xff\xff\xff\x7f" + b"\xff" * 40
    assert decode_image(encoded(colour(), "JPEG", exif=exif), LIMIT).size == (30, 20)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "animated"])
def test_truncated_content(kind: str) -> None:
    content = KINDS[kind][0]()
    with pytest.raises(ImageDecodeError, match="cannot be decoded"):
        decode_image(content[: int(len(content) * 0.6)], LIMIT)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_no_image(content: bytes) -> None:
    with pytest.raises(ImageDecodeError):
        decode_image(content, LIMIT)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_never_raise_anything_else() -> None:
    generator = np.random.default_rng(0)
    decoded = 0
    for make, _ in KINDS.values():
        content = np.frombuffer(make(), np.uint8)
        for _ in range(40):
            damaged = content.copy()
            damaged[generator.integers(0, len(damaged), 8)] = generator.integers(0, 256, 8)
            try:
                decode_image(damaged.tobytes(), LIMIT)
                decoded += 1
            except ImageDecodeError:
                pass
    assert 0 < decoded < 40 * len(KINDS)


def test_pixel_limit() -> None:
    assert decode_image(image_bytes(size=(100, 100)), 10_000).size == (100, 100)
    with pytest.raises(ImageDecodeError, match="100 x 101 pixels, more than the 10000 allowed"):
        decode_image(image_bytes(size=(100, 101)), 10_000)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    with pytest.raises(ImageDecodeError):
        decode_image(bomb, LIMIT)


@pytest.fixture
def shard(tmp_path: Path) -> list[tuple[int, int]]:
    """Offsets and lengths of the images 0, 1, ... in images.tar."""
    contents = [image_bytes(number) for number in range(12)]
    write_tar(tmp_path / "images.tar", [(f"{number}.jpg", content) for number, content in enumerate(contents)])
    whole = (tmp_path / "images.tar").read_bytes()
    return [(whole.index(content), len(content)) for content in contents]


def test_reads_by_position(tmp_path: Path, shard: list[tuple[int, int]]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "single.jpg").write_bytes(image_bytes(99))
    reader = ImageReader(tmp_path)
    for number, (offset, length) in reversed(list(enumerate(shard))):
        assert reader.read("images.tar", offset, length) == image_bytes(number)
    assert reader.read("folder/single.jpg", 0, len(image_bytes(99))) == image_bytes(99)
    reader.close()
    assert reader.read("images.tar", *shard[0]) == image_bytes(0)


def test_threads_share_a_reader(tmp_path: Path, shard: list[tuple[int, int]]) -> None:
    reader = ImageReader(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda span: reader.read("images.tar", *span), shard * 50))
    assert contents == [image_bytes(number) for number in range(12)] * 50


class Images(Dataset[bytes]):
    def __init__(self, reader: ImageReader, spans: list[tuple[int, int]]) -> None:
        self.reader, self.spans = reader, spans

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> bytes:
        return self.reader.read("images.tar", *self.spans[index])


def test_loader_workers_share_a_reader(tmp_path: Path, shard: list[tuple[int, int]]) -> None:
    reader = ImageReader(tmp_path)
    reader.read("images.tar", *shard[0])  # opened before the workers start
    copied = pickle.loads(pickle.dumps(reader))
    assert copied.read("images.tar", *shard[3]) == image_bytes(3)
    loader = DataLoader(Images(reader, shard), batch_size=None, num_workers=2)
    assert list(loader) == [image_bytes(number) for number in range(12)]


def test_a_shard_that_changed(tmp_path: Path, shard: list[tuple[int, int]]) -> None:
    reader = ImageReader(tmp_path)
    with pytest.raises(DataError, match=r"gone\.tar: cannot be read"):
        reader.read("gone.tar", 0, 10)
    path = tmp_path / "images.tar"
    path.write_bytes(path.read_bytes()[: shard[5][0] + 10])
    with pytest.raises(DataError, match="before the end of the image"):
        reader.read("images.tar", *shard[5])


def ramp(low: float, high: float) -> Image.Image:
    """128 x 128 samples with fractions, from `low` on the left to `high` on the right."""
    return Image.fromarray(np.tile(np.linspace(low, high, 128, dtype=np.float32), (128, 1)))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (-3, 5), (0, 65_535), (0, 1e6)])
def test_a_ramp_of_fractions_stays_a_ramp(low: float, high: float) -> None:
    image = np.asarray(decode_image(encoded(ramp(low, high), "TIFF"), 128 * 128), dtype=np.float64)
    assert np.abs(image - np.linspace(0, 255, 128)[None, :, None]).max() <= 2


def test_the_range_that_a_file_states_goes_before() -> None:
    content = encoded(ramp(0, 1), "TIFF", tiffinfo={340: 0.0, 341: 2.0})
    assert np.asarray(decode_image(content, 128 * 128)).max() in (127, 128)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow reads no AVIF here")
def test_avif() -> None:
    image = decode_image(encoded(colour(), "AVIF", quality=95), LIMIT)
    assert image.getpixel((4, 10)) == pytest.approx(RED, abs=10)


@pytest.mark.parametrize(
    ("size", "orientation", "reduced", "box"),
    [
        ((640, 480), 1, (160, 120), (160, 120)),
        ((637, 487), 1, (160, 122), (159.25, 121.75)),  # the last column and row belong to the image in part
        ((637, 487), 6, (487, 637), (487, 637)),  # turned, they would lie on other sides: as it is
        ((640, 480), 6, (120, 160), (120, 160)),
        ((638, 486), 3, (319, 243), (319, 243)),
        ((199, 300), 1, (199, 300), (199, 300)),  # half of it has less than the least side
    ],
)
def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(
    size: tuple[int, int], orientation: int, reduced: tuple[int, int], box: tuple[float, float]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = photograph(0, size, exif=exif)
    image, found = decode_reduced(content, size[0] * size[1], 100)
    assert (image.mode, image.size, found) == ("RGB", reduced, (0, 0, *box))
    whole = decode_image(content, size[0] * size[1]).resize((40, 40), Image.Resampling.BICUBIC)
    small = image.resize((40, 40), Image.Resampling.BICUBIC, box=found)
    assert np.abs(np.asarray(whole, np.int16) - np.asarray(small, np.int16)).mean() < 1.5


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF", "GIF"])
def test_other_formats_are_decoded_as_they_are(file_format: str) -> None:
    image, box = decode_reduced(encoded(colour().resize((300, 200)), file_format), 60_000, 20)
    assert (image.size, box) == ((300, 200), (0, 0, 300, 200))


def test_a_large_jpeg_keeps_its_limits() -> None:
    content = photograph(0, (640, 480))
    with pytest.raises(ImageDecodeError, match="pixels, more than"):
        decode_reduced(content, 640 * 480 - 1, 100)
    with pytest.raises(ImageDecodeError, match="cannot be decoded"):
        decode_reduced(content[: len(content) // 2], 640 * 480, 100)
