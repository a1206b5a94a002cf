"""From a job to the process that does it."""

from pathlib import Path

import pytest

from finery.core import launch
from finery.core.compute import Runtime
from finery.core.errors import Invalid, NotFound
from finery.core.jobs import Command, Input, Job


def test_a_path_with_a_space_is_one_word_and_is_not_quoted_twice():
    places = {"o": Path("/an output")}
    given = {"d": Input(value="file:x", type="uri_file"), "n": Input(value="1 2")}
    line = """run ${{inputs.d}} "${{inputs.d}}" '${{outputs.o}}' ${{outputs.o}} \\"${{inputs.d}} """
    made = Command(command=line + "${{inputs.n}}", inputs=given)
    found = launch.render(made, {"d": "/my data", "n": "1 2"}, places)
    assert found == """run '/my data' "/my data" '/an output' '/an output' \\"'/my data' 1 2"""


def rendered(command, values, places=None, optional=()):
    return launch.render(Command(command=command, optional=optional), values, places or {})


def test_inputs_and_outputs_are_filled_in():
    line = "train --lr ${{inputs.lr}} --out ${{ outputs.model }} --also ${{inputs.lr.path}}"
    assert (
        rendered(line, {"lr": "0.1"}, {"model": Path("/m")}) == "train --lr 0.1 --out /m --also 0.1"
    )


def test_a_part_in_brackets_drops_out_when_its_input_is_unset():
    line = "train $[[--a '${{inputs.a}}']] $[[--b ${{inputs.b}}]]"
    assert rendered(line, {"b": "2"}, optional=("a", "b")) == "train  --b 2"


def test_a_name_that_the_job_does_not_have_is_refused():
    with pytest.raises(Invalid, match=r"inputs\.nobody"):
        rendered("train ${{inputs.nobody}}", {})


def test_what_the_code_writes_to_outputs_is_kept_and_what_it_brought_there_too(
    store, files, tmp_path
):
    code = files.path("w", "blob", "code")
    (code / "outputs").mkdir(parents=True)
    (code / "outputs" / "brought").write_text("x")
    (code / "train.py").write_text("pass")
    job = Job(name="j", workspace="w", spec=Command(command="true", code="file:blob/code"))
    for _ in range(2):  # a step may be repeated
        place = launch.prepare(store, files, tmp_path, job)
    (place.work / "outputs" / "made").write_text("y")
    assert {file.name for file in (place.artifacts / "outputs").iterdir()} == {"brought", "made"}
    assert (code / "outputs" / "brought").exists()


def test_an_input_that_is_not_there_is_named(store, files, tmp_path):
    inputs = {"data": Input(value="file:blob/nothing", type="uri_file")}
    job = Job(name="j", workspace="w", spec=Command(command="true", inputs=inputs))
    place = launch.prepare(store, files, tmp_path, job)
    with pytest.raises(NotFound, match="input 'data'"):
        launch.inputs(store, files, place, job)


def test_a_recipe_needs_no_shell_and_may_start_warm(store, files, tmp_path):
    import sys

    job = Job(name="j", workspace="w", spec=Command(command="-"))
    place = launch.prepare(store, files, tmp_path, job)
    here = Path(sys.executable)

    def process(line):
        return launch.process(job, place, line, runtime=Runtime(python=str(here), own=True), env={})

    plain = process("python -m finery.recipes.convert --model_path '/a b'")
    assert plain.warm and plain.command == [
        str(here),
        "-m",
        "finery.recipes.convert",
        "--model_path",
        "/a b",
    ]
    for line in (
        "python -m finery.recipes.convert; rm x",
        "python train.py",
        "python -m finery.recipes.convert $HOME",
    ):
        assert process(line).command == ["bash", "-c", line]
        assert not process(line).warm
