"""The Blob surface: bytes up and down, conditions, listings, and who may do what."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from socket import create_connection as connect
from xml.etree import ElementTree

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from finery.core import ids, workspaces
from finery.core import store as stores
from finery.core.compute import Capacity
from finery.core.files import Files
from finery.core.workspaces import Caller, Keys, Workspace
from finery.doors.azureml import sas, storage
from finery.doors.http import House

SDK = Path(__file__).parents[3] / ".venv-sdk" / "bin" / "python"
BLOCK = {"x-ms-blob-type": "BlockBlob"}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    database = stores.open_sqlite(tmp_path / "finery.db")
    stores.metadata.create_all(database._engine)
    workspaces.create(database, Workspace(id="ws", subscription="s", group="g", name="w"))
    files = Files(tmp_path / "files", database)
    files.create("ws", "store")
    yield House(
        store=database,
        files=files,
        keys=Keys(tmp_path),
        http="http://testserver",
        https="https://testserver",
        wake=lambda: None,
        log=lambda _, __: b"",
        capacity=lambda: Capacity(cpus=1, memory=1, gpus=0),
        default_workspace=("s", "g", "w"),
    )
    database.close()


@pytest.fixture
def app(house: House) -> FastAPI:
    app = FastAPI()
    app.include_router(storage.router(house))
    return app


@pytest.fixture
def anyone(app: FastAPI) -> TestClient:
    return TestClient(app, base_url="http://testserver")


@pytest.fixture
def client(app: FastAPI, house: House) -> TestClient:
    return TestClient(app, headers={"authorization": f"Bearer {house.keys.admin}"})


def signature(house: House, **given: object) -> str:
    given = {"container": "store", "until": ids.now() + timedelta(minutes=5), **given}
    return sas.sign(house.keys, "ws", **given)  # type: ignore[arg-type]


def code(answer: object) -> tuple[int, str]:
    return answer.status_code, answer.headers.get("x-ms-error-code", "")  # type: ignore[attr-defined]


def put(client: TestClient, name: str, data: bytes = b"hello", **headers: str) -> None:
    sent = BLOCK | {key.replace("_", "-"): value for key, value in headers.items()}
    answer = client.put(f"/blob/ws/store/{name}", content=data, headers=sent)
    assert answer.status_code == 201, answer.text


def listed(client: TestClient, **query: object) -> tuple[list[str], str]:
    params = {"restype": "container", "comp": "list", **query}
    answer = client.get("/blob/ws/store", params=params)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    tree = ElementTree.fromstring(answer.content)
    found = [element.text or "" for element in tree.findall("./Blobs/*/Name")]
    return found, tree.findtext("NextMarker") or ""


# Who may.


@pytest.mark.parametrize(
    "path",
    [
        "store/a",
        "store/a?comp=block&blockid=MQ==",
        "store/a?comp=blocklist",
        "store/a?comp=metadata",
        "store?restype=container&comp=list",
        "store?restype=container",
        "?comp=list",
    ],
)
def test_nothing_is_answered_without_a_credential(
    anyone: TestClient, client: TestClient, house: House, path: str
) -> None:
    put(client, "a")
    for method in ("GET", "HEAD", "PUT", "DELETE", "POST"):
        answer = anyone.request(method, f"/blob/ws/{path}", content=b"", headers=BLOCK)
        assert code(answer) == (401, "NoAuthenticationInformation"), method
    assert house.files.get("ws", "store", "a").size == 5


@pytest.mark.parametrize("credential", ["Bearer nonsense", "Bearer a.b.c", "SharedKey a:b", ""])
def test_a_wrong_credential_is_refused(anyone: TestClient, credential: str) -> None:
    answer = anyone.get("/blob/ws/store/a", headers={"authorization": credential})
    assert answer.status_code in (401, 403)


def test_a_token_for_another_workspace_is_refused(anyone: TestClient, house: House) -> None:
    for workspace, status in (("ws", 404), ("other", 403), (None, 404)):
        caller = Caller(name="me", workspace=workspace)
        token = house.keys.mint(caller, audience="x", seconds=60, now=ids.now())
        headers = {"authorization": f"Bearer {token}"}
        assert anyone.get("/blob/ws/store/a", headers=headers).status_code == status


def test_a_jobs_own_token_is_not_for_blobs(anyone: TestClient, house: House) -> None:
    caller = Caller(name="job", role="job", workspace="ws")
    token = house.keys.mint(caller, audience="x", seconds=60, now=ids.now())
    headers = {"authorization": f"Bearer {token}"}
    assert anyone.get("/blob/ws/store/a", headers=headers).status_code == 403


def test_a_signature_covers_its_container_and_no_other(anyone: TestClient, house: House) -> None:
    query = signature(house)
    house.files.create("ws", "more")
    house.files.create("ws2", "store")
    sent = {"content": b"hello", "headers": BLOCK}
    assert anyone.put(f"/blob/ws/store/a/b?{query}", **sent).status_code == 201  # type: ignore[arg-type]
    for place in ("ws/more/a", "ws2/store/a", "ws/store2/a"):
        answer = anyone.put(f"/blob/{place}?{query}", **sent)  # type: ignore[arg-type]
        assert code(answer) == (403, "AuthenticationFailed")


def test_a_signature_for_a_folder_covers_what_is_below_it(
    anyone: TestClient, client: TestClient, house: House
) -> None:
    for name in ("model/a", "model/deep/b", "model2/a", "other"):
        put(client, name)
    query = signature(house, path="model", covers="folder")
    statuses = {
        name: anyone.get(f"/blob/ws/store/{name}?{query}").status_code
        for name in ("model/a", "model/deep/b", "model2/a", "other", "model")
    }
    assert statuses == {
        "model/a": 200, "model/deep/b": 200, "model2/a": 403, "other": 403, "model": 403
    }  # fmt: skip
    listing = "/blob/ws/store?restype=container&comp=list"
    assert anyone.get(f"{listing}&prefix=model/&{query}").status_code == 200
    for prefix in ("model", "model2/", "", "mod"):
        assert anyone.get(f"{listing}&prefix={prefix}&{query}").status_code == 403


def test_a_signature_for_a_blob_covers_it_alone(
    anyone: TestClient, client: TestClient, house: House
) -> None:
    put(client, "logs/one")
    put(client, "logs/two")
    query = signature(house, path="logs/one", covers="blob", verbs="r")
    assert anyone.get(f"/blob/ws/store/logs/one?{query}").text == "hello"
    for path in ("logs/two", "logs", "logs/one/x"):
        assert anyone.get(f"/blob/ws/store/{path}?{query}").status_code == 403
    listing = f"/blob/ws/store?restype=container&comp=list&prefix=logs/one&{query}"
    assert anyone.get(listing).status_code == 403


@pytest.mark.parametrize(
    ("verbs", "allowed"),
    [
        ("r", {"get", "head"}),
        ("l", {"list"}),
        ("d", {"delete"}),
        ("w", {"put", "stage", "annotate"}),
        ("c", {"put new", "stage"}),
    ],
)
def test_a_signature_allows_its_verbs_and_no_other(
    anyone: TestClient, client: TestClient, house: House, verbs: str, allowed: set[str]
) -> None:
    put(client, "a")
    query = signature(house, verbs=verbs)
    at, new = f"/blob/ws/store/a?{query}", f"/blob/ws/store/new?{query}"
    listing = f"/blob/ws/store?restype=container&comp=list&{query}"
    tries = {
        "get": anyone.get(at),
        "head": anyone.head(at),
        "list": anyone.get(listing),
        "stage": anyone.put(f"{at}&comp=block&blockid=MQ==", content=b"x"),
        "annotate": anyone.put(f"{at}&comp=metadata"),
        "put": anyone.put(at, content=b"x", headers=BLOCK),
        "put new": anyone.put(new, content=b"x", headers=BLOCK),
        "delete": anyone.delete(at),
    }
    done = {name for name, answer in tries.items() if answer.status_code < 300}
    assert done == allowed | ({"put new"} if "put" in allowed else set())
    assert {answer.status_code for name, answer in tries.items() if name not in done} == {403}


def test_a_signature_ends_and_cannot_be_changed(anyone: TestClient, house: House) -> None:
    old = signature(house, until=ids.now() - timedelta(seconds=1))
    good = signature(house, verbs="r")
    changed = [
        good.replace("sp=r", "sp=rw"),
        good.replace("sr=c", "sr=b"),
        good.replace("se=2", "se=3"),
        good + "&sip=1.2.3.4",
        good[:-12],
        "sig=",
    ]
    for query in (old, *changed):
        answer = anyone.get(f"/blob/ws/store/a?{query}")
        assert code(answer) == (403, "AuthenticationFailed"), query
    assert anyone.get(f"/blob/ws/store/a?{good}").status_code == 404


# Bytes.


def test_what_is_put_is_a_file_and_is_got(client: TestClient, house: House) -> None:
    put(client, "folder/ä b+c.txt", "grüße".encode())
    assert (house.files.root / "ws/store/folder/ä b+c.txt").read_text() == "grüße"
    answer = client.get("/blob/ws/store/folder/%C3%A4%20b+c.txt")
    assert answer.content == "grüße".encode()
    assert answer.headers["x-ms-blob-type"] == "BlockBlob"
    head = client.head("/blob/ws/store/folder/%C3%A4%20b+c.txt")
    assert head.headers["content-length"] == "7"
    assert head.content == b""
    assert head.headers["etag"] == answer.headers["etag"]


def test_the_sdks_own_form_of_the_account_is_the_same_place(client: TestClient) -> None:
    put(client, "a")
    assert client.get("/blob/ws.blob.core.windows.net/store/a").text == "hello"
    answer = client.get("/blob/ws.file.core.windows.net/store/a")
    assert code(answer) == (501, "NotImplemented")
    assert "'file'" in answer.text


def test_ranges(client: TestClient) -> None:
    put(client, "a", b"0123456789")
    put(client, "empty", b"")
    for header, status, data in [
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=7-99", 206, b"789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=10-", 416, None),
        ("bytes=5-4", 416, None),
        ("words=1-2", 400, None),
    ]:
        for name in ("range", "x-ms-range"):
            answer = client.get("/blob/ws/store/a", headers={name: header})
            assert answer.status_code == status, header
            assert data is None or answer.content == data
    answer = client.get("/blob/ws/store/a", headers={"range": "bytes=2-4"})
    assert answer.headers["content-range"] == "bytes 2-4/10"
    assert code(client.get("/blob/ws/store/empty", headers={"range": "bytes=0-9"})) == (
        416,
        "InvalidRange",
    )


def test_a_log_that_grows_is_read_on_from_where_one_was(client: TestClient, house: House) -> None:
    log = house.files.root / "ws/store/log.txt"
    log.write_bytes(b"one\n")
    assert client.get("/blob/ws/store/log.txt").content == b"one\n"
    with log.open("ab") as file:
        file.write(b"two\n")
    answer = client.get("/blob/ws/store/log.txt", headers={"range": "bytes=4-"})
    assert answer.content == b"two\n"


def test_bytes_that_were_changed_on_the_way_are_refused(client: TestClient) -> None:
    right = base64.b64encode(hashlib.md5(b"hello").digest()).decode()
    for name, sent in (("whole", {}), ("piece", {"comp": "block", "blockid": "MQ=="})):
        address = f"/blob/ws/store/{name}"
        wrong = BLOCK | {"content-md5": base64.b64encode(b"0" * 16).decode()}
        assert code(client.put(address, params=sent, content=b"hello", headers=wrong)) == (
            400,
            "Md5Mismatch",
        )
        assert client.get(address).status_code == 404
        headers = BLOCK | {"content-md5": right}
        answer = client.put(address, params=sent, content=b"hello", headers=headers)
        assert (answer.status_code, answer.headers["content-md5"]) == (201, right)


def test_a_blob_in_blocks(client: TestClient, house: House) -> None:
    address = "/blob/ws/store/big"
    for id, data in (("Mg==", b"world"), ("MQ==", b"hello "), ("Mw==", b"unused")):
        answer = client.put(address, params={"comp": "block", "blockid": id}, content=data)
        assert answer.status_code == 201
    assert client.get(address).status_code == 404
    assert listed(client) == ([], "")
    lists = {"comp": "blocklist", "blocklisttype": "all"}
    assert client.get(address, params=lists).text.count("<Size>") == 3
    body = "<BlockList><Latest>MQ==</Latest><Uncommitted>Mg==</Uncommitted></BlockList>"
    headers = {"x-ms-blob-content-type": "text/plain", "x-ms-meta-owner": "me"}
    answer = client.put(f"{address}?comp=blocklist", content=body, headers=headers)
    assert answer.status_code == 201, answer.text
    got = client.get(address)
    assert got.content == b"hello world"
    assert got.headers["content-type"] == "text/plain"
    assert got.headers["x-ms-meta-owner"] == "me"
    after = client.get(address, params=lists).text
    assert "<UncommittedBlocks></UncommittedBlocks>" in after
    assert after.count("<Size>") == 2


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("<BlockList><Latest>OQ==</Latest></BlockList>", "InvalidInput"),
        ("<BlockList><Other>OQ==</Other></BlockList>", "InvalidXmlDocument"),
        ("<BlockList>", "InvalidXmlDocument"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><BlockList/>', "InvalidXmlDocument"),
    ],
)
def test_a_block_list_that_makes_no_sense(client: TestClient, body: str, expected: str) -> None:
    answer = client.put("/blob/ws/store/big?comp=blocklist", content=body)
    assert code(answer) == (400, expected)
    assert listed(client) == ([], "")


def test_a_full_disk_is_said_at_once_and_leaves_nothing(client: TestClient, house: House) -> None:
    headers = BLOCK | {"content-length": str(1 << 60)}
    answer = client.put("/blob/ws/store/a", content=iter([b"x"]), headers=headers)
    assert code(answer) == (409, "InsufficientStorage")
    assert "disk is full" in answer.text
    assert not list((house.files.root / ".staging").iterdir())


# Conditions.


def test_conditions_on_reading(client: TestClient) -> None:
    put(client, "a")
    etag = client.head("/blob/ws/store/a").headers["etag"]
    modified = client.head("/blob/ws/store/a").headers["last-modified"]
    long_ago = "Thu, 01 Jan 2015 00:00:00 GMT"
    for header, value, status in [
        ("if-match", etag, 200),
        ("if-match", "*", 200),
        ("if-match", '"0x0"', 412),
        ("if-none-match", etag, 304),
        ("if-none-match", '"0x0"', 200),
        ("if-modified-since", modified, 304),
        ("if-modified-since", long_ago, 200),
        ("if-unmodified-since", modified, 200),
        ("if-unmodified-since", long_ago, 412),
        ("if-unmodified-since", "yesterday", 400),
    ]:
        for method in ("GET", "HEAD"):
            answer = client.request(method, "/blob/ws/store/a", headers={header: value})
            assert answer.status_code == status, (method, header, value)


def test_conditions_on_writing(client: TestClient) -> None:
    def write(data: bytes, **headers: str) -> tuple[int, str]:
        sent = BLOCK | {name.replace("_", "-"): value for name, value in headers.items()}
        return code(client.put("/blob/ws/store/a", content=data, headers=sent))

    assert write(b"0", if_match="*") == (412, "ConditionNotMet")
    assert write(b"1", if_none_match="*") == (201, "")
    assert write(b"2", if_none_match="*") == (409, "BlobAlreadyExists")
    etag = client.head("/blob/ws/store/a").headers["etag"]
    assert write(b"3", if_match=etag) == (201, "")
    assert write(b"4", if_match=etag) == (412, "ConditionNotMet")
    assert client.get("/blob/ws/store/a").content == b"3"
    stale = {"if-match": etag}
    assert client.delete("/blob/ws/store/a", headers=stale).status_code == 412
    assert client.put("/blob/ws/store/a?comp=metadata", headers=stale).status_code == 412
    assert client.delete("/blob/ws/store/a").status_code == 202
    assert code(client.delete("/blob/ws/store/a")) == (404, "BlobNotFound")


# What is known beside the bytes.


def test_metadata_and_headers_are_kept(client: TestClient) -> None:
    put(client, "a", x_ms_meta_owner="me", x_ms_blob_content_type="text/csv")
    before = client.head("/blob/ws/store/a").headers["etag"]
    answer = client.put("/blob/ws/store/a?comp=metadata", headers={"x-ms-meta-name": "b"})
    assert (answer.status_code, answer.headers["etag"] != before) == (200, True)
    got = client.get("/blob/ws/store/a?comp=metadata")
    assert got.headers["x-ms-meta-name"] == "b"
    assert "x-ms-meta-owner" not in got.headers
    assert got.headers["content-type"] == "text/csv"
    client.put("/blob/ws/store/a?comp=properties", headers={"x-ms-blob-cache-control": "no-store"})
    head = client.head("/blob/ws/store/a").headers
    assert (head["cache-control"], head["x-ms-meta-name"]) == ("no-store", "b")
    assert head["content-type"] == "application/octet-stream"


def test_metadata_that_cannot_be_is_refused(client: TestClient) -> None:
    for headers, expected in [
        ({"x-ms-meta-a-b": "x"}, "InvalidMetadata"),
        ({"x-ms-meta-a": "x" * 9000}, "MetadataTooLarge"),
    ]:
        answer = client.put("/blob/ws/store/a", content=b"", headers=BLOCK | headers)
        assert code(answer) == (400, expected)
    assert listed(client) == ([], "")


# Listings.


def test_a_listing_in_pages_and_by_folder(client: TestClient) -> None:
    for name in ("a", "b/1", "b/2", "c&d<e>", "z/ä"):
        put(client, name)
    assert listed(client)[0] == ["a", "b/1", "b/2", "c&d<e>", "z/ä"]
    assert listed(client, delimiter="/")[0] == ["a", "b/", "c&d<e>", "z/"]
    assert listed(client, prefix="b/", delimiter="/")[0] == ["b/1", "b/2"]
    found, marker = [], ""
    while True:
        names, marker = listed(client, maxresults=2, marker=marker)
        found += names
        if not marker:
            break
    assert found == listed(client)[0]


def test_a_listing_shows_metadata_when_asked(client: TestClient, house: House) -> None:
    put(client, "a", x_ms_meta_owner="me & you")
    (house.files.root / "ws/store/by-a-job").write_bytes(b"x")
    assert (
        "me &amp; you"
        in client.get("/blob/ws/store?restype=container&comp=list&include=metadata").text
    )
    assert "me &amp;" not in client.get("/blob/ws/store?restype=container&comp=list").text
    assert listed(client)[0] == ["a", "by-a-job"]


def test_a_container_that_is_not_there(client: TestClient) -> None:
    for answer in (
        client.get("/blob/ws/nowhere?restype=container&comp=list"),
        client.get("/blob/ws/nowhere?restype=container"),
        client.put("/blob/ws/nowhere/a", content=b"x", headers=BLOCK),
        client.put("/blob/nobody/workspaceblobstore/a", content=b"x", headers=BLOCK),
    ):
        assert code(answer) == (404, "ContainerNotFound")
    assert client.put("/blob/ws/nowhere?restype=container").status_code == 201
    assert code(client.put("/blob/ws/nowhere?restype=container"))[1] == "ContainerAlreadyExists"
    assert client.get("/blob/ws/workspaceblobstore?restype=container&comp=list").status_code == 200


def test_names_that_climb_out_are_refused(client: TestClient, house: House, tmp_path: Path) -> None:
    (house.files.root / "ws/store").mkdir(exist_ok=True)
    for name in ("%2e%2e/%2e%2e/x", "a/%2e%2e/%2e%2e/%2e%2e/x", "%2Fetc/passwd", "a%00b"):
        answer = client.put(f"/blob/ws/store/{name}", content=b"x", headers=BLOCK)
        assert code(answer) == (400, "InvalidInput"), name
        assert client.get(f"/blob/ws/store/{name}").status_code == 404
    for scope in ("%2e%2e", "%2e", "ws%2f%2e%2e"):
        answer = client.put(f"/blob/{scope}/store/x", content=b"x", headers=BLOCK)
        assert answer.status_code in (400, 404)
    assert not list(tmp_path.rglob("x"))


def test_a_name_cannot_be_a_blob_and_a_folder(client: TestClient) -> None:
    put(client, "a")
    answer = client.put("/blob/ws/store/a/b", content=b"x", headers=BLOCK)
    assert code(answer) == (409, "ResourceTypeMismatch")


# What is not here.


@pytest.mark.parametrize(
    ("method", "path", "headers", "named"),
    [
        ("PUT", "store/a", {"x-ms-blob-type": "AppendBlob"}, "AppendBlob"),
        ("PUT", "store/a", {"x-ms-blob-type": "PageBlob"}, "PageBlob"),
        ("PUT", "store/a?comp=lease", {}, "comp=lease"),
        ("PUT", "store/a?comp=tags", {}, "comp=tags"),
        ("PUT", "store/a?comp=tier", {}, "comp=tier"),
        ("PUT", "store/a?comp=appendblock", {}, "comp=appendblock"),
        ("GET", "store/a?snapshot=2020", {}, "snapshot"),
        ("PUT", "store/a", {"x-ms-lease-id": "1"}, "x-ms-lease-id"),
        ("PUT", "store/a", {"x-ms-tags": "a=b"}, "x-ms-tags"),
        ("GET", "store?restype=container&comp=list&delimiter=-", {}, "delimiter"),
        ("GET", "store?restype=container&comp=list&include=uncommittedblobs", {}, "uncommitted"),
        ("DELETE", "store?restype=container", {}, "restype=container"),
        ("GET", "?comp=list", {}, "comp=list"),
        ("PUT", "store/b", {"x-ms-copy-source": "https://example.org/blob/a"}, "this server"),
    ],
)
def test_what_is_not_here_is_refused_by_name(
    client: TestClient, method: str, path: str, headers: dict[str, str], named: str
) -> None:
    answer = client.request(method, f"/blob/ws/{path}", headers=headers)
    assert code(answer) == (501, "NotImplemented")
    assert named in answer.text


def test_a_copy_needs_leave_to_read_its_source(
    anyone: TestClient, client: TestClient, house: House
) -> None:
    put(client, "a", x_ms_meta_owner="me")
    source = "http://testserver/blob/ws/store/a"
    read = signature(house, path="a", covers="blob", verbs="r")
    write = signature(house, path="b", covers="blob", verbs="w")
    for address, status in ((source, 403), (f"{source}?{write}", 403), (f"{source}?{read}", 202)):
        headers = {"x-ms-copy-source": address}
        answer = anyone.put(f"/blob/ws/store/b?{write}", headers=headers)
        assert answer.status_code == status, answer.text
    got = client.get("/blob/ws/store/b")
    assert (got.text, got.headers["x-ms-meta-owner"]) == ("hello", "me")


# The official client.

SCRIPT = """
import io, os, sys
from azure.core.exceptions import (
    HttpResponseError, ResourceExistsError, ResourceModifiedError, ResourceNotFoundError,
)
from azure.core import MatchConditions
from azure.storage.blob import BlobBlock, ContainerClient, ContentSettings
url = sys.argv[1]
small = dict(max_single_put_size=64 << 10, max_block_size=32 << 10, retry_total=0)
ranged = dict(max_single_get_size=64 << 10, max_chunk_get_size=32 << 10)
container = ContainerClient.from_container_url(url, **small, **ranged)
data = os.urandom(300_001)
container.upload_blob("one/big", data, max_concurrency=4, metadata={"upload_status": "completed"})
assert container.download_blob("one/big", max_concurrency=4).readall() == data
assert container.download_blob("one/big", offset=5, length=7).readall() == data[5:12]
assert container.download_blob("one/big", offset=5, length=7, validate_content=True).readall()
container.upload_blob("one/small", b"x", validate_content=True)
container.upload_blob("one/empty", b"")
assert container.download_blob("one/empty").readall() == b""
try:
    container.upload_blob("one/small", b"y")
    raise SystemExit("a blob was written over without leave")
