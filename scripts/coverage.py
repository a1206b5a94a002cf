"""`make coverage`: what the official `azure-ai-ml` gets here, operation by operation.

Runs `tests/sdk` with every public method of the SDK's operation groups watched,
and prints docs/coverage.md: what came back, and in which test that passed.  The
tests' own report goes to stderr.  It runs in the clients' environment; MLflow and
OpenAI are in `docs/coverage_others.md`, by hand.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import os
import sys
import threading
import typing
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.ai.ml import MLClient
from azure.core.exceptions import HttpResponseError
from azure.core.polling import LROPoller

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "sdk"
ITSELF = ("begin_create_or_update", "create_or_update", "from_config")  # the client's own words
REFUSALS = "test_what_is_refused.py"


def groups() -> dict[str, type]:
    """Return the SDK's operation groups: the name on the client, and the class."""
    found = {}
    for name, member in inspect.getmembers(MLClient, lambda member: isinstance(member, property)):
        kind = typing.get_type_hints(member.fget).get("return")
        if inspect.isclass(kind) and kind.__name__.endswith("Operations"):
            found[name] = kind
    return found


def methods(kind: type) -> list[str]:
    members = inspect.getmembers(kind, callable)
    return [name for name, _ in members if not name.startswith("_")]


def operations() -> list[str]:
    """Return every operation as `group.method`, the client's own first."""
    found = [f"{group}.{name}" for group, kind in groups().items() for name in methods(kind)]
    return [f"MLClient.{name}" for name in ITSELF] + sorted(found)


class Watch:
    """A pytest plugin: which operations return and which are refused, in which test."""

    def __init__(self) -> None:
        self.answered: dict[str, set[str]] = defaultdict(set)  # operation -> tests
        self.refused: dict[str, dict[str, str]] = defaultdict(dict)  # operation -> test -> words
        self.passed: set[str] = set()
        self._test = ""
        self._inside = threading.local()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._test = nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)

    def install(self) -> None:
        for group, kind in groups().items():
            for name in methods(kind):
                setattr(kind, name, self._watched(f"{group}.{name}", getattr(kind, name)))
        for name in ITSELF:
            plain = inspect.getattr_static(MLClient, name)
            if isinstance(plain, classmethod):
                made = self._watched(f"MLClient.{name}", plain.__func__, outer=True)
                setattr(MLClient, name, classmethod(made))
            else:
                setattr(MLClient, name, self._watched(f"MLClient.{name}", plain, outer=True))

    def _watched(
        self, operation: str, plain: Callable[..., Any], *, outer: bool = False
    ) -> Callable[..., Any]:
        @functools.wraps(plain)
        def call(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._inside, "yes", False):  # the SDK calls itself
                return plain(*args, **kwargs)
            self._inside.yes = not outer  # what the client passes on counts too
            try:
                with self._noting(operation):
                    answer = plain(*args, **kwargs)
            finally:
                self._inside.yes = False
            return self._later(operation, answer)

        return call

    @contextlib.contextmanager
    def _noting(self, operation: str) -> Iterator[None]:
        try:
            yield
        except HttpResponseError as exc:
            if exc.error is not None and exc.error.code == "NotSupported":
                self.refused[operation][self._test] = str(exc.error.message)
            raise

    def _later(self, operation: str, answer: Any) -> Any:
        """Note the answer; of a list or a poller, when it has really come."""
        if isinstance(answer, LROPoller):
            answer.result = self._noted(operation, answer.result)  # type: ignore[method-assign]
            answer.wait = self._noted(operation, answer.wait)  # type: ignore[method-assign]
            return answer
        if hasattr(answer, "__next__"):
            return _Items(answer, self, operation)
        self.answered[operation].add(self._test)
        return answer

    def _noted(self, operation: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._noting(operation):
                answer = plain(*args, **kwargs)
            self.answered[operation].add(self._test)
            return answer

        return call


class _Items:
    """A list that comes in pages: it has answered when an item, or the end, has come."""

    def __init__(self, plain: Any, watch: Watch, operation: str) -> None:
        self._plain, self._watch, self._operation = plain, watch, operation

    def __iter__(self) -> _Items:
        return self

    def __next__(self) -> Any:
        with self._watch._noting(self._operation):
            try:
                item = next(self._plain)
            except StopIteration:
                self._watch.answered[self._operation].add(self._watch._test)
                raise
        self._watch.answered[self._operation].add(self._watch._test)
        return item

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)


def document(watch: Watch, otherwise: dict[str, str]) -> str:
    tried: dict[str, set[str]] = defaultdict(set)  # test -> operations: the fewer, the clearer
    for operation, tests in watch.answered.items():
        for test in tests & watch.passed:
            tried[test].add(operation)
    rows: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    for operation in operations():
        group, _, name = operation.partition(".")
        said, shown = _outcome(watch, operation, tried, otherwise)
        counts[said.partition(":")[0]] += 1
        rows[group].append((name, said, shown))
    lines = [_HEAD.format(version=importlib.metadata.version("azure-ai-ml")), ""]
    lines += [f"* {word}: {counts[word]}" for word in sorted(counts)]
    for group, found in rows.items():
        lines += ["", f"## {group}", "", "| operation | here | shown by |", "|---|---|---|"]
        lines += [f"| `{name}` | {said} | {shown} |" for name, said, shown in found]
    return "\n".join(lines) + "\n"


def _outcome(
    watch: Watch, operation: str, tried: dict[str, set[str]], otherwise: dict[str, str]
) -> tuple[str, str]:
    if operation in otherwise:
        return f"otherwise: {otherwise[operation]}", f"`{REFUSALS}`"
    answered = watch.answered[operation] & watch.passed
    if answered:
        best = min(answered, key=lambda test: (REFUSALS in test, len(tried[test]), test))
        return "answers", f"`{_short(best)}`"
    refused = {t: words for t, words in watch.refused[operation].items() if t in watch.passed}
    if refused:
        best = min(refused)
        return "refuses", f"`{_short(best)}`"
    return "not tried", ""


def _short(test: str) -> str:
    return test.partition("[")[0].rpartition("/")[2]  # what is in brackets may have a "/" too


_HEAD = """# What `azure-ai-ml` gets here

Made by `make coverage` from the tests of `tests/sdk`, which run the official SDK
({version}) against a real server; do not edit. One row for each public method of each of
the SDK's operation groups. MLflow and OpenAI: [coverage_others.md](coverage_others.md).

* **answers**: the call returned in the test that is named, and the test passed. It does not
  mean that every argument is taken: what a call asks for and Finery does not honour is
  refused by name, with HTTP status 501 and the error code `NotSupported`.
* **refuses**: the call is always refused like that.
* **otherwise**: it ends in the way that is said.
* **not tried**: no test calls it; expect nothing.

How many there are:"""


def main() -> int:
    os.chdir(ROOT)
    watch = Watch()
    watch.install()
    sys.path.insert(0, str(TESTS))
    with contextlib.redirect_stdout(sys.stderr):
        words = ["-q", "-c", str(TESTS / "pytest.ini"), "-p", "no:cacheprovider", str(TESTS)]
        status = pytest.main([*words, *sys.argv[1:]], plugins=[watch])
    from test_what_is_refused import OTHERWISE

    if status:
        print("coverage: some tests failed; what only they show is left out", file=sys.stderr)
    print(document(watch, OTHERWISE), end="")
    return int(status)


if __name__ == "__main__":
    raise SystemExit(main())
