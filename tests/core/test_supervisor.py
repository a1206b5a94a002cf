"""The loop over jobs, with an engine in memory: no process is started."""

from __future__ import annotations

import errno
from dataclasses import asdict, replace

import pytest

from finery.core import assets, compute, jobs, launch
from finery.core.assets import Asset
from finery.core.compute import Capacity, Target
from finery.core.errors import Conflict, Invalid
from finery.core.jobs import Command, Input, Output, Pipeline, Step

# -- one job ---------------------------------------------------------------------------


@pytest.mark.parametrize("after, took", [(0.05, 0.05), (-0.05, 0)])
def test_a_job_took_as_long_as_its_process_whenever_that_is_seen(house, engine, after, took):
    house.submit()
    house.tick()
    begun = jobs.get(house.store, "j").started_at
    engine.exits("job-j", ended_at=begun.timestamp() + after)
    house.restart()
    house.tick(2)
    ended = jobs.get(house.store, "j").ended_at
    assert (ended - begun).total_seconds() == pytest.approx(took, abs=1e-3)
    assert house.tracking.ended["j"] == ended


def test_a_job_goes_through_its_life_one_step_a_tick(house, engine):
    house.submit()
    house.tick()
    assert house.status() == "running"
    process = engine.started["job-j"]
    assert process.command == ["bash", "-c", "run"]
    assert process.env["RUN"] == "j"
    assert process.memory == 900
    house.tick(3)
    assert house.status() == "running"
    engine.exits("job-j")
    house.tick()
    assert house.status() == "finalizing"
    house.tick()
    assert house.status() == "completed"
    assert house.tracking.closed == {"j": "completed"}
    assert engine.forgotten == {"job-j"}


def test_ticks_with_nothing_to_do_change_nothing(house, store, engine):
    house.submit()
    house.tick()
    engine.exits("job-j")
    house.tick(5)
    before = jobs.get(store, "j"), jobs.events(store, "j")
    house.tick(5)
    assert (jobs.get(store, "j"), jobs.events(store, "j")) == before
    assert house.tracking.opened == ["j"]


def test_a_failed_command_says_its_last_line(house, engine):
    house.submit()
    house.tick()
    engine.exits("job-j", 3, said="Traceback\nValueError: row 7 is empty\n\n")
    house.tick()
    assert house.status() == "failed"
    assert house.error() == "ValueError: row 7 is empty (exit status 3)"
    assert "failed: ValueError: row 7 is empty" in house.system_log()
    assert house.tracking.closed == {"j": "failed"}


def test_a_reason_calls_files_of_the_server_by_their_names(house, engine):
    house.submit()
    house.tick()
    said = f"error: {house.home}/files/w/blob/x/train.jsonl, line 7: no messages"
    engine.exits("job-j", 1, said=said)
    house.tick()
    assert house.error() == "train.jsonl, line 7: no messages (exit status 1)"


def test_a_silent_failure_says_its_exit_status(house, engine):
    house.submit()
    house.tick()
    engine.exits("job-j", 9)
    house.tick()
    assert house.error() == "the command ended: exit status 9"


@pytest.mark.parametrize(
    ("known", "why"),
    [
        ({"code": None}, "its keeper or the machine was stopped"),
        ({"code": -9, "reason": "it took more memory than it was given"}, "more memory"),
        ({"code": -15, "timed_out": True}, "ran past its limit of 90 s"),
    ],
)
def test_an_end_that_the_engine_can_explain_is_explained(house, engine, known, why):
    house.submit(spec=Command(command="run", timeout=90))
    house.tick()
    assert engine.started["job-j"].timeout == 90
    engine.exits("job-j", **known)
    house.tick()
    assert house.status() == "failed"
    assert why in house.error()


def test_a_process_that_the_engine_does_not_know_was_lost(house, engine):
    house.submit()
    house.tick()
    del engine.reports["job-j"]
    house.tick()
    assert (house.status(), "lost" in house.error()) == ("failed", True)


def test_a_job_whose_process_cannot_start_fails_and_the_next_one_runs(house, engine):
    house.submit("a")
    engine.trouble = RuntimeError("no forks left")
    house.tick()
    assert house.error("a") == "internal error: RuntimeError: no forks left"
    engine.trouble = None
    house.submit("b")
    house.tick()
    assert house.status("b") == "running"


