"""The loop that makes things so.

Each tick compares what the store asks for with what the engine reports and
takes at most one step for each job and each deployment (`upkeep.py` has the
latter's, `exploring.py` a sweep's).  A tick that is interrupted is simply run
again: every step is safe to repeat, and nothing that matters lives only in memory.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from finery.core import (
    admission,
    assets,
    compute,
    ids,
    jobs,
    launch,
    pipelines,
    references,
    services,
    sweeps,
)
from finery.core.assets import Asset
from finery.core.compute import Engine, Environments, Runtime
from finery.core.errors import Conflict, Failure, NotFound
from finery.core.exploring import Explorer
from finery.core.files import Files
from finery.core.jobs import Command, Job, Pipeline, Sweep
from finery.core.launch import Folder
from finery.core.store import FULL, Store
from finery.core.sweeps import Sampler
from finery.core.tracking import Tracking
from finery.core.upkeep import Upkeep

logger = logging.getLogger(__name__)

_BUSY_PAUSE = 0.05  # seconds between looks while something runs
_IDLE_PAUSE = 1.0
_STARTS = 64  # jobs that are made ready at the same time; there are as many as processors at most
_REST = 0.1  # at most, after a tick that was asked for


class Supervisor:
    def __init__(
        self,
        store: Store,
        files: Files,
        home: Path,
        *,
        engine: Engine,
        tracking: Tracking,
        environments: Environments,
        upkeep: Upkeep,
        sampler: Sampler,
    ) -> None:
        self.store, self.files, self.home = store, files, home
        self.engine, self.tracking, self.environments = engine, tracking, environments
        self.upkeep = upkeep
        self.explorer = Explorer(store, tracking, sampler)
        self._wake = threading.Event()
        self._over = threading.Event()
        self._ticking = threading.Lock()
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="step")
        # What fetches and copies takes long: it holds up neither watching nor cancelling others.
        self._starts = ThreadPoolExecutor(_STARTS, thread_name_prefix="start")
        self._at_work: set[str] = set()  # jobs whose step is in a thread of the pool
        self._steps: set[Future[None]] = set()

    def wake(self) -> None:
        """Say that there is something to do."""
        self._wake.set()

    def run(self) -> None:
        """Tick until `end` is called."""
        woken = True
        while not self._over.is_set():
            begun = time.monotonic()
            try:
                with self._ticking:
                    busy = not self._over.is_set() and self.tick(woken=woken)
            except Exception:  # the database may be locked or full: look again, never give up
                logger.exception("a tick failed")
                busy = False
            # However often it is woken, it leaves most of the time to those who wake it.
            self._over.wait(min(9 * (time.monotonic() - begun), _REST))
            woken = self._wake.wait(_BUSY_PAUSE if busy else _IDLE_PAUSE)
            self._wake.clear()

    def end(self) -> None:
        self._over.set()
        self._wake.set()
        with self._ticking:  # a tick that is under way still gives out work
            for pool in (self._starts, self._pool):
                pool.shutdown(wait=True, cancel_futures=True)
            self.upkeep.end()

    def tick(self, *, woken: bool = True) -> bool:
        """Take one step for everything; say whether anything is under way.

        `woken`: it was asked for, by whoever knows of a change.
        """
        busy = self.step_jobs()
        return self.upkeep.tick(woken=woken) or busy

    def step_jobs(self) -> bool:
        """Take one step for each job; say whether any is under way."""
        at_work = {*self._at_work}  # before they are read: a step that ends now makes one stale
        active = [*jobs.active(self.store)]
        if admission.admit(self.store, active, self.engine.capacity()):
            self._wake.set()  # more may wait behind these
        for job in active:
            if job.name not in at_work:
                self._at_work.add(job.name)
                starts = job.status == "preparing" and isinstance(job.spec, Command)
                pool = self._starts if starts else self._pool
                self._steps.add(step := pool.submit(self._guarded, job))
                step.add_done_callback(self._steps.discard)
        return bool(active)

    def settle(self) -> None:
        """Wait for the steps under way."""
        wait([*self._steps])

    # -- one job -----------------------------------------------------------------------

    def _guarded(self, job: Job) -> None:
        try:
            self._tried(job)
        except Exception as exc:  # its end could not be written down: tried again after a while
            logger.warning("job %s waits in %r: %s", job.name, job.status, exc)
            self._over.wait(_IDLE_PAUSE)
        finally:
            self._at_work.discard(job.name)

    def _tried(self, job: Job) -> None:
        try:
            self._step(job)
        except Conflict:
            pass  # someone moved it since we looked; the next tick looks again
        except Failure as exc:
            if exc.target == FULL:
                raise  # no fault of the job's
            self._fail(job, str(exc), target=exc.target)
        except OSError as exc:  # a full disk, most likely: said on the job, not only in the log
            logger.exception("job %s: step from %r failed", job.name, job.status)
            self._fail(job, f"{exc.strerror or exc}: {exc.filename or self.home}")
        except Exception as exc:  # one job's trouble must not stop the others
            logger.exception("job %s: step from %r failed", job.name, job.status)
            self._fail(job, f"internal error: {type(exc).__name__}: {exc}")

    def _step(self, job: Job) -> None:
        command = isinstance(job.spec, Command)
        match job.status:
            case "preparing":
                self._start(job) if command else self._open(job)
            case "running":
                self._watch(job) if command else self._advance(job)
            case "finalizing":
                self._finish(job)
            case "cancelling":
                self._stop(job)

    def _start(self, job: Job) -> None:
        assert isinstance(job.spec, Command)
        place = launch.folder(self.home, self.files, job)
        environment = launch.environment(self.store, job)
        runtime = self.environments.runtime(environment, serving=False, log=place.build_log)
        if runtime is None:
            return  # it is being built; asked again at the next tick
        if self.engine.report(launch.process_id(job)).state == "unknown":
            if not self._begin_command(job, runtime):
                return
        # Else the server was killed just after it had been started: its folder is its own now.
        if launch.layer(place).exists():
            runtime = self.environments.apart(runtime, launch.layer(place))
        services.start(self.store, self.engine, job, place=place, runtime=runtime)
        jobs.move(self.store, job, "running", outputs=launch.outputs(self.files, job)[0])

    def _begin_command(self, job: Job, runtime: Runtime) -> bool:
        """Make ready what a command needs and start it; say whether it was still wanted."""
        over = self._over.is_set
        place = launch.prepare(self.store, self.files, self.home, job, over=over)
        log = SystemLog(place)
        values = launch.inputs(self.store, self.files, place, job, over=over)
        paths = launch.outputs(self.files, job)[1]
        assert isinstance(job.spec, Command)
        line = launch.render(job.spec, values, paths)
        if launch.installs(line):
            runtime = self.environments.apart(runtime, launch.layer(place))
        for warning in [*runtime.warnings, *self._shortfalls(job, runtime)]:
            log.write(f"warning: {warning}")
            job = jobs.warn(self.store, job.name, warning)
        for name, value in values.items():
            log.write(f"input {name}: {value}")
        log.write(f"command: {line}")
        assert isinstance(job.spec, Command)
        joined = launch.variables(self.tracking.open(job), values, paths)
        env = {**runtime.variables, **joined, **job.spec.env}
        process = launch.process(job, place, line, runtime=runtime, env=env)
        if jobs.get(self.store, job.name).status != "preparing":
            return False  # cancelled while all this was made ready
        self.engine.start(process)
        log.write(f"started as process {process.id}, {process.ranks} rank(s), gpus {process.gpus}")
        return True

    def _shortfalls(self, job: Job, runtime: Runtime) -> list[str]:
        """Say what the job was promised and this machine does not have."""
        assert isinstance(job.spec, Command)
        target = compute.find(self.store, job.workspace, job.compute) if job.compute else None
        capacity, found = self.engine.capacity(), []
        if target is not None and target.gpus > capacity.gpus:
            found.append(
                f"compute {target.name!r} is of size {target.size} with {target.gpus} GPUs; this "
                f"machine has {capacity.gpus}: the job runs on what is there"
            )
        wanted = job.spec.ranks * job.spec.nodes
        if wanted > job.lease.get("ranks", 1):
            found.append(
                f"{wanted} processes were asked for ({job.spec.nodes} nodes x {job.spec.ranks}); "
                f"{job.lease.get('ranks', 1)} run here"
            )
        if job.spec.distribution == "mpi" and wanted > 1:
            found.append(
                "distribution mpi: the processes are started side by side with the variables of "
                "Open MPI's launcher (OMPI_COMM_WORLD_…), not by mpirun: a program that calls MPI "
                "itself finds itself alone"
            )
        shared = launch.shared_memory(capacity)
        if not runtime.image and (launch.size(job.spec.shm_size) or 0) > shared:
            found.append(
                f"shm_size {job.spec.shm_size}: a job outside of a container has the machine's "
                f"own shared memory, {shared / 2**30:.3g} GiB here"
            )
        return found

    def _watch(self, job: Job) -> None:
        report = self.engine.report(launch.process_id(job))
        if report.state == "unknown":
            return self._fail(job, "the process was lost: the engine knows nothing of it")
        services.watch(self.store, self.engine, job, home=self.home)
        if report.state != "exited":
            return None
        if report.timed_out:
            assert isinstance(job.spec, Command)
            return self._fail(job, f"it ran past its limit of {job.spec.timeout:g} s and was ended")
        if report.rank is not None and report.exit_code:
            said = compute.last_words(
                self.engine, launch.process_id(job), home=self.home, rank=report.rank
            )
            ended = f"rank {report.rank} ended with exit status {report.exit_code}"
            return self._fail(job, f"{said} ({ended})" if said else ended)
        if report.reason:
            return self._fail(job, report.reason)
        if report.exit_code is None:
            return self._fail(job, "the process was lost: its keeper or the machine was stopped")
        if report.exit_code:
            said = compute.last_words(self.engine, launch.process_id(job), home=self.home)
            ended = f"exit status {report.exit_code}"
            return self._fail(job, f"{said} ({ended})" if said else f"the command ended: {ended}")
        jobs.move(self.store, job, "finalizing")
        self._wake.set()
        return None

    def _finish(self, job: Job) -> None:
        for name, output in job.spec.outputs.items():
            if output.asset and name in job.outputs:
                self._register(job, name)
        self._end(job, "completed")

    def _register(self, job: Job, name: str) -> None:
        output = job.spec.outputs[name]
        try:
            references.path(self.store, self.files, job.workspace, job.outputs[name])
        except NotFound as exc:
            raise NotFound(
                f"the output {name!r} was to be kept as {output.asset!r}, and the job has not "
                f"written it",
                target=f"outputs.{name}",
            ) from exc
        models = ("mlflow_model", "custom_model", "triton_model")
        kind = "model" if output.type in models else "data"
        asset = Asset(
            scope=job.workspace,
            kind=kind,
            name=output.asset,
            version=output.version,
            type=output.type,
            location=job.outputs[name],
            made_by=f"{job.name}/{name}",
            created_by=job.created_by,
        )
        assets.create(self.store, asset)

    def _stop(self, job: Job) -> None:
        if not isinstance(job.spec, Command):
            if self._cancel_children(job):
                return
        else:
            self.engine.stop(launch.process_id(job))
            if self.engine.report(launch.process_id(job)).state not in (
                "exited",
                "unknown",
            ):
                return
        self._end(job, "cancelled")

    def _fail(self, job: Job, error: str, *, target: str = "") -> None:
        if job.status == "cancelling":
            return
        try:
            if not isinstance(job.spec, Command):
                self._cancel_children(job)
            else:
                self.engine.stop(launch.process_id(job))
            self._end(job, "failed", error=error, target=target)
        except Conflict:
            pass  # it ended, or was cancelled, in the meantime

    def _end(self, job: Job, to: str, *, error: str = "", target: str = "") -> None:
        """Close the job's run, then write its end down: a repeat closes it again, no harm.

        It ended when its process did, which may be long before a server saw it.
        """
        services.end(self.engine, job)
        ended = self.engine.report(launch.process_id(job)).ended_at
        ended_at = datetime.fromtimestamp(ended, UTC) if ended is not None else ids.now()
        ended_at = max(ended_at, job.started_at or ended_at)  # quicker than what was written down
        try:
            self.tracking.close(replace(job, status=to, ended_at=ended_at))
        except Exception as exc:  # what was trained is not lost for a metric
            logger.exception("job %s: its run cannot be closed", job.name)
            jobs.warn(self.store, job.name, f"its run was not closed: {exc}")
        place = launch.folder(self.home, self.files, job)
        if isinstance(job.spec, Command) and error and place.artifacts.exists():
            with suppress(OSError):  # a full disk may be why it ends
                SystemLog(place).write(f"{to}: {error}")
        launch.clear(place)  # before the end is written: nobody comes back for it afterwards
        jobs.move(self.store, job, to, error=error, target=target, ended_at=ended_at)
        self.engine.forget(launch.process_id(job))
        self._wake.set()

    # -- jobs made of jobs -------------------------------------------------------------

    def _open(self, job: Job) -> None:
        if isinstance(job.spec, Pipeline):
            self.engine.warm_up()
        self.tracking.open(job)
        jobs.move(self.store, job, "running")
        self._wake.set()

    def _advance(self, job: Job) -> None:
        if isinstance(job.spec, Sweep):
            self._explore(job, job.spec)
            return
        assert isinstance(job.spec, Pipeline)
        children = {child.step: child for child in jobs.children(self.store, job.name)}
        match pipelines.outcome(job.spec, children):
            case "running":
                for name in pipelines.ready(job.spec, children):
                    self._begin(job, name)
            case "completed":
                found = pipelines.outputs(job.spec, children)
                jobs.move(self.store, job, "finalizing", outputs=found)
                self._wake.set()
            case "failed":
                if not self._cancel_children(job):
                    self._end(job, "failed", error=pipelines.failure(children))

    def _begin(self, job: Job, step: str) -> None:
        """Create a step's job; work that was done before is not done again."""
        try:
            child = pipelines.child(self.store, self.files, job, step)
        except Failure as exc:
            raise type(exc)(f"step {step!r}: {exc}", target=exc.target) from exc
        with self.store.transaction():
            if jobs.find(self.store, child.name) is not None:
                return
            old = child.fingerprint and jobs.same_work(
                self.store, child.workspace, child.fingerprint
            )
            jobs.create(self.store, child)
            if old:
                jobs.move(self.store, child, "completed", outputs=old.outputs, reused=old.name)
        self._wake.set()

    def _explore(self, job: Job, sweep: Sweep) -> None:
        outcome, trials = self.explorer.advance(job, sweep)
        match outcome:
            case "completed":
                jobs.move(self.store, job, "finalizing")
            case "failed":
                self._end(job, "failed", error=sweeps.failure(trials))
            case "waiting":
                return
        self._wake.set()

    def _cancel_children(self, job: Job) -> bool:
        """Cancel what still runs below a job; say whether anything does."""
        left = [child for child in jobs.children(self.store, job.name) if not child.final]
        for child in left:
            with suppress(Conflict):  # it has ended since we looked
                jobs.cancel(self.store, child.name)
        return bool(left)


class SystemLog:
    """What the platform did for a job, in the job's own `system_logs/`."""

    def __init__(self, place: Folder) -> None:
        self._path = place.system_log

    def write(self, text: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{ids.now().isoformat(timespec='milliseconds')} {text}\n")
