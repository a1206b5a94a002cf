"""From a job to the process that does it."""

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from finery.core import jobs, launch
from finery.core.compute import Capacity, Runtime
from finery.core.errors import Conflict, Invalid, NotFound, Unavailable
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


@pytest.fixture
def data(files):
    """A folder of data in a datastore, as a location."""
    path = files.path("w", "blob", "data")
    path.mkdir(parents=True)
    (path / "a.txt").write_text("a")
    return "file:blob/data"


def given(store, files, home, **inputs):
    """Return what stands for each input in the command of a job that has these."""
    job = Job(name="j", workspace="w", spec=Command(command="true", inputs=inputs))
    place = launch.prepare(store, files, home, job)
    return place, launch.inputs(store, files, place, job)


def test_a_download_is_the_jobs_own_and_goes_with_it(store, files, tmp_path, data):
    copy = Input(value=data, type="uri_folder", mode="download")
    one = Input(value=f"{data}/a.txt", type="uri_file", mode="download")
    for _ in range(2):  # a step may be repeated
        place, found = given(store, files, tmp_path, copy=copy, one=one)
    Path(found["copy"], "a.txt").write_text("changed")
    launch.layer(place).mkdir()  # what its command has installed
    assert Path(found["one"]).read_text() == "a"
    assert files.path("w", "blob", "data/a.txt").read_text() == "a"
    launch.clear(place)
    launch.clear(place)
    assert not Path(found["copy"]).exists() and place.work.exists()
    assert not launch.layer(place).exists()


def test_a_copy_has_no_link_that_leads_out_of_its_datastore(store, files, tmp_path, data):
    secret = tmp_path / "a.key"
    secret.write_text("secret")
    folder = files.path("w", "blob", "data")
    (folder / "inside").symlink_to("a.txt")
    (folder / "outside").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    (folder / "nowhere").symlink_to("nothing")
    (folder / "circle").symlink_to(".")
    copy = Input(value=data, type="uri_folder", mode="download")
    _, found = given(store, files, tmp_path, copy=copy)
    names = {file.name: file.read_text() for file in Path(found["copy"]).iterdir()}
    assert names == {"a.txt": "a", "inside": "a"}


def test_outputs_that_the_code_brings_are_kept_as_the_links_that_they_are(store, files, tmp_path):
    (tmp_path / "a.key").write_text("secret")
    code = files.path("w", "blob", "code")
    (code / "outputs").mkdir(parents=True)
    (code / "outputs" / "link").symlink_to(tmp_path / "a.key")
    job = Job(name="j", workspace="w", spec=Command(command="true", code="file:blob/code"))
    assert (launch.prepare(store, files, tmp_path, job).artifacts / "outputs/link").is_symlink()


def test_a_copy_that_was_interrupted_is_made_anew(store, files, tmp_path, data):
    copy = Input(value=data, type="uri_folder", mode="download")
    place = launch.folder(tmp_path, files, Job(name="j", workspace="w", spec=Command(command="x")))
    half = place.inputs / "copy" / ".data.part"
    half.mkdir(parents=True)
    (half / "rubbish").write_text("x")
    _, found = given(store, files, tmp_path, copy=copy)
    assert [file.name for file in Path(found["copy"]).iterdir()] == ["a.txt"]


def test_a_mount_is_the_data_itself(store, files, tmp_path, data):
    _, found = given(
        store, files, tmp_path, d=Input(value=data, type="uri_folder", mode="ro_mount")
    )
    assert found["d"] == str(files.path("w", "blob", "data"))


def test_an_address_is_given_as_it_was_written(store, files, tmp_path):
    direct = Input(value="file:blob/x", type="uri_folder", mode="direct", address="store://x")
    assert given(store, files, tmp_path, d=direct)[1] == {"d": "store://x"}
    with pytest.raises(Invalid, match="input 'd'"):
        given(store, files, tmp_path, d=Input(value="file:blob/x", type="uri_file", mode="direct"))


def test_a_variable_may_stand_for_an_input_or_an_output():
    env = {"A": "${{inputs.x}}", "B": "${{outputs.y}}", "C": "${{inputs.unset}}", "D": "plain"}
    found = launch.variables(env, {"x": "/data"}, {"y": Path("/out")})
    assert found == {"A": "/data", "B": "/out", "D": "plain"}


@pytest.mark.parametrize(
    "text, size",
    [("", None), ("2g", 2 << 30), ("512M", 512 << 20), ("1.5 GB", 3 << 29), ("64", 64)],
)
def test_a_size_is_read_as_docker_reads_it(text, size):
    assert launch.size(text) == size