def test_a_full_disk_is_said_on_the_job(house, engine, files):
    house.submit()
    full = OSError(errno.ENOSPC, "No space left on device", "/home/files")
    engine.trouble = full
    house.tick()
    assert house.error() == "No space left on device: /home/files"


def test_a_job_ends_even_where_its_log_cannot_be_written(house, engine, files):
    house.submit()
    house.tick()
    log = files.path("w", "workspaceartifactstore", "ExperimentRun/dcid.j/system_logs/finery.log")
    log.unlink()
    log.mkdir()  # any write raises OSError now, as on a full disk
    engine.exits("job-j", 1)
    house.tick()
    assert house.status() == "failed"


def test_an_input_that_is_not_there_is_named(house):
    inputs = {"data": Input(value="file:blob/nothing", type="uri_file")}
    house.submit(spec=Command(command="run", inputs=inputs))
    house.tick()
    assert house.error().startswith("input 'data'")
    assert jobs.get(house.store, "j").error["target"] == "inputs.data"


def test_a_job_whose_run_cannot_be_opened_fails_before_anything_is_spent(house, engine):
    house.tracking.trouble = {"open": RuntimeError("the tracking server is down")}
    house.submit()
    house.tick()
    assert (house.status(), engine.started) == ("failed", {})
    assert "the tracking server is down" in house.error()


@pytest.mark.parametrize(("code", "end"), [(0, "completed"), (1, "failed")])
def test_a_run_that_cannot_be_closed_does_not_cost_the_job_its_end(house, engine, code, end):
    house.submit()
    house.tick()
    house.tracking.trouble = {"close": RuntimeError("the tracking server is down")}
    engine.exits("job-j", code)
    house.tick(2)
    assert house.status() == end
    assert "not closed: the tracking server is down" in jobs.get(house.store, "j").warnings[0]


def test_a_restart_in_each_status_loses_nothing(house, engine):
    house.submit()
    for _ in range(3):
        house.restart()
        house.tick()
    assert house.status() == "running"
    engine.exits("job-j")
    for _ in range(2):
        house.restart()
        house.tick()
    assert house.status() == "completed"
    assert engine.started.keys() == {"job-j"}


def test_a_server_killed_just_after_a_start_leaves_the_jobs_folder_to_it(
    house, engine, files, monkeypatch
):
    code = files.path("w", "blob", "code")
    code.mkdir(parents=True)
    (code / "state").write_text("as it came")
    output = {"out": Output()}
    house.submit(spec=Command(command="run", code="file:blob/code", outputs=output))
    with monkeypatch.context() as killed:
        killed.setattr(jobs, "move", killed_at("running", jobs.move))
        house.tick()
    (engine.started["job-j"].cwd / "state").write_text("as the job has it")
    house.restart()
    house.tick()
    assert (engine.started["job-j"].cwd / "state").read_text() == "as the job has it"
    job = jobs.get(house.store, "j")
    assert (job.status, [*job.outputs], house.tracking.opened) == ("running", ["out"], ["j"])


def killed_at(status, move):
    """Return a `move` that never comes to that status: as if the server were killed there."""

    def moved(store, job, to, **given):
        if to == status:
            raise Conflict("killed")
        return move(store, job, to, **given)

    return moved


def test_a_server_killed_just_after_an_end_leaves_no_copies(house, engine, files, monkeypatch):
    files.path("w", "blob", "data").mkdir(parents=True)
    copy = {"d": Input(value="file:blob/data", type="uri_folder", mode="download")}
    house.submit(spec=Command(command="run", inputs=copy))
    house.tick()
    copies = [*(house.home / "jobs").glob("j.inputs/*")]
    engine.exits("job-j")
    house.tick()
    monkeypatch.setattr(engine, "forget", lambda id: 1 / 0)  # what comes right after its end
    house.tick()
    assert (house.status(), len(copies)) == ("completed", 1)
    assert not [*(house.home / "jobs").glob("j.inputs")]


