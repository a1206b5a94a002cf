"""What an environment becomes, and that it becomes so once.

Builds are real processes of the engine's: that they outlive a server, are joined
and can be killed is the thing itself.  Most are made by a program in conda's place, which
ends in no time; the few that uv makes take their packages from a folder of
wheels that the test writes, and nothing from any network.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_docker
import pytest

from finery.cli import ending
from finery.cli import environments as cli_environments
from finery.cli.refused import Refused
from finery.core.assets import Asset
from finery.core.compute import Process, Runtime
from finery.core.errors import Failure, Invalid, NotSupported, Unavailable
from finery.engines import built, environments, images, sharing
from finery.engines.environments import Environments
from finery.engines.local import LocalEngine

Until = Callable[..., Any]
SYSTEM = "dependencies: [gcc, {name}]"  # what only a conda program can make

SAY = (
    "import tabulate, importlib.util as u; "
    'print(tabulate.version, *(bool(u.find_spec(n)) for n in ("torch", "finery")))'
)
CONDA = """#!/bin/sh
here=$(dirname "$0")
echo "solving"
echo $$ >> "$here/begun"
while [ -e "$here/wait" ]; do sleep 0.02; done
[ -e "$here/fails" ] && { echo "error: nothing provides $(cat "$here/fails")"; exit 1; }
mkdir -p "$4/bin" && ln -s PYTHON "$4/bin/python"
"""


def named(name: str, *, location: str = "", **spec: Any) -> Asset:
    spec = {"image": "", **spec}
    return Asset(
        scope="w", kind="environment", name=name, version="1", spec=spec, location=location
    )


def conda(name: str, text: str) -> Asset:
    return named(name, kind="conda", conda=text)


def wheel(folder: Path, name: str, version: str, *, needs: str = "") -> None:
    """Write a package of one line: it says its version."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    meta = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    meta += f"Requires-Dist: {needs}\n" if needs else ""
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": meta,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as packed:
        for path, said in files.items():
            packed.writestr(path, said)


class World:
    """A home with its engine, and what a server on it finds on the machine."""

    def __init__(self, tmp: Path) -> None:
        self.tmp, self.home, self.bin = tmp, tmp / "home", tmp / "bin"
        self.wheels = tmp / "wheels"
        self.wheels.mkdir()
        self.bin.mkdir()
        self.surroundings = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "UV_FIND_LINKS": str(self.wheels),
            "UV_NO_INDEX": "1",
            "UV_OFFLINE": "1",
            "UV_CACHE_DIR": str(tmp / "cache"),
        }
        self.engine = LocalEngine(self.home, surroundings=self.surroundings, grace=2, stack="json")

    def server(self, **fields: Any) -> Environments:
        return Environments(
            self.home,
            engine=self.engine,
            locate=lambda scope, place: self.tmp / place,
            surroundings=self.surroundings,
            **{"patience": 20.0, **fields},
        )

    def conda(self) -> Path:
        program = self.bin / "micromamba"
        # create --yes --prefix FOLDER --file FILE
        program.write_text(CONDA.replace("PYTHON", sys.executable))
        program.chmod(0o755)
        return self.bin

    def begun(self) -> list[int]:
        file = self.bin / "begun"
        return [int(line) for line in file.read_text().split()] if file.exists() else []


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for directory in (made.home / "processes").glob("*/"):
        made.engine.stop(directory.name)
    for directory in (made.home / "processes").glob("*/"):
        while made.engine.report(directory.name).state not in ("exited", "unknown"):
            threading.Event().wait(0.01)
    made.engine.close()


def had(server: Environments, until: Until, asset: Asset, log: Path, **fields: Any) -> Runtime:
    fields = {"serving": False, **fields}
    found: Runtime = until(lambda: server.runtime(asset, log=log, **fields), 300)
    return found


def failure(
    server: Environments, until: Until, asset: Asset, log: Path, *, serving: bool = False
) -> Failure:
    def ended() -> Failure | None:
        try:
            assert server.runtime(asset, serving=serving, log=log) is None
        except Failure as exc:
            return exc
        return None

    found: Failure = until(ended, 300)
    return found