@pytest.mark.parametrize("text", ["plenty", "-1g", "2x", "1e9"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(Invalid) as caught:
        launch.size(text)
    assert caught.value.target == "resources.shm_size"


def test_ranks_are_spread_over_nodes_as_far_as_there_are_ranks():
    asked = Command(command="x", nodes=2, ranks=2)
    assert [launch.nodes(asked, ranks) for ranks in (4, 2, 3, 1)] == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("line", "does"),
    [
        ("pip install -r requirements.txt && python train.py", True),
        ("python -m pip --quiet install six", True),
        ("pip3 uninstall -y six", True),
        ("python train.py --pipe install", False),
        ("pip list", False),
    ],
)
def test_a_command_that_installs_is_known(line: str, does: bool) -> None:
    assert launch.installs(line) == does


@pytest.fixture
def dripping():
    """The address of something that promises much, says a byte at a time, and may break off."""
    over, off = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip():
            taken, _ = listening.accept()
            with taken:
                taken.recv(4096)
                taken.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
                while not off.wait(0.02):
                    taken.sendall(b"x")

        def run():
            try:
                drip()
            except OSError:
                pass  # the other side left
            over.set()

        threading.Thread(target=run, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/data", off, over
        off.set()


def fetching(address):
    return Command(command="true", inputs={"d": Input(value=address, type="uri_file")})


def test_a_slow_input_is_let_go_when_its_job_is_cancelled(
    store, files, tmp_path, dripping, until, monkeypatch
):
    address, _, over = dripping
    monkeypatch.setattr(launch, "_LOOK", 0.05)
    jobs.create(store, Job(name="j", workspace="w", spec=fetching(address)))
    job = jobs.move(store, jobs.get(store, "j"), "preparing")
    place, raised = launch.prepare(store, files, tmp_path, job), []

    def fetch():
        try:
            launch.inputs(store, files, place, job)
        except Conflict as exc:
            raised.append(exc)

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    until(lambda: [*place.inputs.rglob(".data.part")])
    jobs.cancel(store, "j")
    thread.join(60)
    assert raised and over.wait(60)
    assert not [file for file in place.inputs.rglob("*") if file.is_file()]


def test_a_slow_input_is_given_up_after_a_while(store, files, tmp_path, dripping, monkeypatch):
    monkeypatch.setattr(launch, "_PATIENCE", 0)
    job = Job(name="j", workspace="w", spec=fetching(dripping[0]))
    place = launch.prepare(store, files, tmp_path, job)
    with pytest.raises(Unavailable, match="longer than"):
        launch.inputs(store, files, place, job)


def test_an_input_that_breaks_off_is_no_input(store, files, tmp_path, dripping):
    address, off, _ = dripping
    off.set()
    job = Job(name="j", workspace="w", spec=fetching(address))
    place = launch.prepare(store, files, tmp_path, job)
    with pytest.raises(Unavailable, match="broke off 100000 bytes"):
        launch.inputs(store, files, place, job)


def test_a_slow_input_does_not_keep_a_server_that_ends(house, dripping, until):
    house.submit(spec=fetching(dripping[0]))
    house.supervisor.tick()
    until(lambda: [*house.home.rglob(".data.part")])
    house.supervisor.end()
    assert house.status() == "preparing"
    assert not [*house.home.rglob(".data.part")]


def test_a_source_that_says_nothing_keeps_no_server_that_ends(house, until):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        house.submit(spec=fetching(f"http://127.0.0.1:{listening.getsockname()[1]}/data"))
        house.supervisor.tick()
        taken, _ = listening.accept()
        with taken:
            begun = time.monotonic()
            house.supervisor.end()
            assert time.monotonic() - begun < 45, "its own patience is 60 seconds"
    assert house.status() == "preparing"


@pytest.mark.parametrize("asked", ["code", "download"])
def test_a_copy_is_left_between_files_when_the_server_ends(store, files, tmp_path, data, asked):
    for name in "bcd":
        files.path("w", "blob", f"data/{name}.txt").write_text(name)
    spec = Command(command="x", code=data)
    if asked == "download":
        spec = Command(command="x", inputs={"d": Input(value=data, mode="download", type="u")})
    job, asked_for = Job(name="j", workspace="w", spec=spec), []

    def over():
        asked_for.append(1)
        return len(asked_for) > 3

    with pytest.raises(Conflict, match="the server ends"):
        place = launch.prepare(store, files, tmp_path, job, over=over)
        launch.inputs(store, files, place, job, over=over)
    copies = [*(tmp_path / "jobs").rglob("?.txt")]
    assert 0 < len(copies) < 4


def test_a_pipe_among_the_inputs_is_said_and_holds_up_nobody(store, files, tmp_path, data):
    os.mkfifo(files.path("w", "blob", "data") / "pipe")
    with pytest.raises(OSError, match="is no file"):
        given(store, files, tmp_path, d=Input(value=data, type="uri_folder", mode="download"))


def fetches():
    return sum(thread.name == "fetch" for thread in threading.enumerate())


def test_slow_inputs_hold_up_no_job_that_runs(house, engine, until):
    """The sources take the connection and say nothing."""
    engine.machine = Capacity(cpus=16, memory=1, gpus=0)
    house.submit("runs")
    house.tick()
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/data"
        for number in range(9):
            house.submit(f"slow{number}", spec=fetching(address))
        until(lambda: house.supervisor.tick() and fetches() >= 9)
        engine.exits("job-runs")
        until(lambda: house.supervisor.tick() and house.status("runs") == "completed")
        house.supervisor.end()
