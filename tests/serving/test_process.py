"""Whole serving processes, as an engine starts them.

A process, because the address file, signals, real sockets (streams, callers who hang
up) and what a script finds in its environment exist nowhere else.  One chat process
serves most tests here: loading torch is what costs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from finery.serving import check

from .conftest import Serve, Served

Until = Callable[..., Any]


@pytest.fixture(scope="module")
def chat(serve: Serve, phi3: Path) -> Iterator[Served]:
    document = {"kind": "chat", "model": str(phi3), "model_name": "tuned", "max_batch": 4}
    document |= {"request_timeout_ms": 60_000, "max_queue_wait_ms": 60_000}
    with serve(document, FINERY_SERVING_SECRET="s3cret", FINERY_DEPLOYMENT="blue") as served:
        yield served


def asked(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **fields}


def streamed(served: Served, body: dict[str, Any]) -> list[Any]:
    with served.client.stream(
        "POST", "/v1/chat/completions", json=body | {"stream": True}
    ) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def gauge(served: Served, name: str) -> float:
    lines = served.client.get("/metrics").text.splitlines()
    (line,) = [line for line in lines if line.startswith(f"finery_{name} ")]
    return float(line.split()[1])


def test_it_checked_itself_before_it_was_ready(chat: Served) -> None:
    events = [event["event"] for event in chat.events()][:3]
    assert events[0] == "model loaded"
    assert events[1].startswith("checked 3 prompts") and events[1].endswith("identical")
    assert events[2] == "ready"


def test_callers_at_once_each_get_what_generate_gives_alone(
    chat: Served, model: Any, tokenizer: Any
) -> None:
    texts = ["hello", "where is the capital of France? " * 3, "x", "Ünïcode €"] * 3
    lengths = [5, 40, 17, 60, 1, 30] * 2

    def ask(text: str, length: int) -> Any:
        return chat.client.post("/v1/chat/completions", json=asked(text, max_tokens=length)).json()

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, texts, lengths))
    for text, length, answer in zip(texts, lengths, answers, strict=True):
        messages = [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        tokens = check.reference(model, prompt, length)
        said = answer["choices"][0]
        assert said["message"]["content"] == tokenizer.decode(tokens, skip_special_tokens=True)
        assert said["finish_reason"] == ("stop" if tokens[-1] in (5, 2) else "length")
        assert answer["usage"] == {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(tokens),
            "total_tokens": len(prompt) + len(tokens),
        }
        assert answer["model"] == "tuned"
    assert gauge(chat, "engine_row_steps_total") > gauge(chat, "engine_steps_total")


def test_a_stream_says_the_same_in_pieces(chat: Served) -> None:
    body = asked("hello", max_tokens=30)
    whole = chat.client.post("/v1/chat/completions", json=body).json()
    chunks = streamed(chat, body | {"stream_options": {"include_usage": True}})
    *pieces, usage = chunks
    assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in pieces)
    assert text == whole["choices"][0]["message"]["content"]
    assert pieces[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert len(pieces) > 10, "they came one by one"
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_score_and_the_other_address_give_the_same_text(chat: Served) -> None:
    body = asked("hello", max_tokens=12)
    said = chat.client.post("/chat/completions", json=body).json()
    scored = chat.client.post(
        "/score",
        json={
            "input_data": {
                "input_string": [body["messages"]],
                "parameters": {"temperature": 0, "max_new_tokens": 12},
            },
            "params": {},
        },
    )
    assert scored.json() == {"output": said["choices"][0]["message"]["content"]}
    assert scored.headers["azureml-model-deployment"] == "blue"


def test_errors_speak_the_language_of_their_address(chat: Served) -> None:
    openai = chat.client.post("/v1/chat/completions", json={"messages": [], "n": 2})
    assert (openai.status_code, openai.json()["error"]["param"]) == (400, "n")
    azure = chat.client.post("/score", content=b"{")
    assert azure.status_code == 400
    assert openai.headers["x-finery-refused"] == azure.headers["x-finery-refused"] == "True"
    assert azure.json()["error"]["code"] == "BadRequest"
    assert "not JSON" in azure.json()["error"]["message"]
    models = chat.client.get("/v1/models").json()["data"]
    assert [one["id"] for one in models] == ["tuned"]
    without = {"x-finery-secret": "wrong"}
    refused = chat.client.post("/v1/chat/completions", json={}, headers=without)
    assert refused.json()["error"]["type"] == "authentication_error"


def test_an_answer_nobody_waits_for_is_not_finished(chat: Served, until: Until) -> None:
    body = asked("hello", max_tokens=240, stream=True)

    def generated() -> float:
        """Leave after the first words, and return how many tokens were made all the same."""
        before = gauge(chat, 'tokens_total{kind="generated"}')
        with chat.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            next(answer.iter_lines())
        until(lambda: gauge(chat, "answers_running") == 0)
        return gauge(chat, 'tokens_total{kind="generated"}') - before

    until(lambda: generated() < 200)  # again, should we have been too slow to leave in time


SCRIPT = """
import os, time, json
def init():
    print("init was called")
