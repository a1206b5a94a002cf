"""What was asked for and what became of it."""

import pytest

from finery.core import jobs
from finery.core.errors import AlreadyExists, Conflict, Invalid, NotFound
from finery.core.jobs import Command, Input, Job, Output, Pipeline, Step


def job(name="a", **given):
    return Job(name=name, workspace="w", spec=Command(command="true"), **given)


def test_a_job_comes_back_as_it_was_written(store):
    command = Command(
        command="train ${{inputs.x}}",
        inputs={"x": Input(value="1"), "d": Input(value="file:s/p", type="uri_file", mode="mount")},
        outputs={"m": Output(type="mlflow_model", asset="tuned")},
        env={"A": "B"},
        optional=("x",),
    )
    made = jobs.create(store, Job(name="a", workspace="w", spec=command, tags={"k": "v"}))
    assert jobs.get(store, "a") == made


def test_a_pipeline_comes_back_as_it_was_written(store):
    step = Step(
        component="asset:component/w/c/1",
        inputs={"i": Input(value="${{parent.inputs.x}}")},
        outputs={"o": "result"},
        registered={"o": Output(asset="kept")},
    )
    spec = Pipeline(steps={"s": step}, inputs={"x": Input(value="1")}, outputs={"result": Output()})
    made = jobs.create(store, Job(name="p", workspace="w", spec=spec))
    assert jobs.get(store, "p") == made


def test_a_name_is_given_once(store):
    jobs.create(store, job())
    with pytest.raises(AlreadyExists, match="'a'"):
        jobs.create(store, job())


def test_an_unknown_job_is_not_found(store):
    with pytest.raises(NotFound, match="'nobody'"):
        jobs.get(store, "nobody")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-a", "a" * 256, "a\x00"])
def test_a_name_that_cannot_name_is_refused(store, name):
    with pytest.raises(Invalid):
        jobs.create(store, job(name))


def test_a_change_of_status_is_written_with_its_event(store):
    made = jobs.create(store, job())
    jobs.move(store, made, "preparing")
    moved = jobs.move(store, made, "failed", error="no room", target="disk")
    assert moved.error == {"message": "no room", "target": "disk"}
    assert moved.ended_at is not None
    told = [(event.status, event.reason) for event in jobs.events(store, "a")]
    assert told == [("queued", "created"), ("preparing", ""), ("failed", "no room")]


def test_a_change_that_is_not_allowed_writes_nothing(store):
    made = jobs.create(store, job())
    with pytest.raises(Conflict):
        jobs.move(store, made, "finalizing")
    assert jobs.get(store, "a").status == "queued"
    assert len(jobs.events(store, "a")) == 1


def test_a_finished_job_cannot_be_cancelled(store):
    made = jobs.create(store, job())
    assert jobs.cancel(store, "a").status == "cancelled"
    with pytest.raises(Conflict, match="has ended already .cancelled."):
        jobs.cancel(store, made.name)


def test_a_list_is_newest_first_in_pages_and_without_children(store):
    for name in "abcde":
        jobs.create(store, job(name))
    jobs.create(store, job("child", parent="a", root="a"))
    jobs.create(store, Job(name="elsewhere", workspace="other", spec=Command(command="true")))
    first = jobs.list(store, "w", limit=2)
    second = jobs.list(store, "w", limit=2, after=first.next)
    third = jobs.list(store, "w", limit=2, after=second.next)
    assert [[one.name for one in page.items] for page in (first, second, third)] == [
        ["e", "d"],
        ["c", "b"],
        ["a"],
    ]
    assert third.next is None
    assert [one.name for one in jobs.list(store, "w", parent="a").items] == ["child"]


def test_only_completed_work_counts_as_the_same_work(store):
    made = jobs.create(store, job(fingerprint="f"))
    assert jobs.same_work(store, "w", "f") is None
    jobs.move(store, made, "completed")
    assert jobs.same_work(store, "w", "f").name == "a"
    assert jobs.same_work(store, "another", "f") is None


def test_a_warning_is_kept_once(store):
    jobs.create(store, job())
    jobs.warn(store, "a", "one GPU instead of eight")
    assert jobs.warn(store, "a", "one GPU instead of eight").warnings == [
        "one GPU instead of eight"
    ]


def test_a_pipeline_says_once_what_its_steps_were_warned_of_alike(store):
    jobs.create(store, job("p"))
    for step in ("x", "y", "z"):
        made = jobs.create(store, job(step, parent="p", root="p", step=step))
        jobs.warn(store, made.name, "no GPU")
        jobs.warn(store, made.name, "no GPU")
    jobs.warn(store, "z", "one process: no GPU")
    assert jobs.get(store, "p").warnings == [
        "steps 'x', 'y', 'z': no GPU",
        "step 'z': one process: no GPU",
    ]
    assert jobs.get(store, "y").warnings == ["no GPU"]