except ResourceExistsError as exc:
    assert exc.error_code == "BlobAlreadyExists"
container.upload_blob("one/small", b"z", overwrite=True)
blob = container.get_blob_client("one/big")
properties = blob.get_blob_properties()
assert properties.size == len(data) and properties.metadata == {"upload_status": "completed"}
blob.set_blob_metadata({"name": "n", "version": "1"})
try:
    blob.delete_blob(etag=properties.etag, match_condition=MatchConditions.IfNotModified)
    raise SystemExit("a changed blob was deleted")
except ResourceModifiedError:
    pass
blob.set_http_headers(ContentSettings(content_type="text/plain"))
assert blob.get_blob_properties().content_settings.content_type == "text/plain"
assert blob.get_blob_properties().metadata == {"name": "n", "version": "1"}
assert not container.get_blob_client("one/").exists()
assert not container.get_blob_client("two").exists()
names = [f"many/{i:03}" for i in range(25)]
for name in names:
    container.upload_blob(name, b"")
pages = list(container.list_blobs(name_starts_with="many/", results_per_page=10).by_page())
assert [item.name for page in pages for item in page] == names
listed = list(container.list_blobs(name_starts_with="one/", include=["metadata"]))
assert [item.name for item in listed] == ["one/big", "one/empty", "one/small"]
assert listed[0].metadata == {"name": "n", "version": "1"}, listed[0].metadata
assert [item.name for item in container.walk_blobs(delimiter="/")] == ["many/", "one/"]
blob = container.get_blob_client("blocks")
blob.stage_block("1", b"hello ")
blob.stage_block("2", b"world")
assert [len(part) for part in blob.get_block_list("all")] == [0, 2]
blob.commit_block_list([BlobBlock("1"), BlobBlock("2")])
assert blob.download_blob().readall() == b"hello world"
container.delete_blob("blocks")
try:
    container.download_blob("blocks")
    raise SystemExit("a deleted blob was found")
