"""Pictures from strangers: bounded before they are decoded, brought to the model's size once.

A picture comes as a file, as bytes, or as text (a data URI or base64).  `fitted`
gives what the model's processor would give before it scales to floats, so that
`Shelf` can keep it in bytes: raw while there is room, as PNG beyond.  Which
picture belongs to which question is `vqa_rows`' affair.
"""

from __future__ import annotations

import base64
import binascii
import io
import shutil
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from finery.recipes import folders

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MOST_BYTES = 64 << 20
MOST_PIXELS = 89_478_485  # PIL's own limit; in memory it is a quarter of a GiB
LARGE_PIXELS = 16_000_000  # from here one at a time
ALONE = threading.Lock()
GIB = 1 << 30
Source = Path | bytes


class BadPicture(ValueError):
    """What is wrong with a picture, and what to do."""


@dataclass(frozen=True)
class Shape:
    """The size that the model wants, and how its processor resizes (PIL's number)."""

    height: int
    width: int
    resample: int

    @property
    def bytes(self) -> int:
        """Of one raw picture."""
        return self.height * self.width * 3


def shape(processor: Any) -> Shape:
    """What the processor does with a picture; BadPicture when it does more than resize."""
    size = processor.image_processor.size
    height, width = (getattr(size, side, None) or 0 for side in ("height", "width"))
    if not (height and width) or processor.image_processor.do_center_crop:
        raise BadPicture(f"the model's processor wants {size}: only height and width are known")
    return Shape(int(height), int(width), int(processor.image_processor.resample or 3))


def from_text(text: str) -> bytes:
    """The bytes of a data URI or of base64."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise BadPicture("a data URI must be data:image/…;base64,…")
    if len(text) > MOST_BYTES * 4 // 3 + 4:
        raise BadPicture(f"is larger than {MOST_BYTES >> 20} MiB; make it smaller")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadPicture(f"is not base64 ({error})") from error


def opened(source: Source) -> Image.Image:
    """The picture with nothing but its header read; BadPicture when it is none, or too large."""
    if isinstance(source, Path) and source.stat().st_size > MOST_BYTES:
        raise BadPicture(f"is a file of more than {MOST_BYTES >> 20} MiB; make it smaller")
    if isinstance(source, bytes) and len(source) > MOST_BYTES:
        raise BadPicture(f"is larger than {MOST_BYTES >> 20} MiB; make it smaller")
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        picture = Image.open(stream, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large() from error
    except Exception as error:  # every format of PIL has errors of its own
        raise BadPicture(f"is no picture ({', '.join(FORMATS)} are read)") from error
    if picture.width * picture.height > MOST_PIXELS:
        picture.close()
        raise _too_large(picture)
    return picture


def fitted(source: Source, wanted: Shape) -> np.ndarray[Any, Any]:
    """The picture at the model's size: height x width x 3 bytes."""
    with opened(source) as picture, _turn(picture):
        try:
            # A JPEG is decoded at a fraction of its size where that is still large enough.
            picture.draft("RGB", (wanted.width, wanted.height))
            upright = plain(picture)
        except Exception as error:
            raise BadPicture(f"cannot be decoded ({error}); is it cut short?") from error
        made = upright.resize((wanted.width, wanted.height), Image.Resampling(wanted.resample))
    return np.asarray(made)


def _turn(picture: Image.Image) -> AbstractContextManager[Any]:
    """Threads that each decode a large picture would together need gigabytes."""
    return ALONE if picture.width * picture.height > LARGE_PIXELS else nullcontext()


def plain(picture: Image.Image) -> Image.Image:
    """RGB, the way up that the camera noted, on white where it is transparent."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB")
    return picture.convert("RGB")


def _too_large(picture: Image.Image | None = None) -> BadPicture:
    size = f"{picture.width} x {picture.height} pixels" if picture else "too many pixels"
    return BadPicture(f"has {size}; at most {MOST_PIXELS / 1e6:.0f} million are taken: scale it")


class Shelf:
    """Pictures in one file, written once (`add`), then read by number, mapped into memory."""

    def __init__(self, folder: Path, wanted: Shape) -> None:
        """`pictures.bin` and `pictures.json` in the folder."""
        self.folder, self.shape = folder, wanted
        self.places: list[int] = [0]
        self.raw = min(16 * GIB, shutil.disk_usage(folder).free // 2)
        self.stream = (folder / "pictures.bin").open("wb")
        self.map: Any = None

    def __len__(self) -> int:
        return len(self.places) - 1

    def add(self, picture: np.ndarray[Any, Any]) -> int:
        """Keeps a fitted picture; its number."""
        data = picture.tobytes()
        if self.places[-1] + len(data) > self.raw:
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
            data = buffer.getvalue()
        self.stream.write(data)
        self.places.append(self.places[-1] + len(data))
        return len(self) - 1

    def close(self) -> None:
        """Writes where each picture begins."""
        self.stream.close()
        told = {"shape": vars(self.shape), "places": self.places}
        folders.write_json(self.folder / "pictures.json", told)

    @classmethod
    def open(cls, folder: Path) -> Shelf:
        """The pictures that were kept in a folder."""
        told = folders.read_json(folder / "pictures.json")
        made = cls.__new__(cls)
        made.folder, made.shape = folder, Shape(**told["shape"])
        made.places = told["places"]
        made.map = np.memmap(folder / "pictures.bin", dtype=np.uint8, mode="r")
        return made

    def __getitem__(self, number: int) -> np.ndarray[Any, Any]:
        """One picture, height x width x 3 bytes."""
        data = self.map[self.places[number] : self.places[number + 1]]
        if len(data) != self.shape.bytes:
            with Image.open(io.BytesIO(data.tobytes()), formats=("PNG",)) as picture:
                return np.asarray(picture)
        return np.asarray(data).reshape(self.shape.height, self.shape.width, 3)
