"""What is on its way in: parts of files that nobody can see yet.

Parts lie in a hidden folder on the same file system as the files, so that a
finished one becomes a file by a rename: see `Files.put`.  A file may come in
pieces, in any order and side by side; `join` makes one part of them.  Pieces
that are never joined are thrown away after a week.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from finery.core import ids
from finery.core.errors import Invalid, Unavailable
from finery.core.files import Entry, Files

_KEPT = 7 * 24 * 3600.0  # seconds
_CHUNK = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a file is to be: the workspace, the datastore, the path in it."""

    scope: str
    datastore: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Piece:
    id: str
    size: int


@contextmanager
def part(files: Files, *, size: int = 0) -> Iterator[Path]:
    """Give a path to write a part of about `size` bytes to; what is left there goes away.

    Raises `Unavailable` when the disk is full, before or while it is written.
    """
    folder = files.root / ".staging"
    path = folder / ids.new()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if size > (free := shutil.disk_usage(folder).free):
            raise Unavailable(f"the disk is full: {size} bytes are to come, {free} are free")
        yield path
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise Unavailable(f"the disk is full: {exc.strerror}") from exc
    finally:
        with suppress(FileNotFoundError):
            path.unlink()


def keep(files: Files, place: Place, id: str, *, part: Path) -> None:
    """Keep a finished part as the piece `id` of the file that is to be at `place`."""
    name = id.encode().hex()
    if not 0 < len(name) <= 200:
        raise Invalid("a piece's id has 1 to 100 bytes", target="blockid")
    folder = _folder(files, place)
    folder.mkdir(parents=True, exist_ok=True)
    part.replace(folder / name)
    _tidy(files)


def pieces(files: Files, place: Place) -> Sequence[Piece]:
    """Return the pieces that wait to be joined, by id."""
    folder = _folder(files, place)
    if not folder.is_dir():
        return []
    found = sorted(folder.iterdir(), key=lambda path: path.name)
    return [Piece(id=bytes.fromhex(path.name).decode(), size=path.stat().st_size) for path in found]


def join(
    files: Files, place: Place, wanted: Sequence[tuple[str, str]], *, part: Path
) -> list[tuple[str, int]]:
    """Write the wanted pieces to `part`, in order; return their ids and sizes.

    Each is asked for as ("waiting" | "kept" | "latest", id): of the pieces that
    wait, of those that the present file was made of, or of either.  Raises
    `Invalid` for one that is not there.
    """
    present = files.find(place.scope, place.datastore, place.path)
    kept = _kept(present)
    folder = _folder(files, place)
    joined: list[tuple[str, int]] = []
    with part.open("wb", buffering=0) as out:
        for where, id in wanted:
            waiting = folder / id.encode().hex()
            if where != "kept" and waiting.is_file():
                size = waiting.stat().st_size
                _append(out.fileno(), waiting, 0, size)
            elif where != "waiting" and id in kept and present is not None:
                start, size = kept[id]
                now = files.path(place.scope, place.datastore, place.path)
                _append(out.fileno(), now, start, size)
            else:
                raise Invalid(f"there is no piece {id!r} to join", target="blockid")
            joined.append((id, size))
    return joined


def waiting_size(files: Files, place: Place, wanted: Sequence[tuple[str, str]]) -> int:
    """Return how many bytes of the wanted pieces wait: what joining them takes of the disk."""
    sizes = {piece.id: piece.size for piece in pieces(files, place)}
    return sum(sizes.get(id, 0) for _, id in wanted)


def forget(files: Files, place: Place) -> None:
    """Throw away the pieces that wait."""
    shutil.rmtree(_folder(files, place), ignore_errors=True)


def sweep(files: Files, *, older: float = _KEPT) -> None:
    """Throw away parts and pieces that nobody has touched for `older` seconds."""
    limit = time.time() - older
    for folder in (files.root / ".staging", files.root / ".pieces"):
        for path in folder.iterdir() if folder.is_dir() else ():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime >= limit:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def _tidy(files: Files) -> None:
    """Sweep, but not more than once an hour: the mark of the last time is a file."""
    mark = files.root / ".swept"
    if mark.exists() and time.time() - mark.stat().st_mtime < 3600:
        return
    mark.touch()
    sweep(files)


def _folder(files: Files, place: Place) -> Path:
    text = "\0".join((place.scope, place.datastore, place.path))
    return files.root / ".pieces" / hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _kept(entry: Entry | None) -> dict[str, tuple[int, int]]:
    """Return where each piece of a present file begins and its size."""
    found, start = {}, 0
    for id, size in entry.facts.pieces if entry else []:
        found[id] = (start, size)
        start += size
    return found


def _append(out: int, source: Path, start: int, size: int) -> None:
    """Append `size` bytes of a file, from `start`; the kernel copies where it can."""
    with source.open("rb", buffering=0) as file:
        file.seek(start)
        while size:
            count = _copy(file.fileno(), out, min(size, _CHUNK))
            if not count:
                raise Invalid(f"{source.name!r} is shorter than it was", target="blockid")
            size -= count


def _copy(source: int, out: int, count: int) -> int:
    if hasattr(os, "copy_file_range"):
        with suppress(OSError):  # not on every file system; a full disk shows in the write below
            return os.copy_file_range(source, out, count)
    data = os.read(source, count)
    view = memoryview(data)
    while view:
        view = view[os.write(out, view) :]
    return len(data)
