"""The graph: what is ready, how outputs bind to inputs, what became of the whole."""

from dataclasses import replace

import pytest

from finery.core import assets, jobs, pipelines
from finery.core.assets import Asset
from finery.core.errors import Invalid
from finery.core.jobs import Input, Job, Output, Pipeline, Step

PORT = {
    "type": "string",
    "optional": False,
    "default": None,
    "enum": [],
    "min": None,
    "max": None,
    "mode": "",
}
COMPONENT = {
    "kind": "command",
    "command": "run",
    "code": "",
    "environment": "",
    "env": {},
    "inputs": {
        "text": PORT,
        "data": {**PORT, "type": "uri_folder", "optional": True},
        "count": {**PORT, "type": "integer", "default": "2", "optional": True},
    },
    "outputs": {"out": {"type": "uri_folder", "mode": ""}},
    "distribution": "",
    "ranks": "${{inputs.count}}",
    "nodes": "",
    "shm_size": "",
    "timeout": None,
    "deterministic": True,
}


@pytest.fixture
def component(store):
    return assets.create(store, Asset(scope="w", kind="component", name="c", spec=COMPONENT)).ref


def graph(component, **given):
    first = Step(component=component, inputs={"text": Input(value="${{parent.inputs.words}}")})
    second = Step(
        component=component,
        inputs={
            "text": Input(value="fixed"),
            "data": Input(value="${{parent.jobs.first.outputs.out}}", type="uri_folder"),
        },
        outputs={"out": "result"},
    )
    inputs = {"words": Input(value="hello")}
    steps = {"first": first, "second": second}
    return Pipeline(steps=steps, inputs=inputs, outputs={"result": Output()}, **given)


def parent(store, spec, name="p"):
    return jobs.create(store, Job(name=name, workspace="w", spec=spec))


def finish(store, job, **given):
    for status in ("preparing", "running"):
        jobs.move(store, job, status)
    jobs.move(store, job, "finalizing", **given)
    return jobs.move(store, job, "completed")


def test_a_step_is_ready_when_what_it_reads_from_is_completed(store, files, component):
    spec = graph(component)
    job = parent(store, spec)
    assert pipelines.ready(spec, {}) == ["first"]
    first = jobs.create(store, pipelines.child(store, files, job, "first"))
    assert pipelines.ready(spec, {"first": first}) == []
    done = finish(store, first, outputs={"out": "file:s/o"})
    assert pipelines.ready(spec, {"first": done}) == ["second"]


def test_a_child_is_the_same_job_whenever_it_is_made(store, files, component):
    job = parent(store, graph(component))
    one, two = (pipelines.child(store, files, job, "first") for _ in range(2))
    assert one.name == two.name
    assert one.fingerprint == two.fingerprint


def test_bindings_are_followed_and_defaults_filled_in(store, files, component):
    job = parent(store, graph(component))
    first = pipelines.child(store, files, job, "first")
    assert first.spec.inputs["text"].value == "hello"
    assert first.spec.inputs["count"].value == "2"
    assert first.spec.ranks == 2
    jobs.create(store, first)
    second = pipelines.child(store, files, job, "second")
    assert second.spec.inputs["data"].value == f"job:{first.name}/out"
    assert second.root == "p"


def test_an_unset_optional_input_of_the_pipeline_is_unset_in_the_step(store, files, component):
    spec = graph(component)
    step = spec.steps["first"]
    loose = replace(
        step, inputs={**step.inputs, "count": Input(value="${{parent.inputs.nothing}}")}
    )
    job = parent(store, replace(spec, steps={"first": loose}))
    assert pipelines.child(store, files, job, "first").spec.inputs["count"].value == "2"


def test_the_outcome_follows_the_steps(store, files, component):
    spec = graph(component)
    job = parent(store, spec)
    first = jobs.create(store, pipelines.child(store, files, job, "first"))
    assert pipelines.outcome(spec, {"first": first}) == "running"
    jobs.move(store, first, "preparing")
    failed = jobs.move(store, first, "failed", error="no data")
    assert pipelines.outcome(spec, {"first": failed}) == "failed"
    assert pipelines.failure({"first": failed}) == "step 'first' failed: no data"


def test_other_steps_go_on_after_a_failure_where_that_is_asked(store, files, component):
    free = Step(component=component, inputs={"text": Input(value="x")})
    spec = replace(graph(component), steps={**graph(component).steps, "free": free})
    job = parent(store, spec)
    first = jobs.create(store, pipelines.child(store, files, job, "first"))
    jobs.move(store, first, "preparing")
    failed = {"first": jobs.move(store, first, "failed")}
    assert pipelines.outcome(replace(spec, continue_on_step_failure=True), failed) == "running"
    assert pipelines.outcome(replace(spec, continue_on_step_failure=False), failed) == "failed"


def test_the_pipelines_outputs_are_its_steps_outputs(store, files, component):
    spec = graph(component)
    job = parent(store, spec)
    first = finish(
        store,
        jobs.create(store, pipelines.child(store, files, job, "first")),
        outputs={"out": "file:s/1"},
    )
    second = finish(
        store,
        jobs.create(store, pipelines.child(store, files, job, "second")),
        outputs={"out": "file:s/2"},
    )
    children = {"first": first, "second": second}
    assert pipelines.outputs(spec, children) == {"result": "file:s/2"}
    assert pipelines.outcome(spec, children) == "completed"


def test_the_same_work_has_the_same_fingerprint_and_other_work_another(store, files, component):
    one = pipelines.child(store, files, parent(store, graph(component), "p1"), "first")
    two = pipelines.child(store, files, parent(store, graph(component), "p2"), "first")
    spec = replace(graph(component), inputs={"words": Input(value="goodbye")})
    other = pipelines.child(store, files, parent(store, spec, "p3"), "first")
    assert one.fingerprint == two.fingerprint != other.fingerprint
    forced = parent(store, graph(component, force_rerun=True), "p4")
    assert pipelines.child(store, files, forced, "first").fingerprint is None


def test_a_later_step_is_the_same_work_when_the_earlier_one_was(store, files, component):
    prints = []
    for name in ("p1", "p2"):
        job = parent(store, graph(component), name)
        jobs.create(store, pipelines.child(store, files, job, "first"))
        prints.append(pipelines.child(store, files, job, "second").fingerprint)
    assert prints[0] == prints[1]


def test_changed_data_is_other_work(store, files, component):
    data = files.path("w", "blob", "data")
    data.mkdir(parents=True)
    (data / "rows").write_text("a")
    step = Step(
        component=component,
        inputs={"text": Input(value="x"), "data": Input(value="file:blob/data", type="uri_folder")},
    )
    spec = Pipeline(steps={"only": step})
    one = pipelines.child(store, files, parent(store, spec, "p1"), "only")
    (data / "rows").write_text("ab")
    two = pipelines.child(store, files, parent(store, spec, "p2"), "only")
    assert one.fingerprint != two.fingerprint


def test_a_graph_that_waits_for_itself_is_refused(component):
    def reads(step):
        return Step(
            component=component,
            inputs={"data": Input(value=f"${{{{parent.jobs.{step}.outputs.out}}}}")},
        )

    with pytest.raises(Invalid, match="wait for one another"):
        pipelines.check(Pipeline(steps={"a": reads("b"), "b": reads("a")}))
    with pytest.raises(Invalid, match="'nobody'"):
        pipelines.check(Pipeline(steps={"a": reads("nobody")}))
