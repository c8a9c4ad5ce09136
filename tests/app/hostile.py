"""Files that a page may be given as photographs: each with what must be said of it, or None where it is one."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><image href="http://192.0.2.1/x.png"/></svg>'


def encoded(mode: str = "RGB", size: tuple[int, int] = (20, 14), form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture(mode, size).save(buffer, form, **options)
    return buffer.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (20, 14)) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def sixteen_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 65536, (14, 20)).astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(form="JPEG", exif=exif)


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it holds 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def array(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values), allow_pickle=True)
    return buffer.getvalue()


_NO_IMAGE = "no image of a known kind"
_OTHERS = [picture("RGB", (20, 14)).rotate(90 * turn) for turn in range(1, 4)]

FILES: dict[str, tuple[str, bytes, str | None]] = {
    "empty": ("a.png", b"", "the file is empty"),
    "text": ("a.jpg", b"no picture", _NO_IMAGE),
    "svg": ("a.svg", SVG, _NO_IMAGE),
    "svg named png": ("a.png", SVG, _NO_IMAGE),
    "html": ("a.html", b"<script>alert(1)</script>", _NO_IMAGE),
    "postscript": ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", _NO_IMAGE),
    "truncated": ("a.jpg", encoded(form="JPEG")[:-300], "cannot be read"),
    "truncated header": ("a.png", encoded()[:20], "cannot be read"),
    "bomb": ("a.png", bomb(), "decompression bomb"),
    "program": ("a.jpg", b"\x7fELF" + bytes(200), _NO_IMAGE),
    "archive": ("a.zip", b"PK\x05\x06" + bytes(18), _NO_IMAGE),
    "pickled array": ("a.npy", array([{}]), "Python objects"),
    "array of another size": ("a.npy", array(np.zeros((3, 9, 9), np.float32)), "(3, 9, 9)"),
    "array of several": ("a.npy", array(np.zeros((2, 3, 8, 8), np.float32)), "2 images"),
    "array of NaN": ("a.npy", array(np.full((3, 8, 8), np.nan, np.float32)), "nan"),
    "broken archive": ("a.npz", b"PK", "cannot be read"),
    "one pixel": ("a.png", encoded(size=(1, 1)), None),
    "a line": ("a.png", encoded(size=(3000, 1)), None),
    "16 bits": ("a.png", sixteen_bits(), None),
    "cmyk": ("a.jpg", encoded("CMYK", form="JPEG"), None),
    "transparent": ("a.png", encoded("RGBA"), None),
    "palette": ("a.gif", encoded("P", form="GIF"), None),
    "animated": ("a.gif", encoded("P", form="GIF", save_all=True, append_images=_OTHERS), None),
    "rotated": ("a.jpg", rotated(), None),
    "tag in the name": ("<script>alert(1)<b>.png", encoded(size=(21, 14)), None),
    "template in the name": ("${alert(1)}{{#each x}}.png", encoded(size=(22, 14)), None),
    "no suffix": ("..png", encoded(size=(23, 14)), None),
}
