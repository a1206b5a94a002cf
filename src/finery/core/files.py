"""Where bytes live: datastores as folders, so that a folder of data is a folder.

A location is a text that other rows keep:

    file:<datastore>/<path>      a file or folder of the workspace
    package:<path>               shipped with Finery, below `catalog/`
    https://…                    an address; fetched where it is used

Paths are confined to their datastore, links included.  A file is there because
it is on the disk, whoever wrote it: the database keeps only what a file system
has no room for (`Facts`), and forgets it when the file changes.  What is still
on its way in is in `uploads.py`; who may read and write is a door's business.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

from sqlalchemy import JSON, Column, String, Table, delete, insert, select

from finery.core import ids
from finery.core.errors import Conflict, Invalid, NotFound
from finery.core.store import Page, Store, When, metadata, page

PACKAGE = Path(__file__).parent.parent / "catalog"

_LONGEST = 1024  # characters of a path
_LONGEST_PART = 255  # bytes between two slashes: what the usual file systems take

FACTS = Table(
    "file_facts",
    metadata,
    Column("scope", String(64), primary_key=True),
    Column("datastore", String(255), primary_key=True),
    Column("path", String(_LONGEST), primary_key=True),
    # Which file these are the facts of: they are of no other that takes its place.
    Column("mark", String(80), nullable=False),
    Column("changed", When, nullable=False),
    Column("facts", JSON, nullable=False),
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a file beside its bytes."""

    tags: dict[str, str] = field(default_factory=dict)  # the caller's own
    headers: dict[str, str] = field(default_factory=dict)  # how it wants to be handed out
    pieces: list[tuple[str, int]] = field(default_factory=list)  # id and bytes, in order


NOTHING = Facts()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file.  `etag` changes with its bytes and with its facts."""

    path: str
    size: int
    changed: datetime
    etag: str
    facts: Facts = field(default_factory=Facts)


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder in a listing; its path ends with a slash."""

    path: str


