from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finery.serving import contract, script
from finery.serving.contract import Told
from finery.serving.spec import BadSpec, Spec
from finery.serving.wire import Answer, Exchange


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A script is loaded once in a process's life; here the process goes on."""
    here, path, modules = os.getcwd(), list(sys.path), set(sys.modules)
    for name in ("AZUREML_MODEL_DIR", "AZUREML_ENTRY_SCRIPT", "AML_APP_ROOT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    os.chdir(here)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(folder: Path, source: str, *, name: str = "score.py") -> Spec:
    file = folder / "code" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    return Spec(kind="script", code=str(folder / "code"), script=name)


class Nowhere:
    """A line that nothing is sent over."""

    paused = False

    def head(self, status: int, headers: object, *, length: int | None) -> None:
        raise AssertionError("a script answers by returning")

    def data(self, part: bytes) -> None:
        raise AssertionError("a script answers by returning")

    def end(self) -> None:
        raise AssertionError("a script answers by returning")

    def abort(self) -> None:
        raise AssertionError("a script answers by returning")


def asked(
    body: bytes = b"", *, method: str = "POST", query: bytes = b"", **fields: str
) -> Exchange:
    headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    exchange = Exchange(method, "/score", query, headers, Nowhere())
    exchange.body = body
    return exchange


def scored(spec: Spec, body: bytes = b"") -> bytes:
    answer: Answer = script.load(spec)(asked(body))
    assert answer.status == 200
    return answer.body


def test_init_comes_before_run_and_a_result_is_json(tmp_path: Path) -> None:
    spec = write(
        tmp_path,
        "import json\n"
        "def init():\n    global model\n    model = 3\n"
        "def run(raw):\n    return {'result': model * json.loads(raw)['x'], 'said': 'é'}\n",
    )
    assert scored(spec, b'{"x": 2}') == b'{"result": 6, "said": "\\u00e9"}'


@pytest.mark.parametrize(
    ("result", "body"), [("'text'", b'"text"'), ("[1, 2]", b"[1, 2]"), ("None", b"{}")]
)
def test_whatever_comes_back_is_encoded_once(tmp_path: Path, result: str, body: bytes) -> None:
    spec = write(tmp_path, f"def init(): pass\ndef run(raw): return {result}\n")
    assert scored(spec) == body


def test_a_folder_model_is_under_its_name_and_a_file_model_under_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store" / "outputs"
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_text("w")
    (tmp_path / "store" / "other").write_text("not the model")
    source = (
        "import os, pathlib\n"
        "def init(): pass\n"
        "def run(raw):\n"
        "    top = os.environ['AZUREML_MODEL_DIR']\n"
        "    return [sorted(os.listdir(top)), pathlib.Path(top, raw).read_text()]\n"
    )
    for number, (model, wanted) in enumerate(
        [(folder, "outputs/weights.bin"), (folder / "weights.bin", "weights.bin")]
    ):
        monkeypatch.setenv("FINERY_PROCESS_DIR", str(tmp_path / f"process-{number}"))
        (tmp_path / f"process-{number}").mkdir()
        monkeypatch.delenv("AZUREML_MODEL_DIR", raising=False)
        spec = write(tmp_path, source)
        served = Spec(**{**vars(spec), "model": str(model)})
        assert json.loads(scored(served, wanted.encode())) == [[model.name], "w"]


def test_a_script_in_a_folder_finds_its_neighbours_and_its_files(tmp_path: Path) -> None:
    write(tmp_path, "ANSWER = 42\n", name="src/neighbour_of_score.py")
    (tmp_path / "code" / "labels.txt").write_text("labels")
    spec = write(
        tmp_path,
        "import os, pathlib\nfrom neighbour_of_score import ANSWER\n"
        "def init(): pass\n"
        "def run(raw): return [ANSWER, pathlib.Path('labels.txt').read_text(), os.environ['AZUREML_ENTRY_SCRIPT']]\n",
        name="src/score.py",
    )
    assert json.loads(scored(spec)) == [42, "labels", "src/score.py"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def run(raw): pass", "has no function init()"),
        ("def init(): pass", "has no function run()"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def init(): 1 / 0\ndef run(raw): pass", "init() in score.py failed: ZeroDivisionError"),
        ("def init(): exit(3)\ndef run(raw): pass", "SystemExit: 3"),
        ("def init(): pass\ndef run(): pass", "must take one argument"),
        ("def init(): pass\nasync def run(raw): pass", "async"),
    ],
)
def test_a_script_that_cannot_serve_is_refused_at_the_start(
    tmp_path: Path, source: str, message: str
) -> None:
    with pytest.raises(BadSpec) as refused:
        script.load(write(tmp_path, source))
    assert message in str(refused.value)


def test_a_script_that_is_not_there_is_named(tmp_path: Path) -> None:
    spec = write(tmp_path, "")
    with pytest.raises(BadSpec, match="no file 'other.py'"):
        script.load(Spec(**{**vars(spec), "script": "other.py"}))


@pytest.mark.parametrize(
    ("run", "why"),
    [
        ("raise KeyError('image')", "KeyError: 'image' (score.py, line 3)"),
        ("exit(3)", "SystemExit: 3 (score.py, line 3)"),
        ("raise MemoryError('500 megapixels')", "MemoryError: 500 megapixels (score.py, line 3)"),
        ("return {1, 2}", "what run() returned cannot be written as JSON"),
    ],
)
def test_a_failing_run_is_500_marked_as_the_script_s_with_the_traceback_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: str, why: str
) -> None:
    loaded = script.load(write(tmp_path, f"def init(): pass\ndef run(raw):\n    {run}\n"))
    with pytest.raises(Told) as refused:
        loaded(asked())
    answer = contract.told(refused.value)
    assert answer.status == 500
    assert (b"x-ms-run-function-failed", b"True") in answer.headers
    assert dict(answer.headers)[b"ms-azureml-model-error-reason"].decode().startswith(why)
    assert "Traceback" in capsys.readouterr().err


