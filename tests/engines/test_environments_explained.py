"""Why an environment could not be built, out of what the programs write."""

import errno

import pytest

from finery.core.errors import NotSupported, Unavailable
from finery.engines import building, explaining
from finery.engines.explaining import Ended
from finery.engines.wanted import Wanted

CONFLICT = """Using Python 3.11.7 environment at: .
error: No solution found when resolving dependencies
  cause: Because pandas==2.2.2 depends on numpy>=1.23.2 and you require numpy==1.21.5, we can
         conclude that your requirements are unsatisfiable.
"""
OLDER = """  × No solution found when resolving dependencies:
  ╰─▶ Because nosuch was not found in the package registry and you require
      nosuch, we can conclude that your requirements are unsatisfiable.
"""
NETWORK = """error: Failed to fetch: http://127.0.0.1:9/simple/nosuch/
  cause: error sending request for url (http://127.0.0.1:9/simple/nosuch/)
  cause: Connection refused (os error 111)
"""
BUILDKIT = """#5 [2/2] RUN pip install nosuch
#5 1.021 ERROR: Could not find a version that satisfies the requirement nosuch
#5 1.022 ERROR: No matching distribution found for nosuch
------
 > [2/2] RUN pip install nosuch:
1.022 ERROR: No matching distribution found for nosuch
------
Dockerfile:3
--------------------
   2 |     COPY requirements.txt .
   3 | >>> RUN pip install nosuch
--------------------
ERROR: failed to solve: process "/bin/sh -c pip install nosuch" did not complete: exit code: 1
"""
CLASSIC = """Step 2/2 : RUN pip install nosuch
 ---> Running in 1234
ERROR: No matching distribution found for nosuch
The command '/bin/sh -c pip install nosuch' returned a non-zero code: 1
"""


@pytest.mark.parametrize(
    ("said", "cause", "theirs"),
    [
        (CONFLICT, "pandas==2.2.2 depends on numpy>=1.23.2 and you require numpy==1.21.5", True),
        (
            OLDER,
            "because nosuch was not found in the package registry and you require nosuch",
            True,
        ),
        (NETWORK, "Failed to fetch: http://127.0.0.1:9/simple/nosuch/", False),
        (BUILDKIT, "Dockerfile line 3: RUN pip install nosuch failed:", True),
        (BUILDKIT, "No matching distribution found for nosuch", True),
        (CLASSIC, "RUN pip install nosuch failed: ", True),
        ("", "ended without a word", True),
    ],
)
def test_the_cause_is_found_in_what_was_written(said: str, cause: str, theirs: bool) -> None:
    found = explaining.cause(Ended(said))
    assert cause in found.text and "\n" not in found.text
    assert found.invalid == theirs


@pytest.mark.parametrize(
    ("listed", "hinted"),
    [("[nosuch]", True), ("[pip, {pip: [NoSuch>1]}]", False), ("[needs-it, {pip: [tqdm]}]", True)],
)
def test_a_conda_program_is_a_help_only_for_condas_own_section(
    tmp_path, monkeypatch, listed: str, hinted: bool
) -> None:
    def lacks(*given, **more):
        raise Ended(OLDER)

    monkeypatch.setattr("finery.engines.installing.make", lacks)
    monkeypatch.setattr("finery.engines.interpreters.conda", lambda: None)
    with pytest.raises(Ended) as ended:
        building.by_uv(Wanted(conda=f"dependencies: {listed}"), tmp_path)
    assert ("conda or micromamba" in explaining.cause(ended.value).text) == hinted


def test_a_cause_is_never_a_whole_log() -> None:
    assert len(explaining.cause(Ended("word " * 10_000)).text) <= 1500


@pytest.mark.parametrize(
    ("error", "cause", "theirs"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full", False),
        (Ended("error: failed to write: No space left on device (os error 28)"), "No space", False),
        (NotSupported("the option --x"), "the option --x", True),
        (Unavailable("conda is gone"), "conda is gone", False),
        (KeyError("x"), "KeyError", False),
    ],
)
def test_who_is_to_blame_is_told_apart(error: Exception, cause: str, theirs: bool) -> None:
    found = explaining.cause(error)
    assert cause in found.text and found.invalid == theirs


def test_a_package_that_cannot_be_compiled_is_named_however_much_its_compiler_said() -> None:
    said = ["installing it\n", "error: no such address\n", "once more\n"]
    said += ["error: Failed to build `leaf==1.0`\n", *["  cc1: warning\n"] * 2000, "  no header\n"]
    told = explaining.telling(said)
    assert "no such address" not in told and told.count("\n") <= 500
    found = explaining.cause(Ended(told))
    assert found.text.startswith("Failed to build `leaf==1.0`") and "no header" in found.text


def test_a_hint_follows_the_cause() -> None:
    found = explaining.cause(Ended(OLDER, "conda has it"))
    assert found.text.endswith("(conda has it)")


def test_only_the_package_itself_is_meant_by_its_name() -> None:
    assert explaining.concerns("error: Because you require torch==1", "torch")
    assert not explaining.concerns("error: Because you require torch-geometric==1", "torch")
