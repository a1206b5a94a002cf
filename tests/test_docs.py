"""The documents say what is so: the tour is run, and what they name is there.

The tour needs a real server and the official clients: it is what a newcomer
does first, and nothing less shows that it works.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finery import cli
from finery.core import status
from finery.doors.azureml import wire
from finery.doors.mlflow import tracking

ROOT = Path(__file__).parents[1]
SDK = ROOT / ".venv-sdk" / "bin" / "python"
PAGES = [
    *("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md"),
    *("docs/glossary.md", "docs/coverage.md", "docs/coverage_others.md"),
    *("docs/environments.md", "docs/deployments.md", "docs/visual_question_answering.md"),
    *("examples/phi3_chat/README.md", "examples/florence2_vqa/README.md"),
    *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/decisions/*.md"))),
]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
without_sdk = pytest.mark.skipif(not SDK.exists(), reason="needs .venv-sdk: make setup")


def page(name: str) -> str:
    return (ROOT / name).read_text()


def section(text: str, heading: str) -> str:
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"no heading {heading!r}"
    return found[1]


def told(text: str) -> str:
    """Return what a page marks as code: fenced, or between backquotes."""
    inline = re.findall(r"`([^`\n]+)`", FENCED.sub("", text))
    return "\n".join([*inline, *(block for _, block in FENCED.findall(text))])


# -- the tour ----------------------------------------------------------------------------------


class Terminal:
    """A shell in a folder that looks like the checkout, with a home directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.state = folder / "checkout", folder / "home", folder / "state"
        self.home.mkdir()
        self.folder.mkdir()
        for name in (".venv", ".venv-sdk"):
            (self.folder / name).symlink_to(ROOT / name)
        self.env = {
            "HOME": str(self.home),
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            **{name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ},
        }
        self.server: subprocess.Popen[str] | None = None

    def run(self, commands: str) -> str:
        """Run commands as in one terminal: variables and the folder stay from block to block."""
        script = f"set -e\n{commands}\npwd > '{self.state}'; env -0 > '{self.state}.env'"
        shell = ["bash", "-c", script]
        given = {"cwd": self.folder, "env": self.env, "capture_output": True, "text": True}
        done = subprocess.run(shell, timeout=600, **given)
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        self.folder = Path(self.state.read_text().strip())
        words = Path(f"{self.state}.env").read_text().split("\0")
        self.env = dict(word.split("=", 1) for word in words if word)
        return done.stdout

    def serve(self, commands: str) -> str:
        """Run commands of which the last is a server; return what it says when it is ready."""
        with (self.home / "server.log").open("w") as log:
            self.server = subprocess.Popen(
                ["bash", "-c", f"set -e\n{commands}"],
                cwd=self.folder,
                env=self.env,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.server.stdout is not None
        return self.server.stdout.readline()

    def end(self) -> None:
        if self.server is not None and self.server.poll() is None:
            home = self.home / "finery-tour"
            finery = Path(sys.executable).with_name("finery")
            subprocess.run([finery, "down", "--home", home], check=False, capture_output=True)
            self.server.kill()
        if self.server is not None:
            self.server.communicate()


@without_sdk
def test_the_tour_runs_as_it_is_written(tmp_path):
    terminal, said = Terminal(tmp_path), []
    try:
        for language, block in FENCED.findall(section(page("README.md"), "A tour in five minutes")):
            if language == "python":
                name = block.split()[1].rstrip(":")
                (terminal.folder / name).write_text(block)
            elif "finery up" in block:
                assert terminal.serve(block).startswith("ready: ")
            else:
                assert language == "sh"
                said.append(terminal.run(block))
        assert terminal.server is not None and terminal.server.wait(timeout=120) == 0
    finally:
        terminal.end()
    everything = "\n".join(said)
    for word in ("chat_completion_pipeline", "A stand-in, not Phi-3", "'loss': 0.2", "tour 1"):
        assert word in everything
    asked = said[-2]
    assert "\nTrue\n" in asked and "blue" in asked, asked  # both ways gave the same answer


# -- what is named is there --------------------------------------------------------------------


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", page("Makefile"), re.M))
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/coverage.md"):
        named = set(re.findall(r"\bmake ([a-z-]+)", told(page(name))))
        assert named <= targets, (name, named - targets)


def test_every_finery_command_that_is_named_exists(capsys):
    named = set()
    for name in PAGES:
        found = re.findall(r"(?:^|[/ (])finery ([a-z]+)(?: ([a-z]+))?", told(page(name)), re.M)
        named |= set(found)
    assert len(named) >= 8
    groups = {"job", "model", "endpoint", "bench"}
    for word, second in named:
        words = [word, second] if word in groups and second else [word]
        with pytest.raises(SystemExit) as ended:
            cli.main([*words, "--help"])
        assert ended.value.code == 0, words
    capsys.readouterr()


@pytest.mark.parametrize("name", PAGES)
def test_every_path_that_is_named_exists(name):
    text = page(name)
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / name).parent.joinpath(link).exists(), link
    known = "src|tests|docs|examples|scripts|bench|standins"
    for path in re.findall(rf"(?:^|[\s(`])((?:{known})/[\w./-]*\w)", told(text), re.M):
        if "…" not in path and "*" not in path:
            assert (ROOT / path).exists(), path