@pytest.mark.parametrize(("asked", "warned"), [("2g", True), ("1g", False), ("", False)])
def test_shared_memory_that_a_job_does_not_get_is_said_on_the_job(
    house, monkeypatch, asked, warned
):
    monkeypatch.setattr(launch, "shared_memory", lambda machine: 1 << 30)
    house.submit(spec=Command(command="run", shm_size=asked))
    house.tick()
    warnings = jobs.get(house.store, "j").warnings
    assert [warning.startswith("shm_size 2g: ") for warning in warnings] == [True] * warned


# -- cancelling ------------------------------------------------------------------------


def test_a_cancelled_queued_job_never_starts(house, engine, store):
    house.submit()
    jobs.cancel(store, "j")
    house.tick(2)
    assert (house.status(), engine.started, house.tracking.closed) == ("cancelled", {}, {})


def test_a_cancelled_job_ends_when_its_process_has(house, engine, store):
    house.submit()
    house.tick()
    engine.obedient = False
    jobs.cancel(store, "j")
    house.tick(2)
    assert (house.status(), engine.alive) == ("cancelling", ["job-j"])
    engine.exits("job-j", -15)
    house.tick()
    assert house.status() == "cancelled"
    assert house.tracking.closed == {"j": "cancelled"}


def test_a_job_cancelled_while_it_is_made_ready_never_runs(house, engine, store):
    house.submit()
    opened = house.tracking.open
    house.tracking.open = lambda job: (jobs.cancel(store, job.name), opened(job))[1]
    house.tick(2)
    assert (house.status(), engine.started) == ("cancelled", {})


# -- admission -------------------------------------------------------------------------


def cluster(store, name="c", **given):
    return compute.create(store, Target(workspace="w", name=name, size="S", **given))


def running(store):
    return [job.name for job in jobs.unfinished(store) if job.status == "running"]


def test_a_compute_runs_so_many_at_a_time_in_their_order(house, store, engine):
    cluster(store, max_instances=2)
    for name in "abc":
        house.submit(name, compute="c")
    house.tick()
    assert running(store) == ["a", "b"]
    engine.exits("job-a")
    house.tick(3)
    assert running(store) == ["b", "c"]


def test_the_machine_bounds_what_all_computes_run(house, store, engine):
    engine.machine = Capacity(cpus=2, memory=1, gpus=0)
    for name in ("x", "y"):
        cluster(store, name, max_instances=9)
    for number in range(4):
        house.submit(f"j{number}", compute="xy"[number % 2])
    house.tick()
    assert running(store) == ["j0", "j1"]


def test_a_full_compute_does_not_hold_up_another(house, store):
    cluster(store, "x", max_instances=1)
    cluster(store, "y", max_instances=1)
    for name, target in (("a", "x"), ("b", "x"), ("c", "y")):
        house.submit(name, compute=target)
    house.tick()
    assert running(store) == ["a", "c"]


def test_a_job_that_goes_takes_its_place_until_its_process_has_ended(house, store, engine):
    cluster(store, max_instances=1)
    house.submit("a", compute="c")
    house.submit("b", compute="c")
    house.tick()
    engine.obedient = False
    jobs.cancel(store, "a")
    house.tick(2)
    assert house.status("b") == "queued"
    engine.exits("job-a", -15)
    house.tick(2)
    assert house.status("b") == "running"


def gpu_job(house, name, ranks):
    return house.submit(name, spec=Command(command="run", ranks=ranks), compute="c")


def test_jobs_get_gpus_of_their_own_and_give_them_back(house, store, engine):
    engine.machine = Capacity(cpus=8, memory=1, gpus=4)
    cluster(store, gpus=4, max_instances=9)
    for name in "abc":
        gpu_job(house, name, 2)
    house.tick()
    assert engine.started["job-a"].gpus == (0, 1)
    assert engine.started["job-b"].gpus == (2, 3)
    assert house.status("c") == "queued"
    engine.exits("job-a")
    house.tick(3)
    assert engine.started["job-c"].gpus == (0, 1)


