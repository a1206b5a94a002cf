"""Whatever comes in by whatever door: an answer in words, no 500, and nothing outside the home.

Real requests of the SDK (`sent_by_the_sdk.json`) are changed in every way that
a seed brings up; every route is asked with names that want to be paths.  No
process is started: what a job makes of hostile values is in `core/` and `sdk/`.
"""

from __future__ import annotations

import json
import os
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from finery import app
from finery.config import Settings
from finery.doors.mlflow.app import Mlflow
from finery.doors.scoring import Scoring

SEED = int(os.environ.get("SEED", 20))
MUTANTS = int(os.environ.get("MUTANTS", 1500))
HERE = (
    "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/finery"
    "/providers/Microsoft.MachineLearningServices/workspaces/main"
)
REQUESTS = json.loads((Path(__file__).parent / "sent_by_the_sdk.json").read_text())
PYTHON = re.compile(r"Traceback|File .{1,200}, line \d|[a-z]Error: |object has no attribute")
NASTY = [
    *(None, True, False, 0, -1, 1.5, 1e300, 2**63, 2**200, "", " ", "x", "\0", "a\0b", "\n\r"),
    *("..", "../../../../etc/passwd", "/etc/passwd", "a" * 5000, "é" * 300, "\U0001f4a5", "${{"),
    *("${{parent.jobs.x.outputs.y}}", "${{parent.inputs.}}", "$[[", "'; touch x; '", "$(id)"),
    *("azureml:", "azureml://", "azureml:x@y@z", "azureml://jobs/../outputs/x", "https://", "::"),
    *("azureml://datastores/workspaceblobstore/paths/../../x", "http://[", "//", "1e9", "NaN"),
    *(
        "P",
        "PT",
        "PT999999999999S",
        "P1Y",
        "-1",
        "9" * 400,
        "azureml:a:1:2",
        "azureml://registries/",
    ),
    *(
        [],
        {},
        [[]],
        [None],
        [1, "a"],
        {"": None},
        {"a": {"b": {"c": []}}},
        {"type": []},
        ["a"] * 999,
    ),
    {str(number): number for number in range(10_000)},
]
NAMES = [
    *("..", ".", "../x", "..%2f..%2fx", "%00", "a\0b", "a/b", "a\\b", " ", "x" * 300, "é", "-rf"),
    *("\U0001f4a5", "$(id)", "${{x}}", "'", '"', "<script>", "a:b", "a@b", "~", "*", "%", "\n"),
]


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    home = tmp_path_factory.mktemp("outer") / "home"
    home.mkdir()
    made = app.create(
        Settings(home=home, models="tiny"),
        http="http://127.0.0.1:1",
        https="https://127.0.0.1:2",
    )
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def no_mlflow():
    """A job's creation begins to load MLflow, which takes seconds and is not asked here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mlflow, "warm", lambda self: None)
        yield


@pytest.fixture(scope="module")
def home(platform):
    return platform.settings.home


@pytest.fixture(scope="module")
def workspace(platform):
    from finery.core import workspaces

    return workspaces.get(platform.store, *platform.house.default_workspace).id


@pytest.fixture(scope="module")
def client(platform):
    shown = {"Authorization": f"Bearer {platform.keys.admin}", "x-ms-version": "2024-05-04"}
    with TestClient(
        platform.asgi, headers=shown, follow_redirects=False, raise_server_exceptions=False
    ) as made:
        yield made


@pytest.fixture(scope="module")
def requests(platform, client, workspace):
    """What the SDK sent, with this server's addresses; all of it has been taken once."""
    blobs = platform.files.path(workspace, "workspaceblobstore")
    for path in ("LocalUpload/up0/rows.jsonl", "LocalUpload/up2/m/w.txt"):
        (blobs / path).parent.mkdir(parents=True)
        (blobs / path).write_text('{"messages": []}\n')
    for path in ("uploads/codes/up3/code/main.py", "uploads/codes/up1/sc/score.py"):
        (blobs / path).parent.mkdir(parents=True)
        (blobs / path).write_text("def init():\n    pass\n")
    text = json.dumps(REQUESTS).replace("{here}", HERE).replace("{workspace}", workspace)
    found = json.loads(text.replace("{host}", "127.0.0.1:2"))
    for sent in found:
        answer = client.request(sent["method"], sent["path"], json=sent["body"])
        # A job's output is not there: no job runs here.
        taken = 409 if "batchGetResolvedUris" in sent["path"] else 201
        assert answer.status_code <= taken, (sent["path"], answer.text)
    return found


def fault(answer) -> str:
    """Say what is wrong with an answer: a 5xx that is no refusal by name, or words of Python's."""
    if answer.status_code >= 500 and answer.status_code != 501:
        return f"{answer.status_code} {answer.text[:300]}"
    if PYTHON.search(answer.text):
        return f"{answer.status_code} speaks Python: {answer.text[:300]}"
    return ""