def said(runtime: Runtime, code: str) -> str:
    ran = subprocess.run([runtime.python, "-c", code], capture_output=True, text=True)
    return (ran.stdout or ran.stderr.strip().splitlines()[-1]).strip()


# What needs no building


def test_a_curated_environment_is_our_own_interpreter(world: World) -> None:
    found = world.server().runtime(named("sklearn-1.5", kind="curated"), serving=False)
    assert found and (found.python, found.own, found.image) == (sys.executable, True, "")
    assert world.server().runtime(None, serving=True) == environments.OWN


def test_an_image_alone_is_our_own_interpreter_and_the_job_is_told(world: World) -> None:
    found = world.server().runtime(named("mine", kind="image", image="python:3.11"), serving=False)
    assert found and (found.python, found.own) == (sys.executable, True)
    assert "python:3.11" in found.warnings[0]


def test_a_context_that_asks_for_what_we_have_is_our_own_interpreter(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM x\nRUN pip install transformers>=5\nENV MODE=a\n")
    found = world.server().runtime(named("mine", kind="build"), serving=False)
    assert found and found.own and found.variables == {"MODE": "a"}


def test_what_cannot_be_made_from_is_refused_by_name(world: World) -> None:
    with pytest.raises(Invalid, match="'mine'.*nothing"):
        world.server().runtime(named("mine", kind=""), serving=False)


def test_strict_makes_every_warning_an_error(world: World) -> None:
    with pytest.raises(NotSupported, match="strict.*python:3.11"):
        world.server(strict=True).runtime(
            named("mine", kind="image", image="python:3.11"), serving=False
        )


# With uv


def test_a_conda_file_becomes_an_isolated_interpreter_with_what_it_asks_for(
    world: World, until: Until, tmp_path: Path
) -> None:
    for version in ("1.0", "2.0"):
        wheel(world.wheels, "sixpence", version)
    server, log = world.server(), tmp_path / "job" / "environment.log"
    asset = conda("mine", "dependencies: [python=3.11, sixpence=1.0, pip]")
    assert server.runtime(asset, serving=False, log=log) is None
    assert log.exists()  # from the first moment on
    found = had(server, until, asset, log)
    assert not found.own and not found.warnings
    assert said(found, "import sixpence; print(sixpence.version)") == "1.0"
    for absent in ("finery", "torch", "fastapi"):
        assert "No module named" in said(found, f"import {absent}")
    pip = subprocess.run([Path(found.python).with_name("pip"), "list"], capture_output=True)
    assert b"sixpence" in pip.stdout
    assert "sixpence==1.0" in log.read_text() and log.read_text().rstrip().endswith("ready")
    # The same wish by another name is the same interpreter, and no second build.
    again = server.runtime(conda("other", asset.spec["conda"]), serving=False, log=tmp_path / "2")
    assert again == found
    assert world.engine.report(f"environment-{Path(found.python).parts[-3]}").state == "unknown"


def test_pytorch_and_the_scoring_host_are_shared_and_nothing_else_of_ours_comes_along(
    world: World, until: Until, tmp_path: Path
) -> None:
    asset = conda("mine", "dependencies: [pytorch, cudatoolkit=11.3]")
    found = had(world.server(), until, asset, tmp_path / "log", serving=True)
    ours = sharing.OWN / "torch" / "__init__.py"
    theirs = sharing.site(Path(found.python).parents[1]) / "torch" / "__init__.py"
    assert ours.samefile(theirs) or ours.stat().st_dev != theirs.stat().st_dev
    assert "cudatoolkit=11.3" in found.warnings[0]
    code = "import importlib.util as u; print([bool(u.find_spec(n)) for n in NAMES])"
    names = ["torch", "finery.checkpoint", *images.HOST]
    assert set(json.loads(said(found, code.replace("NAMES", repr(names))).lower())) == {True}
    assert said(found, code.replace("NAMES", "['fastapi', 'transformers']")) == "[False, False]"


def test_a_context_replaces_what_it_names_in_a_copy_of_ours_and_ours_stays_as_it_was(
    world: World, until: Until, tmp_path: Path
) -> None:
    before = (sharing.OWN / "tabulate" / "__init__.py").read_bytes()
    wheel(world.wheels, "tabulate", "99.0")
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(
        "FROM mine\nCOPY requirements.txt .\nRUN pip install -r requirements.txt\nRUN make it\n"
    )
    (context / "requirements.txt").write_text("tabulate>=99\nnumpy\n")
    asset = named("mine", kind="build", location="context")
    found = had(world.server(), until, asset, tmp_path / "log")
    assert said(found, "import tabulate; print(tabulate.version)") == "99.0"
    assert "site-packages/torch" in said(
        found, "import importlib.util as u; print(u.find_spec('torch').origin)"
    )
    assert [one for one in found.warnings if "Dockerfile line 4: make it" in one]
    assert (sharing.OWN / "tabulate" / "__init__.py").read_bytes() == before


@pytest.mark.parametrize(
    ("wish", "cause"),
    [
        ("nosuchpackage=1.0", "nosuchpackage was not found"),
        (
            "sixpence=1.0, sevenpence=1.0",
            "sevenpence depend on sixpence>=2 and you require sixpence==1.0",
        ),
        (
            "python=3.99, no-such-package=1.0",
            r"no-such-package was not found.*\(Python ==3\.99\.\* was asked for.* it is Python 3",
        ),
    ],
)
def test_a_package_that_is_not_there_and_a_conflict_are_told_as_such(
    world: World, until: Until, tmp_path: Path, wish: str, cause: str
) -> None:
    wheel(world.wheels, "sixpence", "1.0")
    wheel(world.wheels, "sevenpence", "1.0", needs="sixpence>=2")
    asset = conda("mine", f"dependencies: [{wish}]")
    found = failure(world.server(), until, asset, tmp_path / "log")
    assert isinstance(found, Invalid)
    assert "'mine' could not be built" in str(found)
    assert re.search(cause, str(found)), str(found)
    kept = {path.suffix for path in (world.home / "environments").iterdir()}
    assert kept <= {".log", ".json"}  # and no folder that is half of one


# How often, and for whom


def test_all_who_wait_share_one_build_and_a_server_that_comes_back_joins_it(
    world: World, until: Until, tmp_path: Path
) -> None:
    (world.conda() / "wait").touch()
    asset = conda("mine", SYSTEM.format(name="numpy"))
    server = world.server()
    for _ in range(3):
        assert server.runtime(asset, serving=False, log=tmp_path / "1") is None
        assert server.runtime(asset, serving=False, log=tmp_path / "2") is None
    until(world.begun)
    later = world.server()
    assert later.runtime(asset, serving=False, log=tmp_path / "1") is None
    (world.bin / "wait").unlink()
    assert (
        had(later, until, asset, tmp_path / "3").python
        == had(server, until, asset, tmp_path / "1").python
    )
    assert len(world.begun()) == 1
    assert "solving" in (tmp_path / "1").read_text() == (tmp_path / "2").read_text()


def test_a_failure_is_told_to_those_who_waited_and_tried_again_for_who_comes_later(
    world: World, until: Until, tmp_path: Path
) -> None:
    (world.conda() / "fails").write_text("numpy")
    asset, server = conda("mine", SYSTEM.format(name="numpy")), world.server()
    (world.bin / "wait").touch()
    for name in ("1", "2"):
        assert server.runtime(asset, serving=False, log=tmp_path / name) is None
    (world.bin / "wait").unlink()
    assert "nothing provides numpy" in str(failure(server, until, asset, tmp_path / "1"))
    assert "nothing provides numpy" in str(failure(world.server(), until, asset, tmp_path / "2"))
    assert len(world.begun()) == 1
    (world.bin / "fails").unlink()
    assert had(server, until, asset, tmp_path / "3").python
    assert len(world.begun()) == 2


def test_a_builder_that_is_killed_is_begun_again_but_not_for_ever(
    world: World, until: Until, tmp_path: Path
) -> None:
    (world.conda() / "wait").touch()
    asset, server = conda("mine", SYSTEM.format(name="numpy")), world.server()

    def told() -> Failure | None:
        try:
            assert server.runtime(asset, serving=False, log=tmp_path / "log") is None
        except Failure as exc:
            return exc
        for place in (world.home / "processes").glob("environment-*/ranks.json"):
            if len(world.begun()) > len(killed):
                killed.append(json.loads(place.read_text())[0]["pid"])
                os.kill(killed[-1], signal.SIGKILL)
        return None

    killed: list[int] = []
    found = until(told)
    assert isinstance(found, Unavailable) and len(killed) == environments.MOST_TRIES


def test_a_build_that_nobody_waits_for_is_stopped_and_leaves_no_folder(
    world: World, until: Until, tmp_path: Path
) -> None:
    (world.conda() / "wait").touch()
    asset, server = conda("mine", SYSTEM.format(name="numpy")), world.server()
    asked = lambda: server.runtime(asset, serving=False, log=tmp_path / "log")  # noqa: E731
    (pid,) = until(lambda: asked() is None and world.begun())
    server.minding.ignored = 0.1
    until(lambda: not Path(f"/proc/{pid}").exists())
    until(lambda: not server.minding._minds)
    assert not [path for path in (world.home / "environments").iterdir() if path.is_dir()]


def test_two_are_built_at_once_and_the_third_waits(
    world: World, until: Until, tmp_path: Path
) -> None:
    (world.conda() / "wait").touch()
    assets = [conda(name, SYSTEM.format(name=name)) for name in ("a", "b", "c")]
    server = world.server()
    for asset in assets * 2:
        assert server.runtime(asset, serving=False, log=tmp_path / asset.name) is None
    until(lambda: len(world.begun()) == environments.MOST_BUILDS)
    assert not (tmp_path / "c").exists()
    (world.bin / "wait").unlink()
    assert had(server, until, assets[2], tmp_path / "c").python


def test_what_is_ready_is_found_by_a_look_and_taken_away_is_built_again(
    world: World, until: Until, tmp_path: Path
) -> None:
    world.conda()
    asked = SYSTEM.format(name="numpy") + "\nvariables: {MODE: quiet}"
    asset, server = conda("mine", asked), world.server()
    found = had(server, until, asset, tmp_path / "log")
    assert found.variables == {"MODE": "quiet"}
    subprocess.run(["rm", "-r", str(Path(found.python).parents[1])], check=True)
    assert had(server, until, asset, tmp_path / "log2") == found
    assert len(world.begun()) == 2


# What a job installs


def test_what_a_command_installs_is_the_jobs_own(
    world: World, until: Until, tmp_path: Path
) -> None:
    wheel(world.wheels, "tabulate", "99.0")
    server = world.server()
    mine = server.apart(environments.OWN, tmp_path / "layer")
    assert server.apart(environments.OWN, tmp_path / "layer") == mine and not mine.own
    line = f"pip install --no-index --find-links {world.wheels} tabulate==99.0 && python -c '{SAY}'"
    ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=mine.env)
    assert ran.stdout.splitlines()[-1] == "99.0 True True", ran
    assert said(environments.OWN, "import tabulate; print(tabulate.__version__)") != "99.0"
    for program in ("torchrun", "accelerate"):  # of ours, run by the job's own interpreter
        first = (tmp_path / "layer" / "bin" / program).read_text().splitlines()[0]
        assert first == f"#!{mine.python}"