def test_a_job_that_waits_for_gpus_is_not_passed_by_smaller_ones_for_ever(house, store, engine):
    engine.machine = Capacity(cpus=8, memory=1, gpus=2)
    cluster(store, gpus=2, max_instances=9)
    gpu_job(house, "small", 1)
    house.tick()
    gpu_job(house, "large", 2)
    gpu_job(house, "later", 1)
    house.submit("free", compute=cluster(store, "cpu", max_instances=9).name)
    house.tick(2)
    assert [house.status(name) for name in ("large", "later", "free")] == [
        *("queued", "queued", "running"),
    ]
    engine.exits("job-small")
    house.tick(3)
    assert engine.started["job-large"].gpus == (0, 1)


def test_a_job_on_a_compute_without_gpus_gets_none(house, store, engine):
    engine.machine = Capacity(cpus=8, memory=1, gpus=2)
    cluster(store)
    house.submit(compute="c")
    house.tick()
    assert engine.started["job-j"].gpus == ()


def test_a_job_that_wants_more_gpus_than_there_are_gets_all_and_is_told(house, store, engine):
    engine.machine = Capacity(cpus=8, memory=1, gpus=2)
    cluster(store, gpus=8)
    house.submit(spec=Command(command="run", ranks=4, nodes=2), compute="c")
    house.tick(2)
    assert (engine.started["job-j"].ranks, engine.started["job-j"].gpus) == (2, (0, 1))
    size, ranks = jobs.get(store, "j").warnings
    assert "8 GPUs; this machine has 2" in size
    assert ranks == "8 processes were asked for (2 nodes x 4); 2 run here"
    assert all(f"warning: {warning}" in house.system_log() for warning in (size, ranks))


def test_a_size_with_gpus_on_a_machine_without_runs_on_its_processors_and_is_told(house, store):
    cluster(store, gpus=8)
    house.submit(spec=Command(command="run", ranks=8), compute="c")
    house.tick()
    process = house.engine.started["job-j"]
    assert (process.ranks, process.gpus) == (1, ())
    assert "8 GPUs; this machine has 0" in jobs.get(store, "j").warnings[0]


# -- outputs ---------------------------------------------------------------------------


def kept(**given):
    return Command(command="run", outputs={"out": Output(asset="made", **given)})


def finish(house, engine, name="j"):
    house.submit(name, spec=kept(type="mlflow_model"))
    house.tick()
    engine.exits(f"job-{name}")
    house.tick(2)


def test_a_named_output_is_registered_once_even_when_the_end_is_repeated(house, store, engine):
    end, times = house.supervisor._end, []

    def killed(job, to, **why):
        times.append(to)
        if len(times) > 1:
            end(job, to, **why)

    house.supervisor._end = killed
    finish(house, engine)
    assert (house.status(), house.tick(), house.status()) == ("finalizing", None, "completed")
    (made,) = assets.versions(store, "w", "model", "made").items
    assert (made.version, made.made_by, made.type) == ("1", "j/out", "mlflow_model")
    assert made.location == jobs.get(store, "j").outputs["out"]


def test_each_job_makes_a_version_of_its_own(house, store, engine):
    finish(house, engine, "a")
    finish(house, engine, "b")
    assert [one.version for one in assets.versions(store, "w", "model", "made").items] == ["2", "1"]


def test_a_version_that_exists_fails_the_job_and_says_so(house, store, engine):
    old = Asset(scope="w", kind="data", name="made", version="1", location="file:a/b")
    assets.create(store, old)
    house.submit(spec=kept(version="1"))
    house.tick()
    engine.exits("job-j")
    house.tick(2)
    assert house.status() == "failed"
    assert "register a new version" in house.error()


# -- pipelines -------------------------------------------------------------------------


def component(store, name="c", *, deterministic=False, **given):
    port = {"type": "uri_folder", "optional": True, "default": None, "mode": ""}
    spec = {
        "kind": "command",
        "command": "run",
        "code": "",
        "environment": "",
        "env": {},
        "inputs": {"data": port},
        "outputs": {"out": {"type": "uri_folder", "mode": ""}},
        "distribution": "",
        "ranks": "",
        "nodes": "",
        "shm_size": "",
        "timeout": None,
        "deterministic": deterministic,
        **given,
    }
    return assets.create(store, Asset(scope="w", kind="component", name=name, spec=spec)).ref


