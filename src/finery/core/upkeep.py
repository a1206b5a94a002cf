"""The supervisor's other half: one repeatable step per deployment and tick.

Brings instances up, notices those that fell or do not answer, replaces them,
has as many of them as the load asks for, and lets a revision go once the next
one answers and its own requests are done.  Requests never pass here.  What an
instance is started with is in `instances.py`, whether it is well in
`probing.py`, how many there should be in `scaling.py`.
"""

from __future__ import annotations

import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from finery.core import compute, endpoints, instances, probing, rollback
from finery.core.attempts import Attempts
from finery.core.compute import Engine, Environments, Report
from finery.core.endpoints import Deployment
from finery.core.errors import Conflict, Failure, Unavailable
from finery.core.files import Files
from finery.core.probing import Watch
from finery.core.scaling import Gauge, NoTraffic, Traffic
from finery.core.store import FULL, Store
from finery.core.workspaces import Keys

logger = logging.getLogger(__name__)

_MOST_RESTARTS = 5  # in a row, before a deployment counts as failed
_SETTLED = 600.0  # seconds after which a fall is not one of a row
_SERVING = ("ready", "unhealthy", "failed", "deleting")  # what is left to do is tried again
_OVER = ("exited", "unknown")  # what an engine says of a process that runs no more
_PAUSE = 1.0  # seconds until a step is tried again that could not be written down
_STEADY = 0.25  # seconds between looks at a deployment of which nothing is expected
_STEPS = 8  # deployments that are looked after at the same time