# What they cost


def test_what_is_built_is_listed_with_its_size_and_goes_unless_it_is_used(
    world: World, until: Until, tmp_path: Path
) -> None:
    world.conda()
    asset, server = conda("mine", SYSTEM.format(name="numpy=1.2")), world.server()
    found = had(server, until, asset, tmp_path / "log")
    folder = Path(found.python).parents[1]
    (folder / "own").write_bytes(b"x" * 8192)
    (folder / "linked").hardlink_to(folder / "own")
    (folder / "alone").write_bytes(b"x" * 4096)
    world.engine.start(
        Process(
            id="job-1",
            command=["sleep", "600"],
            cwd=tmp_path,
            log=tmp_path / "job.txt",
            env=found.env,
        )
    )
    (one,) = built.all(world.home)
    assert one.used and "numpy==1.2.*" in one.asks and one.shared >= 16384 > one.bytes >= 4096
    refused = argparse.Namespace(home=str(world.home), key=[one.key], unused=False, json=True)
    with pytest.raises(Refused, match="used by a process"):
        cli_environments.remove(refused)
    world.engine.stop("job-1")
    until(lambda: world.engine.report("job-1").state == "exited")
    refused.key, refused.unused = [], True
    cli_environments.remove(refused)
    assert not folder.exists() and [*(world.home / "environments").iterdir()] == []
    assert had(server, until, asset, tmp_path / "log2") == found