def after(ref, other=""):
    """Return a step, one that reads from another where one is named."""
    data = Input(value=f"${{{{parent.jobs.{other}.outputs.out}}}}", type="uri_folder")
    return Step(component=ref, inputs={"data": data} if other else {})


def chain(ref, **given):
    """a and b at once; c after a."""
    return Pipeline(steps={"a": after(ref), "b": after(ref), "c": after(ref, "a")}, **given)


def statuses(house, parent="p"):
    return {name: child.status for name, child in house.steps(parent).items()}


def test_steps_run_in_order_and_at_once_where_they_can(house, store, engine):
    house.submit("p", spec=chain(component(store)))
    house.tick(4)
    assert statuses(house) == {"a": "running", "b": "running"}
    house.ends("p", "a")
    house.tick(5)
    assert statuses(house) == {"a": "completed", "b": "running", "c": "running"}
    line = house.system_log(house.steps("p")["c"].name)
    assert f"/{house.steps('p')['a'].name}/out" in line
    house.ends("p", "b")
    house.ends("p", "c")
    house.tick(4)
    assert house.status("p") == "completed"
    assert house.tracking.closed["p"] == "completed"


def test_a_failed_step_leaves_the_others_going_where_that_is_wanted(house, store):
    house.submit("p", spec=chain(component(store), continue_on_step_failure=True))
    house.tick(4)
    house.ends("p", "a", 1, said="no rows")
    house.tick(3)
    assert statuses(house) == {"a": "failed", "b": "running"}
    house.ends("p", "b")
    house.tick(4)
    assert house.status("p") == "failed"
    assert house.error("p") == "step 'a' failed: no rows (exit status 1)"


def test_a_failed_step_ends_the_others_where_that_is_wanted(house, store):
    house.submit("p", spec=chain(component(store), continue_on_step_failure=False))
    house.tick(4)
    house.ends("p", "a", 1, said="no rows")
    house.tick(5)
    assert statuses(house) == {"a": "failed", "b": "cancelled"}
    assert house.status("p") == "failed"
    assert house.error("p") == "step 'a' failed: no rows (exit status 1)"


def test_a_cancelled_pipeline_ends_after_its_steps(house, store, engine):
    house.submit("p", spec=chain(component(store)))
    house.tick(4)
    engine.obedient = False
    jobs.cancel(store, "p")
    house.tick(3)
    assert house.status("p") == "cancelling"
    assert statuses(house) == {"a": "cancelling", "b": "cancelling"}
    for step in "ab":
        house.ends("p", step, -15)
    house.tick(3)
    assert (house.status("p"), {*statuses(house).values()}) == ("cancelled", {"cancelled"})


def test_a_cancelled_step_fails_its_pipeline_by_name(house, store):
    house.submit("p", spec=chain(component(store), continue_on_step_failure=False))
    house.tick(4)
    jobs.cancel(store, house.steps("p")["b"].name)
    house.tick(5)
    assert (house.status("p"), house.error("p")) == ("failed", "step 'b' was cancelled")


def nested(store, **given):
    """A pipeline with one step `whole`, which is a pipeline with one step `inner`."""
    step = after(component(store, **given))
    spec = {"kind": "pipeline", "inputs": {}, "outputs": {}, "steps": {"inner": asdict(step)}}
    ref = assets.create(store, Asset(scope="w", kind="component", name="whole", spec=spec)).ref
    return Pipeline(steps={"whole": Step(component=ref)})


def test_the_reason_of_a_step_in_a_step_is_said_at_the_root_without_noise(house, store):
    house.submit("p", spec=nested(store))
    house.tick(7)
    middle = house.steps("p")["whole"].name
    house.ends(middle, "inner", 1, said="train.jsonl line 7: no messages")
    house.tick(6)
    why = "step 'inner' failed: train.jsonl line 7: no messages (exit status 1)"
    assert house.error(middle) == why
    assert house.error("p") == f"step 'whole': {why}"