def run(raw):
    data = json.loads(raw)
    if "wait" in data:
        open(data["wait"] + ".began", "w").close()
        while not os.path.exists(data["wait"]): time.sleep(0.005)
    return {"secret": os.environ.get("FINERY_SERVING_SECRET"), "pid": os.getpid()}
"""


def script_spec(folder: Path, source: str = SCRIPT) -> dict[str, Any]:
    (folder / "code").mkdir()
    (folder / "code" / "score.py").write_text(source)
    return {"kind": "script", "code": str(folder / "code"), "script": "score.py"}


def test_a_script_is_served_and_does_not_learn_the_secret(serve: Serve, tmp_path: Path) -> None:
    with serve(script_spec(tmp_path), FINERY_SERVING_SECRET="s3cret") as served:
        answer = served.client.post("/score", json={})
        assert answer.json() == {"secret": None, "pid": served.process.pid}
        assert "init was called" in served.log.read_text()
        assert "s3cret" not in served.log.read_text()


def test_who_is_asked_to_end_finishes_what_runs(serve: Serve, tmp_path: Path, until: Until) -> None:
    go = tmp_path / "go"
    with serve(script_spec(tmp_path) | {"request_timeout_ms": 60_000}) as served:
        answers: list[Any] = []

        def call() -> None:
            answers.append(served.client.post("/score", json={"wait": str(go)}))

        thread = threading.Thread(target=call)
        thread.start()
        until((tmp_path / "go.began").exists)
        served.process.send_signal(signal.SIGTERM)
        go.touch()
        thread.join()
        assert answers[0].status_code == 200
        assert served.process.wait(60) == 0
        assert served.events()[-1]["event"] == "ended"
        assert [one["status"] for one in served.events() if one["event"] == "request"] == [200]


@pytest.mark.parametrize(
    ("document", "status", "message"),
    [
        ({"kind": "script", "colour": 1}, 2, "colour: unknown field"),
        ({"kind": "script", "code": ".", "script": "none.py"}, 1, "there is no file 'none.py'"),
    ],
)
def test_what_cannot_be_served_ends_at_once_with_one_line_that_says_why(
    tmp_path: Path, document: dict[str, Any], status: int, message: str
) -> None:
    (tmp_path / "serve.json").write_text(json.dumps(document))
    done = subprocess.run(
        [sys.executable, "-m", "finery.serving.host", "serve.json"],
        cwd=tmp_path,
        env={"FINERY_PROCESS_DIR": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (status, "")
    assert message in json.loads(done.stdout)["error"]
    assert not (tmp_path / "address").exists()


def test_a_script_needs_none_of_the_heavy_libraries(tmp_path: Path) -> None:
    spec = script_spec(tmp_path, "def init(): pass\ndef run(raw): return 1\n")
    (tmp_path / "serve.json").write_text(json.dumps(spec))
    program = (
        "import sys\n"
        "from finery.serving import host, spec\n"
        "host._load(spec.read('serve.json'))\n"
        "print({'torch', 'transformers', 'mlflow', 'pandas', 'numpy'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "set()\n", done.stderr


ALONE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {*sys.stdlib_module_names, *ALLOWED, "finery"} and "azureml" not in top:
            raise ModuleNotFoundError(f"{name} is not in this environment", name=name)

ALLOWED = sys.argv[1].split(",")
sys.meta_path.insert(0, Blocked())
from finery.serving import host
sys.exit(host.main(sys.argv[2:]))
"""
RAW = """
from azureml_inference_server_http.api.aml_request import AMLRequest, rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse
from azureml.contrib.services import aml_request, aml_response
assert aml_request.AMLRequest is AMLRequest and aml_response.AMLResponse is AMLResponse
def init(): pass
@rawhttp
def run(request): return AMLResponse(request.get_data(), 200, {"X-Kind": "raw"})
"""