def test_a_reason_cannot_break_out_of_its_header() -> None:
    said = contract.told(Told(500, "m", why="two\r\nset-cookie: lines \u20ac" + "x" * 1000))
    reason = dict(said.headers)[b"ms-azureml-model-error-reason"]
    assert reason.startswith(b"two  set-cookie: lines ?") and len(reason) == 300


def test_a_generator_goes_out_in_pieces_and_is_closed_when_nobody_listens(tmp_path: Path) -> None:
    loaded = script.load(
        write(
            tmp_path,
            "closed = []\n"
            "def init(): pass\n"
            "def run(raw):\n"
            "    try:\n"
            "        yield 'é'\n"
            "        yield b'\\xff'\n"
            "    finally:\n"
            "        closed.append(raw)\n",
        )
    )
    answer = loaded(asked(b"1"))
    assert answer.parts is not None and list(answer.parts) == ["é".encode(), b"\xff"]
    left = loaded(asked(b"2")).parts
    assert left is not None and next(left) == "é".encode()
    left.close()  # type: ignore[attr-defined]
    assert sys.modules["entry_module"].closed == ["1", "2"]


def test_a_generator_of_something_else_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "def init(): pass\ndef run(raw):\n    yield {'no': 'text'}\n"
    answer = script.load(write(tmp_path, source))(asked())
    assert answer.parts is not None
    with pytest.raises(Told) as refused:
        next(answer.parts)
    assert refused.value.failed and "of type dict" in refused.value.why
    assert "Traceback" in capsys.readouterr().err


def test_what_a_script_logs_is_seen_and_its_own_set_up_is_its_own(tmp_path: Path) -> None:
    """In a process of its own: logging belongs to the process."""
    spec = write(
        tmp_path,
        "import logging\n"
        "def init():\n"
        "    logging.getLogger('mine').info('before')\n"
        "    logging.basicConfig(level=logging.DEBUG, format='mine %(message)s', force=False)\n"
        "    logging.debug('after')\n"
        "def run(raw): pass\n",
    )
    program = "import sys; from finery.serving import script, spec; script.load(spec.spec_in("
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{program}{ {'kind': 'script', 'code': spec.code, 'script': spec.script} }))",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    before, after = done.stderr.splitlines()
    assert before.endswith("I mine - before") and after == "mine after"


def test_a_logging_json_is_followed_and_a_broken_one_named(tmp_path: Path) -> None:
    spec = write(tmp_path, "def init(): pass\ndef run(raw): pass\n")
    (tmp_path / "code" / "logging.json").write_text('{"version": 2}')
    with pytest.raises(BadSpec, match="logging.json"):
        script.load(spec)


def test_what_a_script_passes_on_of_another_server_does_not_break_the_connection(
    tmp_path: Path,
) -> None:
    spec = write(
        tmp_path,
        "from azureml_inference_server_http.api.aml_request import rawhttp\n"
        "from azureml_inference_server_http.api.aml_response import AMLResponse\n"
        "def init(): pass\n"
        "@rawhttp\n"
        "def run(request):\n"
        "    more = {'Transfer-Encoding': 'chunked', 'Connection': 'close', 'X-Mine': 'kept',\n"
        "            'X-Finery-Refused': 'True'}\n"
        "    return AMLResponse('hello', int(request.args['status']), response_headers=more)\n",
    )
    loaded = script.load(spec)
    names = {name for name, _ in loaded(asked(query=b"status=200")).headers}
    assert b"x-mine" in names
    assert not names & {b"transfer-encoding", b"connection", b"content-length"}
    assert b"x-finery-refused" not in names  # what a script says is never taken for our limit
    with pytest.raises(ValueError, match="status 100"):
        loaded(asked(query=b"status=100"))
