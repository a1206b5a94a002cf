"""An endpoint's page: how it is, what its deployments run, how it is called."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from finery.core import assets, endpoints, instances, rollback
from finery.core.assets import Asset
from finery.core.endpoints import Deployment, Endpoint, Serving
from finery.core.probing import Watch
from finery.core.scaling import Scaling
from finery.doors.http import Seen
from finery.doors.studio import calling

CHAT = "asset:model/azureml/Phi-3-mini-4k-instruct/13"


class Endpoints:
    """Endpoints of one page each, and the supervisor's part."""

    def __init__(self, platform, workspace, browser):
        self.store, self.home = platform.store, platform.settings.home
        self.workspace, self.browser = workspace, browser

    def put(self, name, **given):
        return endpoints.create(self.store, Endpoint(name=name, workspace=self.workspace, **given))

    def deploy(self, endpoint, name, *, share=None, **spec):
        made = endpoints.deploy(
            self.store,
            Deployment(
                endpoint=endpoint, name=name, workspace=self.workspace, spec=Serving(**spec)
            ),
        )
        if share is not None:
            kept = endpoints.get(self.store, endpoint)
            traffic = {**kept.traffic, name: share}
            endpoints.update(self.store, replace(kept, traffic=traffic))
        return made

    def up(self, made, *, instances=1):
        addresses = {made.process(one): "http://127.0.0.1:9" for one in range(instances)}
        return endpoints.move(self.store, made, "ready", addresses=addresses)

    def page(self, name):
        answer = self.browser.get(f"/studio/endpoints/{name}")
        assert answer.status_code == 200, answer.text
        return answer.text


@pytest.fixture
def house(platform, workspace, browser):
    return Endpoints(platform, workspace, browser)


def told(platform, monkeypatch, **changed):
    """Give the house other things to tell; it is frozen, and the door keeps it."""
    for name, value in changed.items():
        monkeypatch.setitem(vars(platform.house), name, value)


def test_an_endpoint_is_linked_from_the_overview_and_shows_how_its_deployments_are(
    house, platform, monkeypatch
):
    house.put("seen", description="For <everyone>")
    env = {"HF_TOKEN": "hf_secret", "GREETING": "moin"}
    blue = house.deploy(
        "seen", "blue", share=100, script="score.py", code="c", instances=2, env=env
    )
    blue = house.up(blue, instances=2)
    green = house.deploy("seen", "green", script="score.py", code="c")
    error = {"message": "init() failed: <no weights>", "target": "green"}
    endpoints.move(house.store, green, "failed", error=error)
    first, second = blue.process(0), blue.process(1)
    watches = {
        first: {"live": Watch(0, True), "ready": Watch(0, True)},
        second: {"live": Watch(0, True, opposed=2), "ready": Watch(0, False)},
    }
    numbers = Seen(requests=31, errors=4, running=1, waiting=2, mean=0.0176, half=0.0025, most=2.5)
    told(
        platform,
        monkeypatch,
        probes=lambda id: watches.get(id, {}),
        seen=lambda id: numbers if id == blue.id else None,
    )
    place = instances.place(house.home, blue, 0)
    (place / "log.txt").write_text("scored <1>\n")

    assert 'href="/studio/endpoints/seen"' in house.browser.get("/studio").text
    page = house.page("seen")
    for shown in (
        "It answers.",
        "http://127.0.0.1:1/endpoints/seen/score",
        "For &lt;everyone&gt;",
        "100 % to blue",
        "a scoring script, score.py",
        "<code>GREETING</code>, <code>HF_TOKEN</code>",
        "yes; it missed the last 2 of 30 allowed",
        "<td>no</td>",
        "31 since the server started, 4 of them failed; now 1 under way and 2 waiting",
        "17.6 ms on average; at most 2.5 ms for half of them; at most 2.5 s for 95 of 100",
        "scored &lt;1&gt;",
        "init() failed: &lt;no weights&gt;",
        "does not run",
        "none since the server started",
    ):
        assert shown in page, shown
    assert "hf_secret" not in page and "moin" not in page
    assert 'http-equiv="refresh"' not in page  # nothing of it will change by itself


def test_the_key_is_shown_to_whoever_asks_and_only_then(house):
    keys = house.put("keyed").keys
    house.deploy("keyed", "blue", script="score.py", code="c")
    page = house.page("keyed")
    assert "Bearer THE-KEY" in page and "Show the key" in page
    assert not any(key in page for key in keys.values())
    asked = house.browser.post("/studio/endpoints/keyed")
    assert asked.headers["cache-control"] == "no-store"
    assert f"Bearer {keys['primary']}" in asked.text and keys["secondary"] not in asked.text
    assert 'http-equiv="refresh"' not in asked.text  # it would be asked for again and again
    assert keys["primary"] not in house.page("keyed")


