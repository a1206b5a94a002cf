"""The supervisor's other half: one repeatable step per deployment and tick.

Brings instances up, notices those that fell or do not answer, replaces them,
and lets a revision go once the next one answers.  Requests never pass here.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finery.core import assets, compute, endpoints, references
from finery.core.compute import Engine, Environments, Process, Report
from finery.core.endpoints import Deployment
from finery.core.errors import Conflict, Failure
from finery.core.files import Files
from finery.core.store import FULL, Store
from finery.core.workspaces import Keys

logger = logging.getLogger(__name__)

_MOST_RESTARTS = 5  # in a row, before a deployment counts as failed
_SETTLED = 600.0  # seconds after which a fall is not one of a row
_OVER = ("exited", "unknown")  # what an engine says of a process that runs no more
_SPEC = "serve.json"  # in the folder of each process that was started
_GRACE = 30.0  # seconds for an instance to finish what it was asked before it ends


@dataclass
class Watch:
    """What is remembered of an instance between ticks; losing it only delays a restart."""

    next: float  # when to probe again, seconds of the monotonic clock
    failures: int = 0
    busy: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


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
        answers: Callable[[str, float], bool] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store, self.files, self.home = store, files, home
        self.engine, self.keys = engine, keys
        self.environments, self.kind = environments, kind
        self.answers, self.clock = answers or _answers, clock
        self._watches: dict[str, Watch] = {}
        self._falls: dict[tuple[str, int, int], int] = {}  # of an instance, one soon after another

    def tick(self) -> bool:
        """Take one step for each deployment; say whether any is on its way somewhere."""
        busy = False
        for deployment in endpoints.kept(self.store):
            try:
                self._tried(deployment)
            except Conflict:
                pass  # someone changed it since we looked; the next tick looks again
            except Exception as exc:  # what went wrong could not be written down: tried again
                logger.warning("deployment %s waits: %s", deployment.name, exc)
                continue  # not busy: it would only fail at once again
            busy = busy or deployment.status not in ("ready", "failed")
        return busy

    def _tried(self, deployment: Deployment) -> None:
        try:
            self._step(deployment)
        except Conflict:
            raise
        except Failure as exc:
            if exc.target == FULL:
                raise  # no fault of the deployment's
            self._fail(deployment, str(exc))
        except OSError as exc:  # a full disk, most likely
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
                self._look_after(deployment)
            case "failed":
                self._as_left(deployment)
            case "deleting":
                return self._take_down(deployment)
        return self._sweep(deployment)

    def _as_left(self, deployment: Deployment) -> Deployment:
        """Forget the addresses of instances that have ended and are not replaced."""
        own = set() if deployment.status == "failed" else {*self._processes(deployment)}
        there = {
            id: address
            for id, address in deployment.addresses.items()
            if id in own or self.engine.report(id).state not in _OVER
        }
        if there == deployment.addresses:
            return deployment
        return endpoints.place(self.store, deployment, addresses=there)

    def _bring_up(self, deployment: Deployment) -> None:
        reports, fallen = self._reports(deployment), {}
        for instance, report in reports.items():
            if report.state == "unknown":
                self._start(deployment, instance)
            if report.state == "exited":
                if deployment.process(instance) not in deployment.addresses and not _lost(report):
                    why = self._why(deployment, instance)
                    raise Failure(f"instance {instance} ended before it answered{why}")
                fallen[instance] = report
        ready = {
            deployment.process(instance): report.address
            for instance, report in reports.items()
            if report.address and report.state not in _OVER
        }
        if fallen:
            others = {**deployment.addresses, **ready}
            for instance in fallen:
                others.pop(deployment.process(instance), None)
            return self._replace(deployment, fallen, addresses=others)
        if len(ready) < len(reports):
            waited_for = [n for n in reports if deployment.process(n) not in ready]
            return self._check_patience(deployment, waited_for[0])
        # What is left of the revision before is swept away: it first finishes what it was asked.
        endpoints.move(self.store, deployment, "ready", addresses=ready, error=None)
        return None

    def _check_patience(self, deployment: Deployment, instance: int) -> None:
        """Raise `Failure` when the readiness probe's time is over."""
        patience = _patience(deployment)
        if self.clock() - deployment.changed_at.timestamp() > patience:
            why = self._why(deployment, instance)
            raise Failure(f"instance {instance} was not ready within {patience:g} s{why}")

    def _look_after(self, deployment: Deployment) -> None:
        ready, fallen = {}, {}
        for instance, report in self._reports(deployment).items():
            id = deployment.process(instance)
            if report.state == "unknown":
                self._start(deployment, instance)
            elif report.state == "exited" or self._unwell(deployment, id, report):
                fallen[instance] = report
            elif report.address:
                ready[id] = report.address
        if fallen:
            self._replace(deployment, fallen, addresses=ready)
        elif ready != deployment.addresses:
            endpoints.place(self.store, deployment, addresses=ready)
        if not ready and deployment.status == "ready":
            endpoints.move(self.store, deployment, "unhealthy", reason="no instance answers")
        elif ready and deployment.status == "unhealthy":
            endpoints.move(self.store, deployment, "ready", reason="an instance answers again")

    def _replace(
        self, deployment: Deployment, fallen: Mapping[int, Report], *, addresses: dict[str, str]
    ) -> None:
        """Give the instances that fell new processes.  Raises `Failure` for one that always falls.

        `addresses` are those of the others.
        """
        restarts = {**deployment.restarts}
        for instance, report in fallen.items():
            id = deployment.process(instance)
            self.engine.stop(id)
            self._watches.pop(id, None)
            if self._falls_on(deployment, instance, report):
                endpoints.place(self.store, deployment, addresses=addresses)
                why = self._why(deployment, instance)
                raise Failure(f"instance {instance} fell {_MOST_RESTARTS + 1} times{why}")
            restarts[str(instance)] = restarts.get(str(instance), 0) + 1
            logger.warning("deployment %s: instance %s is replaced", deployment.name, instance)
        endpoints.place(self.store, deployment, addresses=addresses, restarts=restarts)

    def _falls_on(self, deployment: Deployment, instance: int, report: Report) -> bool:
        """Count a fall; say whether there were too many without a good while in between."""
        ended = self.clock() if report.ended_at is None else report.ended_at
        lived = 0.0 if report.started_at is None else ended - report.started_at
        which = (deployment.id, deployment.revision, instance)
        self._falls[which] = 1 if lived > _SETTLED else self._falls.get(which, 0) + 1
        return self._falls[which] > _MOST_RESTARTS

    def _sweep(self, deployment: Deployment) -> None:
        """End what this deployment once started and needs no more; its logs stay."""
        needed = {*self._processes(deployment), *deployment.addresses}
        for id in self._started(deployment) - needed:
            self.engine.stop(id)
            if self.engine.report(id).state in _OVER:
                self.engine.forget(id)
                place = self._place(deployment) / id
                shutil.rmtree(place / "code", ignore_errors=True)
                (place / _SPEC).unlink(missing_ok=True)

    def _unwell(self, deployment: Deployment, id: str, report: Report) -> bool:
        """Say whether the liveness probe has failed too often; probes run beside the loop."""
        probe = deployment.spec.liveness
        if not report.address:
            begun = report.started_at or self.clock()
            return self.clock() - begun > _patience(deployment)
        watch = self._watches.setdefault(id, Watch(next=time.monotonic() + probe.initial_delay))
        if not watch.busy and time.monotonic() >= watch.next:
            watch.busy = True
            watch.next = time.monotonic() + probe.period
            address = f"{report.address}/health"
            given = (watch, address, probe.timeout)
            threading.Thread(target=self._probe, args=given, daemon=True).start()
        return watch.failures >= probe.failure_threshold

    def _probe(self, watch: Watch, address: str, timeout: float) -> None:
        try:
            watch.failures = 0 if self.answers(address, timeout) else watch.failures + 1
        finally:
            watch.busy = False

    def _start(self, deployment: Deployment, instance: int) -> None:
        spec = deployment.spec
        id = deployment.process(instance)
        place = self._place(deployment) / id
        place.mkdir(parents=True, exist_ok=True)
        environment = assets.by_ref(self.store, spec.environment) if spec.environment else None
        log = place / "environment.log"
        runtime = self.environments.runtime(environment, serving=True, log=log)
        if runtime is None:
            return  # it is being built; asked again at the next tick
        document = self._document(deployment, place)
        (place / _SPEC).write_text(json.dumps(document, indent=1))
        env = {
            **spec.env,
            "FINERY_SERVING_SECRET": self.keys.derived("serving", id),
            "FINERY_DEPLOYMENT": deployment.name,
            **runtime.env,
        }
        process = Process(
            id=id,
            command=[runtime.python, "-m", "finery.serving.host", str(place / _SPEC)],
            cwd=place,
            log=place / "log.txt",
            env=env,
            gpus=self._device(deployment, instance),
            image=runtime.image,
            warm=runtime.own,
            grace=_GRACE,
        )
        self.engine.start(process)

    def _device(self, deployment: Deployment, instance: int) -> tuple[int, ...]:
        """Return the GPU that an instance sees, where there are any.

        It shares it with whatever else runs there: a lease for as long as it
        answers would leave a machine with one GPU nothing to train on.
        """
        gpus = self.engine.capacity().gpus
        first = zlib.crc32(deployment.id.encode())
        return ((first + instance) % gpus,) if gpus else ()

    def _document(self, deployment: Deployment, place: Path) -> dict[str, Any]:
        """Return the serving process's spec file: see `serving/spec.py`."""
        spec = deployment.spec
        document: dict[str, Any] = {
            "max_concurrent_requests": spec.max_concurrent_requests,
            "max_queue_wait_ms": spec.max_queue_wait_ms,
            "request_timeout_ms": spec.request_timeout_ms,
        }
        model: Path | None = None
        if spec.model:
            model = references.path(self.store, self.files, deployment.workspace, spec.model)
            document["model"] = str(model)
        if spec.model.startswith("asset:"):
            asset = assets.by_ref(self.store, spec.model)
            document |= {"model_name": asset.name, "model_version": asset.version}
        if spec.script:
            code = references.path(self.store, self.files, deployment.workspace, spec.code)
            shutil.copytree(code, place / "code", dirs_exist_ok=True)
            return {
                **document,
                "kind": "script",
                "code": str(place / "code"),
                "script": spec.script,
            }
        if model is None:
            raise Failure("a deployment needs a model, or code with a scoring script")
        kind = self.kind(model)
        if kind == "chat":  # it answers in batches: one at a time would only make callers wait
            del document["max_concurrent_requests"]
        return {**document, "kind": kind}

    def _take_down(self, deployment: Deployment) -> None:
        ids = {*self._processes(deployment), *deployment.addresses, *self._started(deployment)}
        for id in ids:
            self.engine.stop(id)
            self._watches.pop(id, None)
        if any(self.engine.report(id).state not in _OVER for id in ids):
            return
        for id in ids:
            self.engine.forget(id)
        shutil.rmtree(self._place(deployment), ignore_errors=True)
        endpoints.move(self.store, deployment, "gone")

    def _fail(self, deployment: Deployment, why: str) -> None:
        """Mark it failed; what answers (the revision before, other instances) is left at work."""
        current = endpoints.find_deployment(self.store, deployment.endpoint, deployment.name)
        if current is None or current.status in ("deleting", "failed"):
            return
        if (current.id, current.revision) != (deployment.id, deployment.revision):
            return  # asked to run something else since we looked
        for id in self._processes(current):
            if id not in current.addresses:
                self.engine.stop(id)
        error = {"message": why, "target": current.name}
        if current.status == "ready":
            current = endpoints.move(self.store, current, "unhealthy", reason=why)
        endpoints.move(self.store, current, "failed", reason=why, error=error)

    def _place(self, deployment: Deployment) -> Path:
        return self.home / "deployments" / deployment.id

    def _processes(self, deployment: Deployment) -> list[str]:
        """Return the ids of the processes that there should be."""
        return [deployment.process(instance) for instance in range(deployment.spec.instances)]

    def _started(self, deployment: Deployment) -> set[str]:
        """Return the ids of all that was started for it and not swept away yet."""
        return {found.parent.name for found in self._place(deployment).glob(f"*/{_SPEC}")}

    def _reports(self, deployment: Deployment) -> dict[int, Report]:
        return {
            instance: self.engine.report(deployment.process(instance))
            for instance in range(deployment.spec.instances)
        }

    def _why(self, deployment: Deployment, instance: int) -> str:
        said = compute.last_words(self.engine, deployment.process(instance), home=self.home)
        return f": {said}" if said else ""


def _patience(deployment: Deployment) -> float:
    """Return the seconds within which an instance has to be ready."""
    probe = deployment.spec.readiness
    return max(probe.initial_delay + probe.failure_threshold * probe.period, 60)


def _lost(report: Report) -> bool:
    """Say whether a process ended by no doing of its own: the machine was stopped, perhaps."""
    return report.exit_code is None and not report.reason and not report.timed_out


def _answers(address: str, timeout: float) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=timeout):
            return True
    except OSError:
        return False