def test_a_cancelled_pipeline_cancels_the_steps_of_its_steps(house, store, engine):
    house.submit("p", spec=nested(store))
    house.tick(7)
    middle = house.steps("p")["whole"].name
    assert statuses(house, middle) == {"inner": "running"}
    jobs.cancel(store, "p")
    house.tick(6)
    assert statuses(house, middle) == {"inner": "cancelled"}
    assert (house.status(middle), house.status("p")) == ("cancelled", "cancelled")


def test_a_warning_of_a_step_is_on_the_root_too_once(house, store):
    cluster(store, "gpus", gpus=8)
    spec = replace(nested(store), compute="gpus")
    house.submit("p", spec=spec)
    house.tick(8)
    inner = house.steps(house.steps("p")["whole"].name)["inner"]
    (warning,) = inner.warnings
    assert jobs.get(store, "p").warnings == [f"step 'inner': {warning}"]
    jobs.warn(store, inner.name, warning)
    assert jobs.get(store, "p").warnings == [f"step 'inner': {warning}"]


def test_a_step_that_cannot_be_made_fails_the_pipeline_and_ends_the_others(house, store):
    """What is wrong with a step may only be known when its turn comes."""
    ref = component(store)
    bad = Step(component=ref, inputs={"what": Input(value="x")})
    house.submit("p", spec=Pipeline(steps={"a": after(ref), "b": bad}))
    house.tick(5)
    assert house.status("p") == "failed"
    assert house.error("p").startswith("step 'b': component 'c' has no input 'what'")
    assert statuses(house) == {"a": "cancelled"}


def test_work_that_was_done_is_not_done_again(house, store, engine):
    ref = component(store, deterministic=True)
    house.submit("p", spec=Pipeline(steps={"a": after(ref)}))
    house.tick(4)
    house.ends("p", "a")
    house.tick(5)
    done = house.steps("p")["a"]

    house.submit("again", spec=Pipeline(steps={"a": after(ref)}))
    house.tick(5)
    reused = house.steps("again")["a"]
    assert (house.status("again"), reused.reused) == ("completed", done.name)
    assert reused.outputs == done.outputs

    anew = Pipeline(steps={"a": replace(after(ref), force_rerun=True)})
    house.submit("anew", spec=anew)
    house.tick(5)
    assert (statuses(house, "anew"), house.steps("anew")["a"].reused) == ({"a": "running"}, None)


def test_a_job_waits_for_its_environment_and_says_what_of_it_is_not_honoured(house):
    house.environments.building = True
    house.submit()
    house.tick(3)
    assert jobs.get(house.store, "j").status == "preparing"
    assert not house.engine.started
    house.environments.building = False
    house.environments.warnings = ("python 3.8 was asked for",)
    house.tick(2)
    job = jobs.get(house.store, "j")
    assert (job.status, job.warnings) == ("running", ["python 3.8 was asked for"])


def test_a_job_whose_environment_cannot_be_built_fails_with_the_cause(house):
    house.environments.trouble = Invalid("no package named nothing", target="environment")
    house.submit()
    house.tick(2)
    job = jobs.get(house.store, "j")
    assert job.status == "failed" and job.error["message"] == "no package named nothing"
    assert job.started_at == job.ended_at  # it never ran


def test_the_last_words_of_a_job_are_of_the_rank_that_failed(house, engine):
    house.submit(spec=Command(command="run", ranks=2, distribution="pytorch"))
    house.tick()
    engine.logs["job-j/1"] = b"the second is ill\n"
    engine.exits("job-j", 5, said="fine so far", rank=1, reason="rank 1 ended with 5")
    house.tick(2)
    assert house.error() == "the second is ill (rank 1 ended with exit status 5)"


def test_what_was_to_be_kept_and_was_not_written_is_named(house, engine):
    house.submit(spec=Command(command="run", outputs={"o": Output(type="uri_file", asset="kept")}))
    house.tick()
    engine.exits("job-j")
    house.tick(3)
    assert house.status() == "failed"
    assert (
        house.error() == "the output 'o' was to be kept as 'kept', and the job has not written it"
    )


def test_a_program_of_mpi_is_told_that_it_is_alone(house):
    house.submit(spec=Command(command="run", ranks=2, distribution="mpi"))
    house.tick()
    (warning,) = jobs.get(house.store, "j").warnings
    assert "not by mpirun" in warning