def test_one_that_takes_tokens_has_no_key_to_show(house):
    keys = house.put("tokens", auth="token").keys
    house.deploy("tokens", "blue", script="score.py", code="c")
    answer = house.browser.post("/studio/endpoints/tokens")
    assert "stands for a token" in answer.text and keys["primary"] not in answer.text


def test_whether_somebody_answers_is_said_in_a_sentence(house):
    house.put("silent")
    assert "Nothing answers here yet: it has no deployment." in house.page("silent")
    blue = house.deploy("silent", "blue", script="score.py", code="c")
    assert "no deployment gets its traffic" in house.page("silent")
    kept = endpoints.get(house.store, "silent")
    endpoints.update(house.store, replace(kept, traffic={"blue": 100}))
    page = house.page("silent")
    assert "It is coming up." in page and 'http-equiv="refresh"' in page
    endpoints.move(house.store, blue, "failed", error={"message": "no"})
    assert "Nobody is answered: blue does not answer." in house.page("silent")


def test_what_ran_before_is_said_to_go_on_answering_during_a_change(house):
    house.put("changed")
    old = house.up(house.deploy("changed", "blue", share=100, script="score.py", code="c"))
    house.deploy("changed", "blue", script="other.py", code="c")
    page = house.page("changed")
    assert "A change of it is on its way. What ran before goes on answering, 1 of it." in page
    assert "a scoring script, other.py" in page and "not ready yet" in page
    new = endpoints.get_deployment(house.store, "changed", "blue")
    assert new.addresses == old.addresses
    house.up(new)
    back = rollback.deployment(house.store, "changed", "blue")
    assert back.spec.script == "score.py"
    assert "a scoring script, score.py" in house.page("changed")


def test_a_chat_model_is_called_as_openai_s_clients_do(house):
    house.put("chatty")
    house.up(house.deploy("chatty", "blue", share=100, model=CHAT))
    page = house.page("chatty")
    assert "Phi-3-mini-4k-instruct, version 13 (catalog)" in page
    assert "a chat model, without code" in page
    assert "the packages that Finery itself runs with; ready" in page
    assert "curl http://127.0.0.1:1/endpoints/chatty/v1/chat/completions" in page
    assert "OpenAI(base_url=&#34;http://127.0.0.1:1/endpoints/chatty/v1&#34;" in page


def test_an_mlflow_model_is_called_with_the_columns_that_it_names(house, platform, workspace):
    place = platform.files.path(workspace, "workspaceblobstore", "models/who")
    place.mkdir(parents=True)
    columns = [
        {"name": "it's <a name>", "type": "string"},
        {"name": "age", "type": "long"},
        {"name": "paid", "type": "boolean"},
    ]
    (place / "MLmodel").write_text(json.dumps({"signature": {"inputs": json.dumps(columns)}}))
    asset = Asset(
        scope=workspace,
        kind="model",
        name="who",
        type="mlflow_model",
        location="file:workspaceblobstore/models/who",
    )
    model = assets.create(platform.store, asset).ref
    house.put("who")
    house.up(house.deploy("who", "blue", share=100, model=model))
    page = house.page("who")
    assert "an MLflow model, without code" in page
    assert "Finery&#39;s own Python, which has all that the model asks for; ready" in page
    said = "[&#34;it&#39;&#34;&#39;&#34;&#39;s &lt;a name&gt;&#34;, &#34;age&#34;, &#34;paid&#34;]"
    assert said in page, "quoted for the shell, and escaped for the page"
    assert "[[&#34;text&#34;, 1, true]]" in page and "1, True]]" in page
    for odd in ("[", "signature: 3", "signature: {inputs: '[3]'}", "x: &a [*a]", "\0"):
        (place / "MLmodel").write_text(odd)
        assert "[[1.0, 2.0]]" in house.page("who"), odd


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        (None, "the model&#39;s own: the packages that the model asks for; is being made ready"),
        (["not honoured: x"], "Finery&#39;s own Python, which lacks some of what the model asks"),
    ],
)
def test_where_a_model_runs_that_wants_more_than_we_have(
    house, platform, workspace, monkeypatch, lacking, said
):
    name = "more" if lacking else "other"
    platform.files.path(workspace, "workspaceblobstore", f"models/{name}").mkdir(parents=True)
    place = f"file:workspaceblobstore/models/{name}"
    made = Asset(scope=workspace, kind="model", name=name, type="mlflow_model", location=place)
    told(platform, monkeypatch, lacking=lambda model: lacking)
    house.put(name)
    house.deploy(name, "blue", model=assets.create(platform.store, made).ref)
    assert said in house.page(name)


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"requests": 19, "mean": 0.104, "half": 0.025}, "104 ms on average</dd>"),
        ({"requests": 20, "mean": 0.104, "half": 0.25}, "104 ms on average</dd>"),
        ({"requests": 20, "mean": 0.104, "half": 0.025}, "; at most 25 ms for half of them</dd>"),
    ],
)
def test_of_answer_times_only_that_is_said_which_is_known(house, platform, monkeypatch, seen, said):
    name = f"paced-{seen['requests']}-{seen['half']}"
    house.put(name)
    house.deploy(name, "blue", share=100, script="score.py", code="c")
    known = Seen(**{"errors": 0, "running": 0, "waiting": 0, "most": None, **seen})
    told(platform, monkeypatch, seen=lambda id: known)
    assert said in house.page(name)


