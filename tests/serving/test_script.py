from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finery.serving import script
from finery.serving.spec import BadSpec, Spec
from finery.serving.wire import Refusal


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


def test_init_comes_before_run_and_a_result_is_json(tmp_path: Path) -> None:
    spec = write(
        tmp_path,
        "import json\n"
        "def init():\n    global model\n    model = 3\n"
        "def run(raw):\n    return {'result': model * json.loads(raw)['x'], 'said': 'é'}\n",
    )
    assert script.load(spec)(b'{"x": 2}') == b'{"result": 6, "said": "\\u00e9"}'


@pytest.mark.parametrize(
    ("result", "body"), [("'text'", b'"text"'), ("[1, 2]", b"[1, 2]"), ("None", b"null")]
)
def test_whatever_comes_back_is_encoded_once(tmp_path: Path, result: str, body: bytes) -> None:
    spec = write(tmp_path, f"def init(): pass\ndef run(raw): return {result}\n")
    assert script.load(spec)(b"") == body


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
    for number, (model, asked) in enumerate(
        [(folder, "outputs/weights.bin"), (folder / "weights.bin", "weights.bin")]
    ):
        monkeypatch.setenv("FINERY_PROCESS_DIR", str(tmp_path / f"process-{number}"))
        (tmp_path / f"process-{number}").mkdir()
        monkeypatch.delenv("AZUREML_MODEL_DIR", raising=False)
        spec = write(tmp_path, source)
        run = script.load(Spec(**{**vars(spec), "model": str(model)}))
        assert json.loads(run(asked.encode())) == [[model.name], "w"]


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
    assert json.loads(script.load(spec)(b"")) == [42, "labels", "src/score.py"]


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
    ("run", "message"),
    [
        ("raise KeyError('image')", "run() failed: KeyError: 'image'"),
        ("return {1, 2}", "encoding the result of run() as JSON failed: TypeError"),
    ],
)
def test_a_failing_run_is_424_with_the_traceback_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: str, message: str
) -> None:
    spec = write(tmp_path, f"def init(): pass\ndef run(raw):\n    {run}\n")
    with pytest.raises(Refusal) as refused:
        script.load(spec)(b"")
    assert refused.value.status == 424
    assert refused.value.message.startswith(message)
    assert "Traceback" in capsys.readouterr().err


def test_a_body_that_is_no_text_is_400(tmp_path: Path) -> None:
    spec = write(tmp_path, "def init(): pass\ndef run(raw): return 1\n")
    with pytest.raises(Refusal) as refused:
        script.load(spec)(b"\xff")
    assert refused.value.status == 400
