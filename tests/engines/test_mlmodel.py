"""What an MLflow model asks for is read from its own files, and from no others.

Only the last tests build anything: an environment is a real process's work, as in
`test_environments.py`.  A model that our recipes wrote is made by MLflow itself, because
what it writes is what is looked at.
"""

from __future__ import annotations

import os
import platform
import tracemalloc
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_environments import World, failure, had, said, wheel, world

from finery.core.assets import Asset
from finery.core.errors import Failure, Invalid, NotSupported, Unavailable
from finery.engines import environments, mlmodel, requirements, sharing, wanted
from finery.recipes import convert, vqa_convert

Until = Callable[..., Any]
__all__ = ["world"]

MINOR = ".".join(platform.python_version_tuple()[:2])
PANDAS = sharing.packages()["pandas"].version
MANIFEST = """flavors:
  python_function:
    env: {conda: conda.yaml, virtualenv: python_env.yaml}
    loader_module: mlflow.sklearn
    python_version: 3.11.7
mlflow_version: 3.17.2
"""
CONDA = (
    "dependencies: [python={python}, 'pip<=23.2.1', pip: [mlflow, '{lines}']]\nname: mlflow-env\n"
)


def write(folder: Path, **files: str) -> Path:
    """Write a model: `conda_yaml` is `conda.yaml`; a manifest unless there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"MLmodel": MANIFEST, **files}.items():
        stem, _, suffix = name.rpartition("_")
        (folder / (f"{stem}.{suffix}" if stem else name)).write_text(text)
    return folder


def lines(folder: Path) -> tuple[str, ...]:
    found = mlmodel.read(folder)
    assert found is not None
    return found.asks.lines


# Which files


def test_the_conda_file_comes_first_and_the_patch_of_its_python_is_let_go(tmp_path: Path) -> None:
    conda = CONDA.format(python="3.10.4", lines="six==1.0")
    write(tmp_path, conda_yaml=conda, requirements_txt="seven==2.0")
    found = mlmodel.read(tmp_path)
    assert found and found.asks.python == "==3.10.*" and found.conda == conda
    assert found.asks.lines == ("mlflow", "six==1.0")  # and no pip, which no model calls


def test_without_one_it_is_the_python_file_and_its_requirements(tmp_path: Path) -> None:
    env = "python: '3.10'\nbuild_dependencies: [pip==1]\ndependencies: [-r requirements.txt]\n"
    write(tmp_path, python_env_yaml=env, requirements_txt="mlflow==3.1\nsix==1.0\n")
    found = mlmodel.read(tmp_path)
    assert found and (found.asks.python, found.conda) == ("==3.10.*", "")
    assert found.asks.lines == ("mlflow==3.1", "six==1.0")
    write(tmp_path, python_env_yaml=env.replace("'3.10'", "3.10.7"))
    found = mlmodel.read(tmp_path)
    assert found and found.asks.python == "==3.10.*"


def test_requirements_alone_will_do_and_what_loads_it_is_added(tmp_path: Path) -> None:
    assert lines(write(tmp_path, requirements_txt="six==1.0")) == ("six==1.0", "mlflow")
    asked = "mlflow-skinny==3.1\nnumpy"
    assert lines(write(tmp_path, requirements_txt=asked))[-2:] == ("numpy", "pandas")


def test_the_manifest_says_what_the_files_are_called(tmp_path: Path) -> None:
    manifest = "flavors: {python_function: {env: {conda: mine.yaml}}}"
    mine = CONDA.format(python="3.11", lines="six==2.0")
    write(tmp_path, MLmodel=manifest, mine_yaml=mine, conda_yaml="dependencies: [nothing]")
    assert lines(tmp_path)[-1] == "six==2.0"
    write(tmp_path, MLmodel="flavors: {python_function: {env: mine.yaml}}")
    assert lines(tmp_path)[-1] == "six==2.0"


def test_a_model_in_the_only_folder_is_found_and_one_that_says_nothing_is_none(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a", requirements_txt="six")
    assert lines(tmp_path)[0] == "six"
    assert mlmodel.read(write(tmp_path / "b")) is None
    assert mlmodel.read(tmp_path / "c") is None


@pytest.mark.parametrize("kind", [convert.CHAT, vqa_convert.VQA], ids=lambda kind: kind.task)
def test_what_our_own_recipes_made_asks_for_nothing(tmp_path: Path, kind: convert.Kind) -> None:
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "config.json").write_text("{}")
    made = tmp_path / "made"
    with warnings.catch_warnings():  # MLflow warns of its own type hints
        warnings.simplefilter("ignore", UserWarning)
        convert._describe(tmp_path / "tuned", made, kind, adapter=False)
    convert._clean(made)
    assert (made / "conda.yaml").exists() and mlmodel.read(made) is None
    # Another's code by the same name does not count as ours.
    manifest = (made / "MLmodel").read_text().replace("is_finetuned_model: true", "other: 1")
    (made / "MLmodel").write_text(manifest)
    assert mlmodel.read(made) is not None


# From strangers


@pytest.mark.parametrize(
    ("files", "kind", "match"),
    [
        ({"conda_yaml": "a" * (300 << 10)}, Invalid, "larger than"),
        ({"requirements_txt": "six\n" * (300 << 10)}, Invalid, "larger than"),
        ({"requirements_txt": "six\n" * 3000}, Invalid, "more than 2000 lines"),
        ({"python_env_yaml": "[" * 100_000}, Invalid, "no YAML"),
        ({"python_env_yaml": "python: ; rm -rf /"}, Invalid, "no version"),
        ({"python_env_yaml": "dependencies: {a: b}"}, Invalid, "no list of texts"),
        ({"python_env_yaml": "dependencies: [-r ../out.txt]"}, Invalid, "outside"),
        ({"requirements_txt": "-r /etc/hostname"}, Invalid, "outside"),
        ({"requirements_txt": "-c ../out.txt"}, Invalid, "outside"),
        ({"requirements_txt": "-r requirements.txt"}, Invalid, "deep|lines"),
        ({"requirements_txt": "-e ../other"}, Invalid, "outside"),
        ({"requirements_txt": "-e ./inside"}, NotSupported, "inside: have it as a wheel"),
        ({"requirements_txt": "six @ file:///etc/x.whl"}, Invalid, "outside"),
        ({"requirements_txt": "--index-url file:///etc"}, NotSupported, "https://"),
        ({"requirements_txt": "--install-option=x"}, NotSupported, "--install-option"),
        ({"requirements_txt": "six==${HOME}"}, NotSupported, "variables"),
        ({"conda_yaml": "dependencies: [pip: [-r ../out.txt]]"}, Invalid, "outside"),
        ({"MLmodel": "flavors: {python_function: {env: ../out.txt}}"}, Invalid, "outside"),
    ],
)
def test_what_makes_no_sense_or_leads_outside_is_refused(
    tmp_path: Path, files: dict[str, str], kind: type[Failure], match: str
) -> None:
    (tmp_path / "out.txt").write_text("six")
    (tmp_path / "other").mkdir()
    (tmp_path / "model" / "inside").mkdir(parents=True)
    with pytest.raises(kind, match=match):
        mlmodel.read(write(tmp_path / "model", **files))


def test_a_link_that_leads_outside_and_a_pipe_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "model")
    (tmp_path / "out.yaml").write_text("dependencies: [six]")
    (tmp_path / "model" / "conda.yaml").symlink_to("../out.yaml")
    with pytest.raises(Invalid, match="outside"):
        mlmodel.read(tmp_path / "model")
    (tmp_path / "model" / "conda.yaml").unlink()
    os.mkfifo(tmp_path / "model" / "conda.yaml")
    with pytest.raises(Invalid, match="no file"):
        mlmodel.read(tmp_path / "model")


@pytest.mark.parametrize("manifest", ["[" * 100_000, "- a", "flavors: 3", "\x00", "a" * (5 << 20)])
def test_a_manifest_that_says_nothing_leaves_the_usual_names(tmp_path: Path, manifest: str) -> None:
    assert lines(write(tmp_path, MLmodel=manifest, requirements_txt="six"))[0] == "six"


@pytest.mark.parametrize(
    "field", ["env: {conda: *l}", "env: {virtualenv: *l}", "model_code_path: *l"]
)
def test_a_name_that_is_a_list_without_end_is_none(tmp_path: Path, field: str) -> None:
    doubled = "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghijkl"))
    manifest = f"a: &a [a, a, a, a]\n{doubled}flavors: {{python_function: {{{field}}}}}"
    model = write(tmp_path, MLmodel=manifest, requirements_txt="six")
    tracemalloc.start()
    try:
        assert lines(model)[0] == "six"
        assert tracemalloc.get_traced_memory()[1] < 8 << 20  # written out it is 80 MB and more
    finally:
        tracemalloc.stop()


def test_files_of_the_model_are_its_own_and_go_into_its_name(tmp_path: Path) -> None:
    names = []
    for place, text in (("a", "1"), ("b", "1"), ("c", "2")):
        write(
            tmp_path / place, conda_yaml=CONDA.format(python=MINOR, lines="./x-1-py3-none-any.whl")
        )
        (tmp_path / place / "x-1-py3-none-any.whl").write_text(text)
        asked = wanted.of_model(tmp_path / place, serving=True)
        assert asked.folder == str(tmp_path / place) and not asked.ours
        names.append(asked.key())
    assert names[0] == names[1] != names[2]


# Whether it is ours


@pytest.mark.parametrize(
    ("python", "asked", "ours"),
    [
        (f"{MINOR}.0", f"pandas=={PANDAS}", True),
        (f"{MINOR}.99", "pandas", True),
        ("3.7.1", "pandas", False),
        (MINOR, "pandas==0.1", False),
        (MINOR, "nosuchpackage", False),
        (MINOR, "pandas[excel]", False),
        (MINOR, "-c pins.txt", False),
    ],
)
def test_it_is_our_own_interpreter_where_that_is_what_it_asks_for(
    tmp_path: Path, python: str, asked: str, ours: bool
) -> None:
    write(tmp_path, conda_yaml=CONDA.format(python=python, lines=asked), pins_txt="pandas==0.1")
    found = wanted.of_model(tmp_path, serving=True)
    assert found.ours is ours and not found.warnings
    told = wanted.of_model(tmp_path, serving=True, own=True)
    assert told.ours and bool(told.warnings) is not ours


@pytest.mark.parametrize(
    ("asked", "by_conda"),
    [
        ("dependencies: [gcc, pip: [mlflow, six==1.0]]", True),
        ("dependencies: [gcc, pip: [six==1.0]]", False),  # MLflow is not in what conda would read
        ("dependencies: [gcc, pip: [mlflow, ./x-1-py3-none-any.whl]]", False),
    ],
)
def test_a_conda_program_makes_only_what_is_whole_without_us(
    tmp_path: Path, asked: str, by_conda: bool
) -> None:
    write(tmp_path, conda_yaml=asked)
    (tmp_path / "x-1-py3-none-any.whl").touch()
    found = wanted.of_model(tmp_path, serving=True, conda_here=True)
    assert (found.by_conda, bool(found.conda)) == (by_conda, by_conda)
    assert bool(found.warnings) is not by_conda and not found.ours


def model(location: str, **fields: Any) -> Asset:
    given = {"scope": "w", "kind": "model", "name": "mine", "version": "1"}
    return Asset(**{**given, "location": location, **fields})


def test_a_model_that_another_engine_serves_is_not_asked(world: World, tmp_path: Path) -> None:
    write(tmp_path / "chat", requirements_txt="nosuchpackage")
    server = world.server(kind=lambda folder: "chat")
    assert server.runtime(model("chat"), serving=True) == environments.OWN
    assert world.server().runtime(model("gone"), serving=True) == environments.OWN


def test_what_is_not_ours_can_be_wanted_to_be_and_is_named(world: World, tmp_path: Path) -> None:
    asked = f"python: 3.7.2\ndependencies: ['pandas=={PANDAS}', sixpence==1.0, numpy==0.1]"
    write(tmp_path / "m", python_env_yaml=asked)
    found = world.server(own_packages=True).runtime(model("m"), serving=True)
    assert found and found.own
    python, sixpence, numpy = found.warnings
    assert "Python ==3.7.*" in python and "sixpence==1.0: it is not here" in sixpence
    assert f"numpy==0.1: numpy {sharing.packages()['numpy'].version} is here" in numpy
    write(tmp_path / "n", conda_yaml="dependencies: [pip: [--install-option=x]]")
    found = world.server(own_packages=True).runtime(model("n"), serving=True)
    assert found and found.own and "--install-option" in found.warnings[0]
    write(tmp_path / "o", conda_yaml="dependencies: [python=oops]")
    found = world.server(own_packages=True).runtime(model("o"), serving=True)
    assert found and found.own and "'==oops" in found.warnings[0]
    with pytest.raises(NotSupported, match="strict.*sixpence"):
        world.server(own_packages=True, strict=True).runtime(model("m"), serving=True)


def test_what_our_own_python_lacks_is_known_without_building(world: World, tmp_path: Path) -> None:
    write(tmp_path / "has", requirements_txt=f"mlflow\npandas=={PANDAS}")
    write(tmp_path / "lacks", requirements_txt="sixpence==1.0")
    write(tmp_path / "odd", conda_yaml="dependencies: [python=oops]")
    server, ours = world.server(), world.server(own_packages=True)
    assert [server.lacking(model(name)) for name in ("has", "lacks", "odd")] == [(), None, None]
    assert "sixpence==1.0: it is not here" in " ".join(ours.lacking(model("lacks")) or ())
    assert not server.home.exists()


@pytest.mark.parametrize(
    ("asked", "old"),
    [
        (["mlflow==2.9.2"], True),
        (["six", "mlflow-skinny[x] == 2.15.1"], True),
        (["mlflow<2"], True),
        (["mlflow==1.30.0", "setuptools==65.5"], False),
        (["mlflow==2.16.0"], False),
        (["mlflow==2.22.0"], False),
        (["mlflow<3,>=2.4"], False),
        (["mlflow==10.1"], False),
        (["mlflow", "mlflow===what", "mlflow==="], False),
    ],
)
def test_an_old_mlflow_has_what_it_imports_and_does_not_ask_for(
    asked: list[str], old: bool
) -> None:
    assert requirements.unsaid(asked) == (["setuptools<81"] if old else [])


# Built


def test_a_model_gets_the_environment_that_it_asks_for_and_shares_it(
    world: World, until: Until, tmp_path: Path
) -> None:
    for name in ("mlflow", "sixpence", "httptools", "uvloop", "werkzeug"):
        wheel(world.wheels, name, "1.0")
    wheel(world.wheels, "setuptools", "80.0")
    wheel(world.wheels, "setuptools", "99.0")
    asked = CONDA.format(python=f"{MINOR}.1", lines="sixpence==1.0', 'mlflow==1.0")
    for place in ("a", "b"):
        write(tmp_path / place, conda_yaml=asked)
    server = world.server()
    found = had(server, until, model("a"), tmp_path / "log", serving=True)
    assert not found.own and not found.warnings
    assert said(found, "import sixpence; print(sixpence.version)") == "1.0"
    assert said(found, "import setuptools; print(setuptools.version)") == "80.0"
    assert said(found, "import finery.serving; print(1)") == "1"  # the host is let in
    assert server.runtime(model("b", name="other"), serving=True) == found


def test_what_cannot_be_had_is_told_with_what_to_do(
    world: World, until: Until, tmp_path: Path
) -> None:
    write(tmp_path / "m", requirements_txt="mlflow\nnosuchpackage==1.0")
    server = world.server()
    exc = failure(server, until, model("m"), tmp_path / "log", serving=True)
    assert "the environment of the model 'mine' could not be built" in str(exc)
    assert "nosuchpackage" in str(exc) and "name a curated environment" in str(exc)
    write(tmp_path / "n", conda_yaml="3")
    with pytest.raises(Invalid, match="of its model: the conda file is no mapping.*curated"):
        server.runtime(model("n", anonymous=True, name="0af3"), serving=True)
    assert isinstance(exc, Invalid | Unavailable)


def test_a_python_that_cannot_be_had_is_warned_of_and_an_error_where_it_is_strict(
    world: World, until: Until, tmp_path: Path
) -> None:
    for name in ("mlflow", "setuptools", "httptools", "uvloop", "werkzeug"):
        wheel(world.wheels, name, "1.0")
    write(tmp_path / "m", python_env_yaml="python: 3.7.2\ndependencies: [mlflow==1.0]")
    found = had(world.server(), until, model("m"), tmp_path / "log", serving=True)
    assert "Python ==3.7.* was asked for" in found.warnings[0]
    with pytest.raises(NotSupported, match="strict.*3.7"):
        world.server(strict=True).runtime(model("m"), serving=True)