class Files:
    """The bytes of every workspace, below one folder: `<root>/<scope>/<datastore>/<path>`."""

    def __init__(self, root: Path, store: Store) -> None:
        self.root, self.store = root, store
        self._turn = threading.Lock()  # between a look at what is there and its replacement

    def path(self, scope: str, datastore: str, path: str = "") -> Path:
        """Return where `path` of a datastore lies.  Raises `Invalid` if it would leave it."""
        base = self.base(scope, datastore)
        try:
            found = (base / path.lstrip("/")).resolve()
        except (OSError, ValueError, RuntimeError) as exc:  # a NUL, or links that go in circles
            raise Invalid(f"the path {path!r} cannot be followed: {exc}", target="path") from exc
        if not found.is_relative_to(base):
            raise Invalid(f"the path {path!r} leaves the datastore {datastore!r}", target="path")
        return found

    def locate(self, scope: str, location: str) -> Path:
        """Return the file or folder that a location names.  Raises `NotFound` where none is."""
        if location.startswith("package:"):
            found = (PACKAGE / location.removeprefix("package:")).resolve()
            if not found.is_relative_to(PACKAGE.resolve()):
                raise Invalid(f"{location!r} leaves the package", target="path")
        elif location.startswith("file:"):
            datastore, _, path = location.removeprefix("file:").partition("/")
            found = self.path(scope, datastore, path)
        else:
            raise Invalid(f"{location!r} is not a place on this server", target="path")
        if not found.exists():
            if location.startswith("file:"):
                said = f"{path!r} in the datastore {datastore!r}"
            else:
                said = repr(location)
            raise NotFound(f"nothing is at {said}", target=location)
        return found

    def strays(self, folder: Path) -> Callable[[str, list[str]], set[str]]:
        """Return what has `shutil.copytree` leave out links that lead nowhere, up, or outside.

        A process writes them, in a container perhaps; a copy would be of what only we may read.
        (copytree's own way with the former looks for them from the working directory.)
        """
        root = self.root.resolve()
        base = Path("/")  # of what came with the package: it is ours
        if folder.is_relative_to(root):
            base = root.joinpath(*folder.relative_to(root).parts[:2])

        def strays(place: str, names: list[str]) -> set[str]:
            here = Path(place).resolve()
            links = [path for name in names if (path := Path(place, name)).is_symlink()]
            leads = {path.name: path.resolve() for path in links if path.exists()}
            kept = {
                name
                for name, to in leads.items()
                if to.is_relative_to(base) and not here.is_relative_to(to)
            }
            return {path.name for path in links} - kept

        return strays

    def base(self, scope: str, datastore: str) -> Path:
        """Return the folder of a datastore, which may not be there yet."""
        ids.name(scope, target="workspace")
        return (self.root / scope / ids.name(datastore, target="datastore")).resolve()

    def create(self, scope: str, datastore: str) -> bool:
        """Make the folder of a datastore; return False if it was there."""
        base = self.base(scope, datastore)
        existed = base.is_dir()
        base.mkdir(parents=True, exist_ok=True)
        return not existed

    def find(self, scope: str, datastore: str, path: str) -> Entry | None:
        """Return the file at `path`, if there is one.  A folder is no file."""
        try:
            slot = self._slot(scope, datastore, path)
            found = self.path(scope, datastore, path).stat() if slot.is_symlink() else slot.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Invalid:  # not a file's name; or a link that leaves the datastore
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return _entry(path, found, self._row(scope, datastore, path))

    def get(self, scope: str, datastore: str, path: str) -> Entry:
        entry = self.find(scope, datastore, path)
        if entry is None:
            raise NotFound(f"there is no file {path!r}", target=path)
        return entry

    def open(self, scope: str, datastore: str, path: str) -> tuple[Entry, BinaryIO]:
        """Open a file for reading, and say what it was at that moment.  The caller closes it."""
        self.get(scope, datastore, path)
        try:
            file = self.path(scope, datastore, path).open("rb", buffering=0)
        except FileNotFoundError as exc:
            raise NotFound(f"there is no file {path!r}", target=path) from exc
        row = self._row(scope, datastore, path)
        return _entry(path, os.fstat(file.fileno()), row), file

    def list(
        self,
        scope: str,
        datastore: str,
        *,
        prefix: str = "",
        after: str = "",
        limit: int = 5000,
        folders: bool = False,
    ) -> Page[Entry | Folder]:
        """Return the files whose path begins with `prefix`, in the order of their paths.

        With `folders`, what lies in a folder below the prefix is shown as that
        folder.  Only the folders on the way to the current file are held in
        memory.  Links to folders are not followed, nor those that lead outside.
        """
        base = self.base(scope, datastore)
        if not base.is_dir():
            raise NotFound(f"there is no datastore {datastore!r}", target=datastore)
        found: list[tuple[str, os.stat_result | None]] = []
        for key, result in _walk(base, prefix=prefix, after=after, folders=folders):
            found.append((key, result))
            if len(found) > limit:
                break
        rows = self._rows(scope, datastore, [key for key, result in found if result])
        items: list[Entry | Folder] = [
            Folder(path=key) if result is None else _entry(key, result, rows.get(_text(key)))
            for key, result in found
        ]
        return page(items, limit, [key for key, _ in found])

    def put(
        self,
        scope: str,
        datastore: str,
        path: str,
        *,
        part: Path,
        facts: Facts = NOTHING,
        expect: Callable[[Entry | None], None] = lambda _: None,
    ) -> Entry:
        """Make the finished file `part` the file at `path`, at once and whole.

        `expect` sees what is there now and raises if that is not what the
        caller thought.  Raises `Conflict` where a file would have to be a
        folder, or a folder a file.
        """
        slot = self._slot(scope, datastore, path)
        with self._turn:
            expect(self.find(scope, datastore, path))
            try:
                slot.parent.mkdir(parents=True, exist_ok=True)
            except (NotADirectoryError, FileExistsError) as exc:
                raise Conflict(
                    f"{path!r} cannot be kept: a part of its path is a file here", target=path
                ) from exc
            _make_room(slot, path)
            part.replace(slot)
            return self._keep(scope, datastore, path, slot.stat(), facts)

    def annotate(
        self,
        scope: str,
        datastore: str,
        path: str,
        *,
        change: Callable[[Facts], Facts],
        expect: Callable[[Entry | None], None] = lambda _: None,
    ) -> Entry:
        """Change what is known of a file beside its bytes."""
        with self._turn:
            entry = self.find(scope, datastore, path)
            expect(entry)
            if entry is None:
                raise NotFound(f"there is no file {path!r}", target=path)
            found = self.path(scope, datastore, path).stat()
            return self._keep(scope, datastore, path, found, change(entry.facts), always=True)

    def delete(
        self,
        scope: str,
        datastore: str,
        path: str,
        *,
        expect: Callable[[Entry | None], None] = lambda _: None,
    ) -> None:
        """Delete a file (a link itself, not what it leads to).  Its folder stays."""
        with self._turn:
            expect(self.find(scope, datastore, path))
            self.get(scope, datastore, path)
            with suppress(FileNotFoundError):
                self._slot(scope, datastore, path).unlink()
            self._forget(scope, datastore, path)

    def _slot(self, scope: str, datastore: str, path: str) -> Path:
        """Return where the file `path` is or would be, without following it if it is a link."""
        parts = path.split("/")
        if len(path) > _LONGEST or any(_too_long(part) for part in parts):
            raise Invalid(
                f"the path {path[:60]!r}… is too long: {_LONGEST} characters, and "
                f"{_LONGEST_PART} bytes between two slashes, are taken",
                target="path",
            )
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise Invalid(
                f"{path!r} cannot be a file's path: every part of it needs a name", target="path"
            )
        return self.path(scope, datastore, "/".join(parts[:-1])) / parts[-1]

    def _row(self, scope: str, datastore: str, path: str) -> Any | None:
        return self._rows(scope, datastore, [path]).get(_text(path))

    def _rows(self, scope: str, datastore: str, paths: Sequence[str]) -> dict[str, Any]:
        query = select(FACTS).where(
            FACTS.c.scope == scope,
            FACTS.c.datastore == datastore,
            FACTS.c.path.in_([_text(path) for path in paths]),
        )
        return {row.path: row for row in self.store.rows(query)} if paths else {}

    def _keep(
        self,
        scope: str,
        datastore: str,
        path: str,
        found: os.stat_result,
        facts: Facts,
        *,
        always: bool = False,
    ) -> Entry:
        """Write down the facts of a file; the time of it is part of its etag."""
        if facts == NOTHING and not always:
            if self._row(scope, datastore, path) is not None:
                self._forget(scope, datastore, path)
            return _entry(path, found, None)
        place = {"scope": scope, "datastore": datastore, "path": _text(path)}
        known = {"mark": _mark(found), "changed": ids.now(), "facts": asdict(facts)}
        with self.store.transaction() as connection:
            self._forget(scope, datastore, path)
            connection.execute(insert(FACTS).values(**place, **known))
        return _entry(path, found, SimpleNamespace(**known))

    def _forget(self, scope: str, datastore: str, path: str) -> None:
        with self.store.transaction() as connection:
            connection.execute(
                delete(FACTS).where(
                    FACTS.c.scope == scope,
                    FACTS.c.datastore == datastore,
                    FACTS.c.path == _text(path),
                )
            )