def places(value, path=()):
    """Every place in a JSON document, as the path to it."""
    yield path
    if isinstance(value, dict):
        for name, item in value.items():
            yield from places(item, (*path, name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from places(item, (*path, number))


def changed(value, path, new, *, how):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and how == "drop":
        del copy[path[0]]
    elif len(path) == 1 and how == "rename" and isinstance(copy, dict):
        copy[f"{path[0]}x"] = copy.pop(path[0])
    else:
        copy[path[0]] = changed(copy[path[0]], path[1:], new, how=how)
    return copy


def test_what_the_sdk_sends_changed_in_any_way_is_answered_in_words(client, requests):
    chance = random.Random(SEED)
    found: dict[str, object] = {}
    for _ in range(MUTANTS):
        sent = chance.choice(requests)
        path = chance.choice(list(places(sent["body"])))
        how = chance.choice(("replace", "replace", "replace", "drop", "rename"))
        new = chance.choice(NASTY)
        body = changed(sent["body"], path, new, how=how)
        url = sent["path"]
        if chance.random() < 0.5:  # a new name: the creation, not the comparison with what is there
            url = re.sub(
                r"/(mm|ee|cc|rows|capjob|cappipe1|code0)\b",
                rf"/\g<1>n{chance.getrandbits(40)}",
                url,
            )
        data = json.dumps(body, allow_nan=True).encode()
        kind = {"content-type": "application/json"}
        answer = client.request(sent["method"], url, content=data, headers=kind)
        wrong = fault(answer)
        if not wrong and sent["method"] == "PUT" and answer.status_code < 300:
            back = client.get(url)
            wrong = "" if back.status_code == 200 else f"taken, then {fault(back)} {back.text}"
        if wrong:
            found.setdefault(wrong.split(" ")[0] + sent["path"], (path, how, repr(new)[:60], wrong))
    assert found == {}


def snapshot(home):
    """What lies beside the home and in its first two levels: what no request may add to."""
    beside = sorted(path.name for path in home.parent.iterdir())
    return beside, sorted(path.name for path in home.iterdir() if path.name != "mlflow")


def every_address(platform, chance):
    found = app.routers(platform.house, Scoring(platform.house))
    for route in (route for router in found for route in router.routes):
        for method in sorted(route.methods - {"HEAD", "OPTIONS"}):
            words = re.findall(r"{([^}]*)}", route.path)
            known = {"subscription": HERE.split("/")[2], "group": "finery", "workspace": "main"}
            for spoilt in words or [""]:
                if spoilt in known and "workspace" not in spoilt:
                    continue
                path = route.path
                for word in words:
                    plain = known.get(word, "plural" in word and "data" or "x")
                    hostile = quote(chance.choice(NAMES), safe=chance.choice(("", "/.%")))
                    path = path.replace(f"{{{word}}}", hostile if word == spoilt else plain, 1)
                yield method, path
    for method in ("GET", "POST"):  # the way to models has no routes
        for name in NAMES:
            yield method, f"/endpoints/{quote(name, safe=chance.choice(('', '/.%')))}/score"


def test_no_name_in_any_address_is_a_way_out_or_a_surprise(platform, client, requests, home):
    before, chance, found = snapshot(home), random.Random(SEED), []
    for _ in range(3):
        for method, path in every_address(platform, chance):
            body = {"json": {"properties": {}}} if method in ("PUT", "POST", "PATCH") else {}
            answer = client.request(method, path, **body)
            if wrong := fault(answer):
                found.append((method, path[:150], wrong))
    assert found == []
    assert snapshot(home) == before


@pytest.mark.parametrize(
    "name",
    [
        "../../../finery.db",
        "..%2f..%2f..%2ffinery.db",
        "a/../../../../admin.key",
        "%2e%2e/%2e%2e/%2e%2e/admin.key",
        "/etc/passwd",
        "//etc/passwd",
        "a%00b",
        "a%5c..%5c..%5cadmin.key",
        "x" * 256,
        "/".join("d" * 200 for _ in range(6)),
        "%ed%a0%80",
        "%ff%fe",
        ".",
        "a//b",
        "a/",
    ],
)
def test_a_blob_has_a_name_within_its_container_or_none(client, workspace, home, name):
    base = f"/blob/{workspace}/workspaceblobstore/{name}"
    before = snapshot(home)
    kind = {"x-ms-blob-type": "BlockBlob"}
    for method, query, body in (
        ("PUT", "", b"x"),
        ("GET", "", None),
        ("HEAD", "", None),
        ("PUT", "?comp=block&blockid=AAAA", b"x"),
        ("PUT", "?comp=metadata", None),
        ("DELETE", "", None),
    ):
        answer = client.request(method, base + query, content=body, headers=kind)
        assert not fault(answer), (method, fault(answer))
        assert answer.status_code >= 400 or "admin" not in answer.text
    assert snapshot(home) == before
    assert (home / "admin.key").exists() and (home / "finery.db").exists()


def test_a_link_that_a_job_leaves_leads_nobody_out(client, platform, workspace, home, requests):
    outputs = platform.files.path(workspace, "workspaceartifactstore", "ExperimentRun/dcid.j")
    outputs.mkdir(parents=True)
    (outputs / "key").symlink_to(home / "admin.key")
    (outputs / "home").symlink_to(home)
    (outputs / "circle").symlink_to(outputs / "circle")
    base = f"/blob/{workspace}/workspaceartifactstore"
    for path in ("key", "home/admin.key", "home/finery.db", "circle"):
        answer = client.get(f"{base}/ExperimentRun/dcid.j/{path}")
        assert answer.status_code in (400, 404), (path, answer.text)
        assert platform.keys.admin not in answer.text
        assert client.put(
            f"{base}/ExperimentRun/dcid.j/home/new",
            content=b"x",
            headers={"x-ms-blob-type": "BlockBlob"},
        ).status_code in (400, 404, 409)
    listed = client.get(f"{base}?restype=container&comp=list&prefix=ExperimentRun/dcid.j/")
    assert listed.status_code == 200
    assert "admin.key" not in listed.text and "finery.db" not in listed.text
    assert not (home / "new").exists()
    body = {
        "properties": {
            "dataType": "uri_file",
            "dataUri": "azureml://datastores/workspaceartifactstore/paths/ExperimentRun/dcid.j/key",
        }
    }
    answer = client.put(f"{HERE}/data/stolen/versions/1", json=body)
    assert answer.status_code == 400, answer.text


def test_a_body_without_end_is_refused_before_it_is_held(client):
    def endless():
        for _ in range(100):
            yield b" " * 2**20

    kind = {"content-type": "application/json"}
    for method, path in (("PUT", f"{HERE}/data/x/versions/1"), ("PATCH", f"{HERE}/jobs/x")):
        answer = client.request(method, path, content=endless(), headers=kind)
        assert answer.status_code == 413, answer.text
        assert answer.json()["error"]["code"] == "RequestEntityTooLarge"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"properties":' * 50_000,
        '{"a": NaN}',
        '{"properties": {"description": "\\ud800"}}',
        '{"properties": {"description": 1e999}}',
        "\xff\xfe",
        "",
        "null",
        "[]",
        '"x"',
        "{",
    ],
)
def test_what_is_no_json_object_is_refused_in_words(client, text):
    for path in ("data/x/versions/1", "jobs/x1", "computes/x", "onlineEndpoints/xyz"):
        kind = {"content-type": "application/json"}
        answer = client.put(f"{HERE}/{path}", content=text.encode("latin-1"), headers=kind)
        assert answer.status_code in (400, 422), (path, answer.status_code, answer.text[:200])
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "create"),
    [
        (
            "data/same/versions/1",
            {
                "dataType": "uri_file",
                "dataUri": "azureml://datastores/workspaceblobstore/paths/LocalUpload/up0/rows.jsonl",
            },
        ),
        (
            "computes/same",
            {
                "computeType": "AmlCompute",
                "properties": {"vmSize": "Standard_DS3_v2", "scaleSettings": {"maxNodeCount": 1}},
            },
        ),
        ("onlineEndpoints/same1", {"authMode": "Key"}),
    ],
)
def test_the_same_name_twice_at_once_is_one_thing(client, requests, path, create):
    def put(_):
        return client.put(f"{HERE}/{path}", json={"properties": create})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(put, range(16)))
    assert [answer.text for answer in answers if answer.status_code >= 300] == []
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert client.get(f"{HERE}/{path}").status_code == 200


def test_a_job_is_made_once_however_often_it_is_sent(client, requests):
    body = next(sent["body"] for sent in requests if sent["path"].endswith("/jobs/capjob"))

    def put(_):
        return client.put(f"{HERE}/jobs/oncejob", json=body).status_code

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(put, range(16)))
    assert set(answers) <= {200, 201, 409} and answers.count(201) == 1


def test_no_page_is_asked_for_in_a_way_that_cannot_be_answered(client, requests):
    kinds = ("jobs", "models", "models/mm/versions", "computes", "onlineEndpoints", "codes")
    for kind in kinds:
        for name in ("$skip", "$skipToken", "$top", "listViewType", "$orderBy"):
            for value in ("²", "٣", "9" * 5000, "9" * 30, "-1", "1.5", "'", "\0", "../..", "[]"):
                answer = client.get(f"{HERE}/{kind}", params={name: value})
                assert not fault(answer), (kind, name, value[:20], fault(answer))