class Describing(BaseHTTPRequestHandler):
    """An instance that says what it reads."""

    said = b""
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(f"{self.path} {self.headers['x-finery-secret']}")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.said)

    def log_message(self, *given):
        pass


@pytest.fixture
def described():
    with ThreadingHTTPServer(("127.0.0.1", 0), Describing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_script_is_called_with_the_example_that_it_gives_itself(house, platform, described):
    house.put("scripted")
    made = house.deploy("scripted", "blue", share=100, script="score.py", code="c")
    assert "{&#34;data&#34;: &#34;…&#34;}" in house.page("scripted")
    address = f"http://127.0.0.1:{described.server_port}"
    endpoints.move(house.store, made, "ready", addresses={made.process(0): address})

    def says(text):
        Describing.said = text
        calling._described.cache_clear()
        return house.page("scripted")

    def gives(example):
        given = {"definitions": {"ServiceInput": {"example": example}}}
        return says(json.dumps(given).encode())

    page = gives({"rows": [["<b>", 2]]})
    assert house.page("scripted") == page and len(Describing.asked) == 1
    assert "-d &#39;{&#34;rows&#34;: [[&#34;&lt;b&gt;&#34;, 2]]}&#39;" in page
    assert "The scoring script itself gives this example" in page
    secret = platform.house.keys.derived("serving", made.process(0))
    assert Describing.asked[-1] == f"/swagger.json {secret}"
    for nothing in ({}, None, "x" * 3000):
        page = gives(nothing)
        assert "{&#34;data&#34;: &#34;…&#34;}" in page and "is what <code>run()</code>" in page
    for odd in (b"", b"[", b"[]", b'{"definitions": 3}', b"[" * 90_000, b"1" * 200_000):
        assert "{&#34;data&#34;: &#34;…&#34;}" in says(odd), odd[:20]


def test_a_model_that_is_not_there_is_said_to_be_gone(house):
    house.put("gone")
    house.deploy("gone", "blue", model="asset:model/nowhere/gone/1")
    assert "a model that is not there" in house.page("gone")


def test_one_that_nobody_calls_may_have_no_instance(house, platform, workspace):
    house.put("idle")
    spec = {"kind": "conda", "conda": "dependencies: []"}
    tools = Asset(scope=workspace, kind="environment", name="idle", type="user", spec=spec)
    runs = {
        "script": "s.py",
        "code": "c",
        "scaling": Scaling(least=0, most=2),
        "environment": assets.create(platform.store, tools).ref,
    }
    made = house.deploy("idle", "blue", share=100, **runs)
    assert "the packages of a conda file; is being made ready" in house.page("idle")
    made = house.up(made)
    endpoints.scale(house.store, made, 0, reason="nobody calls")
    made = endpoints.get_deployment(house.store, "idle", "blue")
    endpoints.place(house.store, made, addresses={})
    page = house.page("idle")
    assert "No instance runs while nobody calls" in page and "It answers." in page
    assert "the packages of a conda file; ready" in page


def test_the_server_knows_what_probes_said_and_what_was_asked(house, platform):
    """The wiring of the whole, without a fake in between."""
    house.put("wired")
    made = house.up(house.deploy("wired", "blue", share=100, script="s.py", code="c"))
    platform.supervisor.upkeep.watches[made.process(0), "live"] = Watch(0, True, opposed=1)
    page = house.page("wired")
    assert "yes; it missed the last 1 of 30 allowed" in page
    assert "none since the server started" in page
    platform.figures._way_in._line(made.id).meter.answered(503, 0.1)
    assert "1 since the server started, 1 of them failed" in house.page("wired")
