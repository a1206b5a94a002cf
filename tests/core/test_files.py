"""Files on the disk as named things: what is there, in which order, and what may not be."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from finery.core import store as stores
from finery.core import uploads
from finery.core.errors import Conflict, Invalid, NotFound, Unavailable
from finery.core.files import Entry, Facts, Files
from finery.core.uploads import Place


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    database = stores.open_sqlite(tmp_path / "finery.db")
    stores.metadata.create_all(database._engine)
    found = Files(tmp_path / "files", database)
    found.create("ws", "store")
    yield found
    database.close()


def put(files: Files, path: str, data: bytes = b"x", facts: Facts | None = None) -> Entry:
    with uploads.part(files) as part:
        part.write_bytes(data)
        return files.put("ws", "store", path, part=part, facts=facts or Facts())


def names(files: Files, **asked: object) -> list[str]:
    return [item.path for item in files.list("ws", "store", **asked).items]  # type: ignore[arg-type]


def test_what_is_put_is_a_file_on_the_disk(files: Files) -> None:
    put(files, "a/b.txt", b"hello")
    assert (files.root / "ws/store/a/b.txt").read_bytes() == b"hello"
    assert files.get("ws", "store", "a/b.txt").size == 5


def test_what_a_job_wrote_is_found_without_being_put(files: Files) -> None:
    (files.root / "ws/store/out").mkdir()
    (files.root / "ws/store/out/model.bin").write_bytes(b"weights")
    assert files.get("ws", "store", "out/model.bin").size == 7
    assert names(files) == ["out/model.bin"]


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", "a/", "", "a\0b", "x" * 256, "a/" * 600],
)
def test_a_path_that_cannot_be_a_files_name_is_refused(files: Files, path: str) -> None:
    with pytest.raises(Invalid):
        put(files, path)
    assert files.find("ws", "store", path) is None
    assert not list((files.root / ".staging").iterdir())


@pytest.mark.parametrize("scope", ["..", "", "a/b", ".staging"])
def test_a_workspace_or_datastore_that_is_no_name_is_refused(files: Files, scope: str) -> None:
    for where in ((scope, "store"), ("ws", scope)):
        with pytest.raises(Invalid):
            files.path(*where, "x")
        assert files.find(*where, "x") is None


def test_a_link_that_leads_outside_is_not_there(files: Files, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key")
    base = files.root / "ws/store"
    (base / "link").symlink_to(tmp_path / "secret")
    (base / "folder").symlink_to(tmp_path)
    assert files.find("ws", "store", "link") is None
    assert files.find("ws", "store", "folder/secret") is None
    assert names(files) == []
    assert names(files, prefix="folder/") == []
    with pytest.raises(Invalid):
        put(files, "folder/mine")
    put(files, "link", b"new")
    assert (tmp_path / "secret").read_text() == "key"
    assert not (base / "link").is_symlink()


def test_a_link_within_the_datastore_is_a_file_and_deleting_it_spares_what_it_leads_to(
    files: Files,
) -> None:
    put(files, "blobs/1", b"weights")
    (files.root / "ws/store/model").symlink_to("blobs/1")
    assert names(files) == ["blobs/1", "model"]
    assert files.get("ws", "store", "model").size == 7
    files.delete("ws", "store", "model")
    assert names(files) == ["blobs/1"]


def test_links_that_go_in_circles_are_not_followed(files: Files) -> None:
    base = files.root / "ws/store"
    (base / "round").symlink_to(base / "round")
    (base / "up").symlink_to(base)
    put(files, "a")
    assert names(files) == ["a"]
    assert files.find("ws", "store", "round") is None


def test_a_listing_is_in_the_order_of_whole_paths(files: Files) -> None:
    paths = ["a-b", "a.txt", "a/x", "a/y/z", "a0", "b"]
    for path in paths:
        put(files, path)
    assert names(files) == sorted(paths)


@pytest.mark.parametrize("folders", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_pages_put_together_are_the_whole_listing(files: Files, size: int, folders: bool) -> None:
    for path in ["a", "b/1", "b/2", "b/c/3", "b-", "d/e/4", "z"]:
        put(files, path)
    found, after = [], ""
    while True:
        page = files.list("ws", "store", after=after, limit=size, folders=folders)
        assert len(page.items) <= size
        found += [item.path for item in page.items]
        if page.next is None:
            break
        after = page.next
    assert found == names(files, folders=folders)
    assert found == (["a", "b-", "b/", "d/", "z"] if folders else sorted(found))
    assert len(found) == (5 if folders else 7)


def test_a_prefix_may_end_in_the_middle_of_a_name(files: Files) -> None:
    for path in ["model/a", "model2/a", "mode", "x/model"]:
        put(files, path)
    assert names(files, prefix="model") == ["model/a", "model2/a"]
    assert names(files, prefix="model/") == ["model/a"]
    assert names(files, prefix="mod", folders=True) == ["mode", "model/", "model2/"]


@pytest.mark.parametrize(
    "prefix", ["/", "/etc/", "../", "a/../", "model//", "\0/", "x" * 300 + "/"]
)
def test_a_prefix_cannot_lead_out_of_the_datastore(files: Files, prefix: str) -> None:
    put(files, "model/a")
    assert names(files, prefix=prefix) == []


def test_folders_without_files_are_not_shown(files: Files) -> None:
    (files.root / "ws/store/empty/deep").mkdir(parents=True)
    put(files, "full/x")
    assert names(files, folders=True) == ["full/"]


def test_a_datastore_that_is_not_there_has_no_listing(files: Files) -> None:
    with pytest.raises(NotFound):
        files.list("ws", "nowhere")


def test_a_file_cannot_be_a_folder_too(files: Files) -> None:
    put(files, "a")
    with pytest.raises(Conflict):
        put(files, "a/b")
    put(files, "c/d")
    with pytest.raises(Conflict):
        put(files, "c")
    assert names(files) == ["a", "c/d"]


def test_a_file_may_take_the_place_of_folders_left_empty(files: Files) -> None:
    put(files, "a/b/c")
    files.delete("ws", "store", "a/b/c")
    put(files, "a", b"file")
    assert names(files) == ["a"]


def test_facts_are_of_one_file_and_not_of_the_next_in_its_place(files: Files) -> None:
    put(files, "a", b"one", Facts(tags={"owner": "me"}))
    first = files.get("ws", "store", "a")
    assert first.facts.tags == {"owner": "me"}
    (files.root / "ws/store/a").write_bytes(b"by a job")
    second = files.get("ws", "store", "a")
    assert second.facts == Facts()
    assert second.etag != first.etag


def test_the_etag_changes_with_the_bytes_and_with_the_facts(files: Files) -> None:
    etags = [put(files, "a", b"1").etag, put(files, "a", b"2").etag]
    annotated = files.annotate("ws", "store", "a", change=lambda _: Facts(tags={"k": "v"}))
    etags += [annotated.etag, files.get("ws", "store", "a").etag]
    assert len(set(etags)) == 3
    assert etags[2] == etags[3]


def test_a_refused_put_leaves_what_was_there(files: Files) -> None:
    put(files, "a", b"old")

    def refuse(entry: Entry | None) -> None:
        assert entry is not None
        raise Conflict("not this one")

    with pytest.raises(Conflict), uploads.part(files) as part:
        part.write_bytes(b"new")
        files.put("ws", "store", "a", part=part, expect=refuse)
    assert (files.root / "ws/store/a").read_bytes() == b"old"
    assert not list((files.root / ".staging").iterdir())


def test_a_part_larger_than_the_disk_is_refused_before_it_comes(files: Files) -> None:
    with pytest.raises(Unavailable, match="disk is full"), uploads.part(files, size=1 << 60):
        pytest.fail("nothing may be written")


def test_a_disk_that_fills_up_leaves_nothing_behind(files: Files) -> None:
    with pytest.raises(Unavailable, match="disk is full"), uploads.part(files) as part:
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list((files.root / ".staging").iterdir())
    assert names(files) == []


PLACE = Place(scope="ws", datastore="store", path="big")


def keep(files: Files, id: str, data: bytes) -> None:
    with uploads.part(files) as part:
        part.write_bytes(data)
        uploads.keep(files, PLACE, id, part=part)


def join(files: Files, *wanted: tuple[str, str]) -> list[tuple[str, int]]:
    with uploads.part(files) as part:
        pieces = uploads.join(files, PLACE, wanted, part=part)
        files.put("ws", "store", "big", part=part, facts=Facts(pieces=pieces))
    uploads.forget(files, PLACE)
    return pieces


def test_pieces_come_in_any_order_and_nobody_sees_them_until_they_are_joined(files: Files) -> None:
    keep(files, "2", b"world")
    keep(files, "1", b"hello ")
    assert names(files) == []
    assert [piece.size for piece in uploads.pieces(files, PLACE)] == [6, 5]
    assert join(files, ("waiting", "1"), ("latest", "2")) == [("1", 6), ("2", 5)]
    assert (files.root / "ws/store/big").read_bytes() == b"hello world"
    assert uploads.pieces(files, PLACE) == []


def test_pieces_of_the_present_file_can_be_used_again(files: Files) -> None:
    keep(files, "1", b"hello ")
    keep(files, "2", b"world")
    join(files, ("latest", "1"), ("latest", "2"))
    keep(files, "2", b"there")
    join(files, ("kept", "1"), ("latest", "2"), ("kept", "2"))
    assert (files.root / "ws/store/big").read_bytes() == b"hello thereworld"


def test_a_piece_that_is_not_there_is_named_and_the_others_stay(files: Files) -> None:
    keep(files, "1", b"hello")
    with pytest.raises(Invalid, match="'3'"):
        join(files, ("latest", "1"), ("latest", "3"))
    assert names(files) == []
    assert [piece.id for piece in uploads.pieces(files, PLACE)] == ["1"]


def test_what_nobody_joins_is_thrown_away_in_time(files: Files) -> None:
    keep(files, "1", b"hello")
    uploads.sweep(files)
    assert uploads.pieces(files, PLACE)
    for folder in (files.root / ".pieces").iterdir():
        os.utime(folder, (0, 0))
    uploads.sweep(files)
    assert not uploads.pieces(files, PLACE)


def test_a_name_that_is_not_text_is_listed_and_read(files: Files) -> None:
    name = os.fsdecode(b"caf\xe9")
    (files.root / "ws/store" / name).write_bytes(b"x")
    put(files, name + "2", b"y", Facts(tags={"k": "v"}))
    assert names(files) == [name, name + "2"]
    assert files.get("ws", "store", name + "2").facts.tags == {"k": "v"}