def test_the_end_of_a_home_ends_what_is_being_built(
    world: World, until: Until, tmp_path: Path
) -> None:
    (world.conda() / "wait").touch()
    asset, server = conda("mine", SYSTEM.format(name="numpy")), world.server()
    (pid,) = until(lambda: server.runtime(asset, serving=False) or world.begun())
    ending._end_rest(SimpleNamespace(engine=world.engine))
    assert not Path(f"/proc/{pid}").exists()


# With a container engine


def test_a_context_is_built_and_a_layer_for_the_scoring_host_laid_over_it(
    world: World, until: Until, tmp_path: Path
) -> None:
    fake_docker.install(world.bin)
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM x\nRUN make it\n")
    asset = named("mine", kind="build", location="context", dockerfile="Dockerfile")
    found = had(world.server(), until, asset, tmp_path / "log")
    assert (found.image.partition(":")[0], found.python) == ("finery-environment", "python")
    assert not found.warnings and "RUN make it" in (tmp_path / "log").read_text()
    served = had(world.server(), until, asset, tmp_path / "log2", serving=True)
    assert served.image != found.image
    layer = f"RUN python -m pip install --no-cache-dir {' '.join(images.HOST)}"
    assert layer in (tmp_path / "log2").read_text()


def test_an_image_is_pulled_once_and_a_conda_file_laid_over_it(
    world: World, until: Until, tmp_path: Path
) -> None:
    fake_docker.install(world.bin)
    server = world.server()
    found = had(server, until, named("a", kind="image", image="python:3.12"), tmp_path / "1")
    assert found.image == "python:3.12"
    asset = named("b", kind="conda", image="python:3.12", conda="dependencies: [six]")
    found = had(server, until, asset, tmp_path / "2")
    assert found.image.startswith("finery-environment:")
    assert found.python == "/opt/finery-env/bin/python"
    verbs = [call[0] for call in fake_docker.told(world.bin)]
    assert verbs.count("pull") == 1 and verbs.count("build") == 1


@pytest.mark.parametrize(
    ("spec", "cause"),
    [
        ({"kind": "build"}, "Dockerfile line 2: RUN false it failed: it said no"),
        ({"kind": "image", "image": "nowhere/x:1"}, "manifest for nowhere/x:1 not found"),
    ],
)
def test_the_line_that_failed_is_named(
    world: World, until: Until, tmp_path: Path, spec: dict[str, str], cause: str
) -> None:
    fake_docker.install(world.bin)
    (tmp_path / "Dockerfile").write_text("FROM x\nRUN false it\n")
    found = failure(world.server(), until, named("mine", **spec), tmp_path / "log")
    assert isinstance(found, Invalid) and cause in str(found), str(found)


def test_a_client_without_a_running_engine_counts_as_none(world: World) -> None:
    fake_docker.install(world.bin, running=False)
    found = world.server().runtime(named("mine", kind="image", image="python:3.11"), serving=False)
    assert found and found.own and "no container engine runs here" in found.warnings[0]