class Upkeep:
    def __init__(
        self,
        store: Store,
        files: Files,
        home: Path,
        *,
        engine: Engine,
        keys: Keys,
        environments: Environments,
        kind: Callable[[Path], str],
        traffic: Traffic | None = None,
        answers: Callable[[str, float], bool] = probing.answers,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store, self.files, self.home = store, files, home
        self.engine, self.keys = engine, keys
        self.environments, self.kind = environments, kind
        self.traffic = traffic or NoTraffic()
        self.answers, self.clock = answers, clock
        # All of this is memory: losing it only delays something.
        self.watches: dict[tuple[str, str], Watch] = {}  # of a process: live, ready; only read
        self._falls: dict[tuple[str, int, int], int] = {}  # of an instance, one soon after another
        self._attempts = Attempts()  # to start what is missing of what answers
        self._looked: dict[str, float] = {}  # at a deployment, by the monotonic clock
        self._gauges: dict[str, Gauge] = {}
        self._leaving: dict[str, float] = {}  # processes that nobody needs, and since when
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(_STEPS, thread_name_prefix="upkeep")
        self._at_work: set[str] = set()  # deployments whose step is in a thread of the pool
        self._steps: set[Future[None]] = set()

    def tick(self, *, woken: bool = True) -> bool:
        """Begin a step for each deployment; say whether any is on its way somewhere.

        A deployment whose last step goes on (it copies code, say) is left out:
        neither other deployments nor jobs wait for it.  Unless the tick was
        asked for (`woken`), so is one that was looked at just now and is well.
        """
        at_work = {*self._at_work}  # before they are read: a step that ends now makes one stale
        busy, now = False, time.monotonic()
        for deployment in endpoints.kept(self.store):
            busy = busy or _on_its_way(deployment)
            due = woken or _on_its_way(deployment)
            due = due or now - self._looked.get(deployment.id, 0.0) >= _STEADY
            if due and deployment.id not in at_work:
                self._looked[deployment.id] = now
                self._at_work.add(deployment.id)
                self._steps.add(step := self._pool.submit(self._guarded, deployment))
                step.add_done_callback(self._steps.discard)
        return busy or bool(self._leaving)

    def settle(self) -> None:
        """Wait for the steps under way."""
        wait([*self._steps])

    def end(self) -> None:
        self._over.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _guarded(self, deployment: Deployment) -> None:
        try:
            self._tried(deployment)
        except Conflict:
            pass  # someone changed it since we looked; the next tick looks again
        except Exception as exc:  # what went wrong could not be written down: tried again
            logger.warning("deployment %s waits: %s", deployment.name, exc)
            self._over.wait(_PAUSE)
        finally:
            self._at_work.discard(deployment.id)

    def _tried(self, deployment: Deployment) -> None:
        try:
            self._step(deployment)
        except Conflict:
            raise
        except Failure as exc:
            if exc.target == FULL or (_passing(exc) and deployment.status in _SERVING):
                raise  # no fault of the deployment's; what answers goes on
            self._fail(deployment, str(exc))
        except OSError as exc:  # a full disk, most likely
            if deployment.status in _SERVING:
                raise
            logger.exception("deployment %s: a step failed", deployment.name)
            self._fail(deployment, f"{exc.strerror or exc}: {exc.filename or self.home}")
        except Exception as exc:  # one deployment's trouble must not stop the others
            logger.exception("deployment %s: a step failed", deployment.name)
            self._fail(deployment, f"internal error: {type(exc).__name__}: {exc}")

    def _step(self, deployment: Deployment) -> None:
        match deployment.status:
            case "creating" | "updating":
                self._bring_up(self._as_left(deployment))
            case "ready" | "unhealthy":
                deployment = self._scaled(deployment)
                self._look_after(deployment)
            case "failed":
                self._as_left(deployment)
            case "deleting":
                return self._take_down(deployment)
        return self._sweep(deployment)

    def _as_left(self, deployment: Deployment) -> Deployment:
        """Look after the revision before, while it is the one that answers.

        Of all else, forget the addresses of instances that have ended and are
        not replaced.
        """
        own = set() if deployment.status == "failed" else {*instances.processes(deployment)}
        there = {
            id: address
            for id, address in deployment.addresses.items()
            if id in own or self.engine.report(id).state not in _OVER
        }
        before, falls = deployment.before, deployment.falls
        if (earlier := deployment.earlier) is not None:
            ready, fallen = self._look_at(earlier, alone=False)
            there = {id: to for id, to in there.items() if id not in instances.processes(earlier)}
            there |= ready
            again = [n for n, report in fallen.items() if not self._falls_on(earlier, n, report)]
            before = {**before, "restarts": _once_more(earlier, again)}
            falls += len(again)
        if (there, before) == (deployment.addresses, deployment.before):
            return deployment
        return endpoints.place(self.store, deployment, addresses=there, before=before, falls=falls)

    def _bring_up(self, deployment: Deployment) -> None:
        reports, fallen = self._reports(deployment), {}
        for instance, report in reports.items():
            if report.state == "unknown":
                self._start(deployment, instance)
            if report.state == "exited":
                if deployment.process(instance) not in deployment.addresses and not _lost(report):
                    why = self._why(deployment, instance, report)
                    raise Failure(f"instance {instance} ended before it answered{why}")
                fallen[instance] = report
        ready = {
            deployment.process(instance): report.address
            for instance, report in reports.items()
            if report.address
            and report.state not in _OVER
            and self._ready(deployment, instance, report.address)
        }
        if fallen:
            others = {**deployment.addresses, **ready}
            for instance in fallen:
                others.pop(deployment.process(instance), None)
            return self._replace(deployment, fallen, addresses=others)
        if len(ready) < len(reports):
            waited_for = [n for n in reports if deployment.process(n) not in ready]
            for instance in waited_for:
                self._check_patience(deployment, instance, reports[instance])
            return None
        # What is left of the revision before is swept away: it first finishes what it was asked.
        before = {**deployment.before, "answers": False} if deployment.before else {}
        endpoints.move(self.store, deployment, "ready", addresses=ready, error=None, before=before)
        return None

    def _check_patience(self, deployment: Deployment, instance: int, report: Report) -> None:
        """Raise `Failure` when the time is over that an instance has to be ready.

        One that is not started waits for its environment, which takes what it takes.
        """
        patience, begun = _patience(deployment), deployment.changed_at.timestamp()
        if report.state == "unknown":
            return
        if self.clock() - max(begun, report.started_at or 0) > patience:
            why = self._why(deployment, instance, report)
            raise Failure(f"instance {instance} was not ready within {patience:g} s{why}")

    def _look_after(self, deployment: Deployment) -> None:
        ready, fallen = self._look_at(deployment)
        if fallen:
            self._replace(deployment, fallen, addresses=ready)
        elif ready != deployment.addresses:
            endpoints.place(self.store, deployment, addresses=ready)
        answers = bool(ready) or deployment.count == 0
        if not answers and deployment.status == "ready":
            endpoints.move(self.store, deployment, "unhealthy", reason="no instance answers")
        elif answers and deployment.status == "unhealthy":
            endpoints.move(self.store, deployment, "ready", reason="an instance answers again")

    def _look_at(
        self, deployment: Deployment, *, alone: bool = True
    ) -> tuple[dict[str, str], dict[int, Report]]:
        """Return where the ready instances answer, and those that fell; start what is missing.

        It is `alone` where there is no later revision, which would fail for this one's trouble.
        """
        ready, fallen = {}, {}
        for instance, report in self._reports(deployment).items():
            if report.state == "unknown":
                self._start_again(deployment, instance, alone=alone)
                continue
            self._attempts.over(deployment.process(instance))
            if report.state == "exited" or not self._alive(deployment, instance, report):
                fallen[instance] = report
            elif report.address and self._ready(deployment, instance, report.address):
                ready[deployment.process(instance)] = report.address
        return ready, fallen

    def _scaled(self, deployment: Deployment) -> Deployment:
        """Write down how many instances there should be, where that has changed."""
        rule, now = deployment.spec.scaling, self.clock()
        if rule is None:
            self._gauges.pop(deployment.id, None)
            return deployment
        load = self.traffic.load(deployment.id)
        gauge = self._gauges.setdefault(deployment.id, Gauge(now, load.sum))
        places, count = deployment.spec.max_concurrent_requests, deployment.count
        wanted = gauge.read(rule, load, now=now, places=places, count=count)
        if wanted == count:
            return deployment
        logger.info("deployment %s: from %s to %s instances", deployment.name, count, wanted)
        return endpoints.scale(self.store, deployment, wanted, reason=f"{load.now} under way")

    def _replace(
        self, deployment: Deployment, fallen: Mapping[int, Report], *, addresses: dict[str, str]
    ) -> None:
        """Give the instances that fell new processes.  Raises `Failure` for one that always falls.

        `addresses` are those of the others.
        """
        ends = [deployment.process(instance) for instance in fallen]
        for instance, report in fallen.items():
            if self._falls_on(deployment, instance, report):
                endpoints.place(self.store, deployment, addresses=addresses)
                why = self._why(deployment, instance, report)
                raise Failure(f"instance {instance} fell {_MOST_RESTARTS + 1} times{why}")
            logger.warning("deployment %s: instance %s is replaced", deployment.name, instance)
        restarts, falls = _once_more(deployment, fallen), deployment.falls + len(fallen)
        endpoints.place(self.store, deployment, addresses=addresses, restarts=restarts, falls=falls)
        for id in ends:
            self._stop(id)

    def _falls_on(self, deployment: Deployment, instance: int, report: Report) -> bool:
        """Count a fall; say whether there were too many without a good while in between."""
        ended = self.clock() if report.ended_at is None else report.ended_at
        lived = 0.0 if report.started_at is None else ended - report.started_at
        which = (deployment.id, deployment.revision, instance)
        self._falls[which] = 1 if lived > _SETTLED else self._falls.get(which, 0) + 1
        return self._falls[which] > _MOST_RESTARTS

    def _sweep(self, deployment: Deployment) -> None:
        """End what this deployment once started and needs no more; its logs stay."""
        needed = {*instances.processes(deployment), *deployment.addresses}
        if (earlier := deployment.earlier) is not None:
            needed |= {*instances.processes(earlier)}
        for id in instances.started(self.home, deployment) - needed:
            if self._drained(deployment, id):
                self._stop(id)
                if self.engine.report(id).state in _OVER:
                    self.engine.forget(id)
                    instances.clear(self.home, deployment, id)
                    self._leaving.pop(id, None)

    def _drained(self, deployment: Deployment, id: str) -> bool:
        """Say whether a process that gets no more requests has answered those it had."""
        now = time.monotonic()
        since = self._leaving.setdefault(id, now)
        limit = instances.longest(deployment) + instances.GRACE
        return not self.traffic.busy(id) or now - since > limit

    def _stop(self, id: str) -> None:
        self.engine.stop(id)
        self._attempts.over(id)
        for what in ("live", "ready"):
            self.watches.pop((id, what), None)

    def _alive(self, deployment: Deployment, instance: int, report: Report) -> bool:
        """Say whether an instance came up in time and its liveness probe has not failed."""
        probe, id = deployment.spec.liveness, deployment.process(instance)
        if not report.address:
            begun = report.started_at or self.clock()
            return self.clock() - begun <= _patience(deployment)
        now, address = time.monotonic(), f"{report.address}/health/live"
        watch = self.watches.setdefault((id, "live"), Watch(now + probe.initial_delay, True))
        return watch.look(probe, lambda: self.answers(address, probe.timeout), now=now)

    def _ready(self, deployment: Deployment, instance: int, address: str) -> bool:
        """Say whether an instance may get requests.  That it answers at all is the first yes."""
        probe, id = deployment.spec.readiness, deployment.process(instance)
        now, place = time.monotonic(), f"{address}/health/ready"
        watch = self.watches.get((id, "ready"))
        if watch is None:
            well = probe.success_threshold <= 1 or id in deployment.addresses
            watch = Watch(now + probe.initial_delay if well else now, well, opposed=int(not well))
            self.watches[id, "ready"] = watch
        return watch.look(probe, lambda: self.answers(place, probe.timeout), now=now)

    def _start_again(self, deployment: Deployment, instance: int, *, alone: bool) -> None:
        """Start what is missing of what answers.  Trouble that may pass is waited out."""
        id = deployment.process(instance)
        if not self._attempts.due(id, now=self.clock()):
            return
        try:
            self._start(deployment, instance)
        except Conflict:
            raise
        except Exception as exc:
            if getattr(exc, "target", "") == FULL or (alone and not _passing(exc)):
                raise
            if self._attempts.failed(id, now=self.clock()) and alone:
                raise Failure(f"instance {instance} could not be started: {exc}") from exc
            logger.warning("deployment %s: instance %s waits: %s", deployment.name, instance, exc)

    def _start(self, deployment: Deployment, instance: int) -> None:
        place = instances.place(self.home, deployment, instance)
        environment = instances.environment(self.store, deployment)
        log = instances.build_log(place)
        runtime = self.environments.runtime(environment, serving=True, log=log)
        if runtime is None:
            return  # it is being built; asked again at the next tick
        with suppress(Conflict):  # it is the revision before: what it was warned of is known
            endpoints.warn(self.store, deployment, runtime.warnings)
        document = instances.document(
            self.store, self.files, deployment, place=place, kind=self.kind, over=self._over.is_set
        )
        process = instances.process(
            deployment,
            instance,
            place=place,
            document=document,
            runtime=runtime,
            secret=self.keys.derived("serving", deployment.process(instance)),
            gpus=self.engine.capacity().gpus,
        )
        self.engine.start(process)

    def _take_down(self, deployment: Deployment) -> None:
        kept = instances.started(self.home, deployment)
        ids = {*instances.processes(deployment), *deployment.addresses, *kept}
        for id in ids:
            if self._drained(deployment, id):
                self._stop(id)
        if any(self.engine.report(id).state not in _OVER for id in ids):
            return
        for id in ids:
            self.engine.forget(id)
            self._leaving.pop(id, None)
        shutil.rmtree(instances.folder(self.home, deployment), ignore_errors=True)
        self._gauges.pop(deployment.id, None)
        self._looked.pop(deployment.id, None)
        endpoints.move(self.store, deployment, "gone")

    def _fail(self, deployment: Deployment, why: str) -> None:
        """Mark it failed; what answers (the revision before, other instances) is left at work."""
        current = endpoints.find_deployment(self.store, deployment.endpoint, deployment.name)
        if current is None or current.status in ("deleting", "failed"):
            return
        if (current.id, current.revision) != (deployment.id, deployment.revision):
            return  # asked to run something else since we looked
        for id in instances.processes(current):
            if id not in current.addresses:
                self.engine.stop(id)
        error = {"message": why, "target": current.name}
        if current.status == "ready":
            current = endpoints.move(self.store, current, "unhealthy", reason=why)
        before = current.before
        if current.status == "updating" and not before.get("answers"):
            before = rollback.answering(current) or before  # that was a change of numbers alone
        endpoints.move(self.store, current, "failed", reason=why, error=error, before=before)

    def _reports(self, deployment: Deployment) -> dict[int, Report]:
        return {
            instance: self.engine.report(deployment.process(instance))
            for instance in range(deployment.count)
        }

    def _why(self, deployment: Deployment, instance: int, report: Report) -> str:
        why = compute.why(self.engine, deployment.process(instance), report, home=self.home)
        return f": {why}" if why else ""


def _patience(deployment: Deployment) -> float:
    """Return the seconds within which an instance has to be ready."""
    probe = deployment.spec.readiness
    return max(probe.initial_delay + probe.failure_threshold * probe.period, 60)


def _passing(exc: Exception) -> bool:
    """Say whether it may go as it came: a full disk, packages that cannot be had now."""
    return isinstance(exc, OSError | Unavailable)


def _lost(report: Report) -> bool:
    """Say whether a process ended by no doing of its own: somebody killed it, perhaps."""
    return report.lost or (report.exit_code == -signal.SIGKILL and not report.reason)


def _once_more(deployment: Deployment, fallen: Iterable[int]) -> dict[str, int]:
    """Return the restarts of a deployment after one more of these instances."""
    more = {str(n): deployment.restarts.get(str(n), 0) + 1 for n in fallen}
    return {**deployment.restarts, **more}


def _on_its_way(deployment: Deployment) -> bool:
    """Say whether a look at it soon is worth while."""
    if deployment.status == "failed":
        return False
    return deployment.status != "ready" or len(deployment.addresses) < deployment.count