def _walk(
    base: Path, *, prefix: str, after: str, folders: bool
) -> Iterator[tuple[str, os.stat_result | None]]:
    """Yield the files below `base` in the order of their paths, and folders where asked."""
    start = prefix.rpartition("/")[0]
    if "/" in prefix and not _plain(base, start):
        return
    stack = [iter(_children(base, start + "/" if start else ""))]
    while stack:
        for key, entry in stack[-1]:
            inside = key.endswith("/") and after.startswith(key)
            if not key.startswith(prefix) or (key <= after and not inside):
                continue
            if not key.endswith("/"):
                result = _file(base, entry)
                if result is not None:
                    yield key, result
            elif not folders:
                stack.append(iter(_children(base, key)))
                break
            elif key != after and any(_walk(base, prefix=key, after="", folders=False)):
                yield key, None
        else:
            stack.pop()


def _plain(base: Path, folder: str) -> bool:
    """Say whether a folder is named as a listing would name it, and no link is on the way."""
    if "\0" in folder or any(part in ("", ".", "..") for part in folder.split("/")):
        return False
    return (base / folder).resolve() == base / folder


def _children(base: Path, folder: str) -> list[tuple[str, os.DirEntry[str]]]:
    """Return what a folder holds, by path; a folder's path ends with a slash and sorts so."""
    try:
        with os.scandir(base / folder) as found:
            named = [
                (folder + entry.name + "/" * entry.is_dir(follow_symlinks=False), entry)
                for entry in found
            ]
    except OSError:  # not there, not a folder, or a name longer than there can be
        return []
    return sorted(named, key=lambda item: item[0])


def _file(base: Path, entry: os.DirEntry[str]) -> os.stat_result | None:
    """Return what a directory's entry is as a file; None if it is none, or none of ours."""
    try:
        if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(base):
            return None
        found = entry.stat()
    except (OSError, RuntimeError):  # it went away, or leads nowhere
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _make_room(slot: Path, path: str) -> None:
    """Let a file take the place of folders that hold no file; refuse if they hold one."""
    if slot.is_symlink() or not slot.is_dir():
        return
    for folder, _, files in os.walk(slot, topdown=False):
        if files:
            raise Conflict(f"{path!r} is a folder here, with files in it", target=path)
        with suppress(OSError):  # a folder with something in it, found by the next line
            os.rmdir(folder)
    if slot.exists():
        raise Conflict(f"{path!r} is a folder here, with files in it", target=path)


def _entry(path: str, found: os.stat_result, row: Any | None) -> Entry:
    mark = _mark(found)
    changed = datetime.fromtimestamp(found.st_mtime, UTC)
    facts = Facts()
    if row is not None and row.mark == mark:
        pieces = [(id, size) for id, size in row.facts["pieces"]]
        facts = Facts(**{**row.facts, "pieces": pieces})
        changed = max(changed, row.changed)
        mark = f"{mark} {row.changed.timestamp()}"
    etag = hashlib.blake2b(mark.encode(), digest_size=8).hexdigest()
    return Entry(path=path, size=found.st_size, changed=changed, etag=etag, facts=facts)


def _mark(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}"


def _too_long(part: str) -> bool:
    try:
        return len(os.fsencode(part)) > _LONGEST_PART
    except UnicodeEncodeError as exc:
        raise Invalid(f"{part!r} cannot be a file's name here", target="path") from exc


def _text(path: str) -> str:
    """Return a path that a database takes: names on a disk need not be text."""
    return path.encode("utf-8", "replace").decode()