def test_the_pipeline_for_pictures_is_told_as_it_is():
    # Its calls are those of tests/sdk/test_vqa_pipeline.py, which runs them.
    text = page("docs/visual_question_answering.md")
    (script,) = (block for language, block in FENCED.findall(text) if language == "python")
    compile(script, "vqa.py", "exec")
    catalog = ROOT / "src/finery/catalog/components/visual_question_answering_pipeline.yaml"
    inputs = yaml.safe_load(catalog.read_text())["inputs"]
    rows = re.findall(r"^\| (`.*?) \|", section(text, "The inputs that matter"), re.M)
    named = re.findall(r"`(\w+)`(?: \(`(.+?)`\)| \((\d+)\))?", "\n".join(rows))
    assert len(named) > 10
    for name, word, number in named:
        default = word or number
        assert name in inputs, name
        assert default in ("", str(inputs[name].get("default"))), (name, default)


def test_the_map_of_the_architecture_is_the_tree():
    block = section(page("ARCHITECTURE.md"), "The map")
    named = set(re.findall(r"[a-z_]+", block))
    source = ROOT / "src" / "finery"
    for folder in (source, source / "core", source / "engines", source / "doors"):
        modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        assert modules <= named, (folder.name, modules - named)
    for name in re.findall(r"^  (?:  )?([\w/]+(?:/|\.py))", block, re.M):
        assert list(source.rglob(name.rstrip("/"))), name
    for name in re.findall(
        r"`((?:core|doors|engines|serving)/[\w/]+\.py)", page("ARCHITECTURE.md")
    ):
        assert (source / name).exists(), name


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/decisions/*.md")), ids=lambda p: p.stem)
def test_a_decision_says_when_why_what_and_at_what_cost(path):
    text = path.read_text()
    number = int(path.stem.split("-")[0])
    assert re.match(rf"# {number}\. \S.*\n\n20\d\d-\d\d-\d\d\n", text)
    for heading in ("**Context.**", "**Choice.**", "**What it costs.**"):
        assert text.count(heading) == 1, heading
    assert len(text.splitlines()) < 60, "one page"


def test_the_glossary_s_statuses_are_the_code_s():
    rows = [
        line for line in section(page("docs/glossary.md"), "Statuses").splitlines() if "|" in line
    ]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]
    assert [row[0] for row in cells] == list(status.JOB)
    assert {row[0]: row[1] for row in cells} == wire.JOB_STATUS
    final = status.final(status.JOB)
    assert {row[0]: row[3] for row in cells if row[0] in final} == tracking._STATUS
    assert {row[3] for row in cells if row[0] not in final} <= {"", "RUNNING"}


@without_sdk
def test_the_coverage_lists_the_operations_that_the_sdk_has():
    code = "import json, coverage; print(json.dumps(coverage.operations()))"
    command = [SDK, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT / "scripts", capture_output=True, text=True, check=True)
    group, listed = "", []
    for line in page("docs/coverage.md").splitlines():
        if line.startswith("## "):
            group = line[3:]
        elif found := re.match(r"\| `(\w+)` \| (\w+)", line):
            listed.append(f"{group}.{found[1]}")
    assert listed == json.loads(done.stdout), "run `make coverage`"


def test_the_coverage_names_tests_that_exist():
    named = set(re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", page("docs/coverage.md")))
    assert len(named) > 30
    for file, name in named:
        assert f"def {name}" in page(f"tests/sdk/{file}"), f"{file}::{name}: run `make coverage`"
