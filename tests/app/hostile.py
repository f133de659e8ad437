"""Uploads that no page should send, each with what its refusal says."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from popularity.app.bodies import MAX_IMAGE_BYTES
from popularity.app.pictures import MAX_PIXELS
from tests.small_images import image_bytes


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG whose header announces a size, with `chunks` after it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*each) for each in chunks) + chunk(b"IEND", b"")


def pictures() -> Iterator[tuple[str, bytes, str]]:
    """Name, content, and a part of the refusal."""
    script = b"<script>alert(1)</script>"
    good = image_bytes(size=(64, 48))
    side = int(MAX_PIXELS**0.5) + 1
    texts = png(4, 4, (b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000))), (b"IDAT", zlib.compress(bytes(60))))
    yield "bomb in the header", png(60_000, 60_000, (b"IDAT", zlib.compress(bytes(1000)))), "pixels"
    yield "more pixels than allowed", png(side, side, (b"IDAT", zlib.compress(bytes(1000)))), "pixels, more than"
    yield "no pixels", png(0, 10), ""
    yield "PNG with a bomb of text", texts, ""
    yield "PNG without pixels", png(64, 64), ""
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg">' + script + b"</svg>", "SVG"
    yield "SVG with a declaration", b'<?xml version="1.0"?><svg/>', "XML"
    yield "XML with entities", b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "XML"
    yield "HTML", b"<!doctype html>" + script, "HTML"
    yield "HTML in capitals", b"<HTML>" + script + b"</HTML>", "HTML"
    yield "script", script, "unknown format"
    yield "PDF", b"%PDF-1.7\n", "PDF"
    yield "EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "unknown format"
    yield "ICO", b"\0\0\1\0\1\0", "unknown format"
    yield "zip", b"PK\3\4" + bytes(100), "zip"
    yield "gzip bomb", zlib.compress(bytes(10_000_000), wbits=31), "gzip"
    yield "PSD", b"8BPS" + bytes(100), "PSD"
    yield "video", b"\0\0\0\x18ftypmp42" + bytes(100), "video"
    yield "program", b"\x7fELF" + bytes(100), "unknown format"
    yield "pickle", b"\x80\x04cos\nsystem\n", "unknown format"
    yield "text", b"../../etc/passwd", "unknown format"
    yield "one byte", b"\xff", "unknown format"
    yield "JPEG header alone", good[:20], ""
    yield "JPEG cut", image_bytes(size=(300, 300))[:6000], ""
    yield "JPEG of noise", b"\xff\xd8\xff\xe0" + bytes(range(256)) * 8, ""
    yield "GIF header alone", b"GIF89a\xff\xff\xff\xff\0\0\0", ""
    yield "WebP header alone", b"RIFF\xff\xff\xff\x7fWEBPVP8 ", ""
    yield "TIFF in a circle", b"II*\0\x08\0\0\0\0\0\x08\0\0\0", ""
    yield "BMP of another size", b"BM" + struct.pack("<IHHIIiiHH", 99, 0, 0, 54, 40, 2**30, 2**30, 1, 24), ""
    yield "too many bytes", bytes(MAX_IMAGE_BYTES + 1), "20 MB"


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def grey(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "grey").save(stream, "PNG")
    return stream.getvalue()