@pytest.mark.parametrize(
    ("allowed", "source"),
    [
        ("httptools", "def init(): pass\ndef run(raw): return raw\n"),
        ("httptools,uvloop", "def init(): pass\ndef run(raw): return raw\n"),
        ("httptools,uvloop,werkzeug,markupsafe", RAW),
    ],
)
def test_a_user_s_environment_needs_next_to_nothing(
    tmp_path: Path, until: Until, allowed: str, source: str
) -> None:
    spec = script_spec(tmp_path, source)
    (tmp_path / "serve.json").write_text(json.dumps(spec))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", ALONE, allowed, "serve.json"],
            cwd=tmp_path,
            env=os.environ | {"FINERY_PROCESS_DIR": str(tmp_path)},
            stdout=log,
            stderr=log,
        )
    address = tmp_path / "address"
    try:
        until(lambda: address.exists() or process.poll() is not None)
        assert address.exists(), (tmp_path / "log").read_text()
        answer = httpx.post(f"{address.read_text()}/score", content=b"said", trust_env=False)
        assert (answer.status_code, answer.content.strip(b'"')) == (200, b"said")
    finally:
        process.terminate()
        status = process.wait(60)
    assert status == 0


KEPT = """
import signal, sqlite3, threading
def init():
    global db
    db = sqlite3.connect(":memory:")
def run(raw):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    return [db.execute("select 1").fetchone()[0], threading.current_thread().name]
"""


def test_init_and_run_share_the_main_thread(serve: Serve, tmp_path: Path) -> None:
    with serve(script_spec(tmp_path, KEPT)) as served:
        assert served.client.post("/score").json() == [1, "MainThread"]


STUCK = """
import os, threading
def init(): pass
def run(raw):
    open(raw, "w").close()
    threading.Event().wait()
"""


def test_a_run_that_never_returns_is_answered_and_does_not_keep_the_process(
    serve: Serve, tmp_path: Path
) -> None:
    spec = script_spec(tmp_path, STUCK) | {"request_timeout_ms": 300, "max_queue_wait_ms": 100}
    with serve(spec) as served:
        late = served.client.post("/score", content=str(tmp_path / "began").encode())
        assert (late.status_code, late.json()["error"]["code"]) == (408, "RequestTimeout")
        assert served.client.get("/health").status_code == 200
        assert served.client.post("/score", content=b"/nowhere").status_code == 429
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0
        assert served.events()[-1]["warning"] == "run() had not returned"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import no_such_package\n", "cannot be imported: ModuleNotFoundError: No module named"),
        ("def init(): open('/none')\ndef run(raw): pass\n", "FileNotFoundError"),
        ("def init(): raise SystemExit(7)\ndef run(raw): pass\n", "SystemExit: 7"),
        ("def init(:\n", "cannot be imported: SyntaxError"),
    ],
)
def test_a_script_that_cannot_start_leaves_its_traceback_and_a_last_line(
    tmp_path: Path, source: str, why: str
) -> None:
    (tmp_path / "serve.json").write_text(json.dumps(script_spec(tmp_path, source)))
    done = subprocess.run(
        [sys.executable, "-m", "finery.serving.host", "serve.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["event"] == "cannot be served" and why in last["error"]
    assert why.rpartition(": ")[2].split()[0] in done.stderr


def test_what_azure_s_server_reads_and_ours_does_not_is_named(serve: Serve, tmp_path: Path) -> None:
    spec = script_spec(tmp_path, "def init(): pass\ndef run(raw): pass\n")
    with serve(spec, WORKER_COUNT="3", AML_APP_INSIGHTS_ENABLED="true") as served:
        (said,) = [one for one in served.events() if one["event"] == "not honoured"]
        assert said["names"] == ["AML_APP_INSIGHTS_ENABLED", "WORKER_COUNT"]
