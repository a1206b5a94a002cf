"""The house rules that a program can check; what is not here is in CONTRIBUTING.md.

That `finery --help` imports nothing heavy is in test_cli.py.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "finery"
MODULES = sorted(path for path in SOURCE.rglob("*.py") if "versions" not in path.parts)
NAMED = {str(path.relative_to(SOURCE)): path for path in MODULES}

# Words of foreign wires; `properties` alone is English too, and jobs and assets have some.
FOREIGN = re.compile(
    r"azureml://|nextLink|ftjob-|systemData|provisioningState|\bCanceled\b|CancelRequested"
    r"|Microsoft\.MachineLearningServices|resourceGroups/|has_more|finish_reason"
)
AT_HOME = ("doors/", "catalog/")
# Where a foreign word is right all the same, and why.
EXEMPT = {
    "serving/": {"finish_reason"},  # a deployment answers in OpenAI's shape itself
}
# Past some 400 lines a second idea is looked for; past this many it has to be found.
MOST, MOST_INSIDE = 450, 500
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "mlflow", "pandas"}


def test_the_import_rules_hold():
    # In a process of its own: it writes to the terminal that it found when it was imported.
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"Contracts: (\d+) kept", done.stdout)[1]) >= 6


@pytest.mark.parametrize("name", NAMED)
def test_a_module_is_of_a_size_that_can_be_read(name):
    most = MOST_INSIDE if name.startswith(("recipes/", "serving/")) else MOST
    assert len(NAMED[name].read_text().splitlines()) <= most, "look for the second idea in it"


def test_no_module_is_named_for_having_no_idea():
    vague = {"utils", "util", "common", "helpers", "helper", "manager", "managers", "misc", "base"}
    names = {path.stem for path in MODULES} | {path.parent.name for path in MODULES}
    assert not names & vague


def test_foreign_words_stay_at_the_doors():
    found = {}
    for name, path in NAMED.items():
        if not name.startswith(AT_HOME):
            allowed = {
                word for start, words in EXEMPT.items() if name.startswith(start) for word in words
            }
            words = set(FOREIGN.findall(_without_docstrings(path))) - allowed
            if words:
                found[name] = words
    assert found == {}


def test_every_module_says_what_it_is():
    silent = [
        name
        for name, path in NAMED.items()
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_the_server_imports_heavy_libraries_only_where_they_are_used():
    """At the top of a module of the server there is none; the MLflow door's own is loaded later."""
    found = {}
    for name, path in NAMED.items():
        if name.startswith(("core/", "engines/", "doors/", "cli/")) or "/" not in name:
            heavy = HEAVY & set(_imported(ast.parse(path.read_text())))
            if heavy and not name.startswith("doors/mlflow/"):
                found[name] = heavy
    assert found == {}


def _imported(tree: ast.Module) -> list[str]:
    """Return the top packages that a module imports at its own top."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append(node.module or "")
    return [name.split(".")[0] for name in found]


def _without_docstrings(path: Path) -> str:
    """Return a module's code without its prose: a docstring may say whose word is meant."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body[0] = ast.Pass()
    return ast.unparse(tree)