except ResourceNotFoundError as exc:
    assert exc.error_code == "BlobNotFound"
elsewhere = ContainerClient.from_container_url(url.replace("/store?", "/other?"), **small)
try:
    elsewhere.upload_blob("x", data)
    raise SystemExit("the signature was taken for another container")
except HttpResponseError as exc:
    assert exc.error_code == "AuthenticationFailed", exc
print("done")
"""


@pytest.fixture
def port(app: FastAPI, until: Callable[..., object]) -> Iterator[int]:
    """A real listener: the official client speaks to nothing else."""
    config = uvicorn.Config(app, port=0, log_level="warning")
    server, socket = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    until(lambda: server.started)
    yield socket.getsockname()[1]
    server.should_exit = True
    thread.join()
    socket.close()


def test_a_client_that_goes_away_leaves_nothing(
    house: House, port: int, until: Callable[..., object]
) -> None:
    """Speaks to a real listener: only that notices that somebody has gone."""
    staging = house.files.root / ".staging"
    head = f"PUT /blob/ws/store/a?{signature(house)} HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000"
    with connect(("127.0.0.1", port)) as client:
        client.sendall(f"{head}\r\n\r\n".encode() + b"x" * 2_000_000)
        until(lambda: staging.is_dir() and any(path.stat().st_size for path in staging.iterdir()))
        assert house.files.find("ws", "store", "a") is None
    until(lambda: not any(staging.iterdir()))
    assert house.files.find("ws", "store", "a") is None


@pytest.mark.skipif(not SDK.exists(), reason="no .venv-sdk: `make setup` makes it")
def test_the_official_client_does_all_that_it_can_do_here(house: House, port: int) -> None:
    """Starts a listener and a process: only Microsoft's own package says what it really sends."""
    url = f"http://127.0.0.1:{port}/blob/ws.blob.core.windows.net/store?{signature(house)}"
    done = subprocess.run([SDK, "-c", SCRIPT, url], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "done\n"
    assert not list((house.files.root / ".staging").iterdir())
