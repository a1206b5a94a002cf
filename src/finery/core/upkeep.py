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
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finery.core import assets, endpoints, references
from finery.core.assets import Asset
from finery.core.compute import Engine, Process, Report
from finery.core.endpoints import Deployment
from finery.core.errors import Conflict, Failure
from finery.core.files import Files
from finery.core.store import Store
from finery.core.workspaces import Keys

logger = logging.getLogger(__name__)

_MOST_RESTARTS = 5  # in a row, before a deployment counts as failed
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
        interpreter: Callable[[Asset | None], Path],
        kind: Callable[[Path], str],
    ) -> None:
        self.store, self.files, self.home = store, files, home
        self.engine, self.keys, self.interpreter, self.kind = (
            engine,
            keys,
            interpreter,
            kind,
        )
        self._watches: dict[str, Watch] = {}

    def tick(self) -> bool:
        """Take one step for each deployment; say whether any is on its way somewhere."""
        busy = False
        for deployment in endpoints.kept(self.store):
            try:
                self._step(deployment)
            except Conflict:
                pass  # someone changed it since we looked; the next tick looks again
            except Failure as exc:
                self._fail(deployment, str(exc))
            except Exception as exc:  # one deployment's trouble must not stop the others
                logger.exception("deployment %s: a step failed", deployment.name)
                self._fail(deployment, f"internal error: {type(exc).__name__}: {exc}")
            busy = busy or deployment.status not in ("ready", "failed")
        return busy

    def _step(self, deployment: Deployment) -> None:
        match deployment.status:
            case "creating" | "updating":
                self._bring_up(deployment)
            case "ready" | "unhealthy":
                self._look_after(deployment)
            case "deleting":
                self._take_down(deployment)

    def _bring_up(self, deployment: Deployment) -> None:
        reports = self._reports(deployment)
        for instance, report in reports.items():
            if report.state == "unknown":
                self._start(deployment, instance)
            if report.state == "exited":
                raise Failure(
                    f"instance {instance} ended before it answered{self._why(deployment, instance)}"
                )
        ready = {
            deployment.process(instance): report.address
            for instance, report in reports.items()
            if report.address
        }
        if len(ready) < len(reports):
            return self._check_patience(deployment)
        old = [id for id in deployment.addresses if id not in ready]
        endpoints.move(self.store, deployment, "ready", addresses=ready, error=None)
        for id in old:  # the revision before; it finishes what it was asked (SIGTERM), then ends
            self.engine.stop(id)
        return None

    def _check_patience(self, deployment: Deployment) -> None:
        """Raise `Failure` when the readiness probe's time is over."""
        probe = deployment.spec.readiness
        patience = max(probe.initial_delay + probe.failure_threshold * probe.period, 60)
        if time.time() - deployment.changed_at.timestamp() > patience:
            raise Failure(f"not ready within {patience:g} s{self._why(deployment, 0)}")

    def _look_after(self, deployment: Deployment) -> None:
        ready, fallen = {}, []
        for instance, report in self._reports(deployment).items():
            id = deployment.process(instance)
            if report.state == "unknown":
                self._start(deployment, instance)
            elif report.state == "exited" or self._unwell(deployment, id, report):
                self.engine.stop(id)
                self._watches.pop(id, None)
                fallen.append(instance)
            elif report.address:
                ready[id] = report.address
        if ready != deployment.addresses or fallen:
            restarts = {**deployment.restarts}
            for instance in fallen:
                restarts[str(instance)] = restarts.get(str(instance), 0) + 1
                logger.warning("deployment %s: instance %s is replaced", deployment.name, instance)
            if any(count > _MOST_RESTARTS for count in restarts.values()):
                raise Failure(
                    f"an instance fell {_MOST_RESTARTS} times{self._why(deployment, fallen[0])}"
                )
            deployment = endpoints.place(self.store, deployment, addresses=ready, restarts=restarts)
        if not ready and deployment.status == "ready":
            endpoints.move(self.store, deployment, "unhealthy", reason="no instance answers")
        elif ready and deployment.status == "unhealthy":
            endpoints.move(self.store, deployment, "ready", reason="an instance answers again")

    def _unwell(self, deployment: Deployment, id: str, report: Report) -> bool:
        """Say whether the liveness probe has failed too often; probes run beside the loop."""
        probe = deployment.spec.liveness
        if not report.address:
            return False
        watch = self._watches.setdefault(id, Watch(next=time.monotonic() + probe.initial_delay))
        if not watch.busy and time.monotonic() >= watch.next:
            watch.busy = True
            watch.next = time.monotonic() + probe.period
            address = f"{report.address}/health"
            threading.Thread(
                target=_probe, args=(watch, address, probe.timeout), daemon=True
            ).start()
        return watch.failures >= probe.failure_threshold

    def _start(self, deployment: Deployment, instance: int) -> None:
        spec = deployment.spec
        id = deployment.process(instance)
        place = self.home / "deployments" / deployment.id / id
        place.mkdir(parents=True, exist_ok=True)
        document = self._document(deployment, place)
        (place / "serve.json").write_text(json.dumps(document, indent=1))
        environment = assets.by_ref(self.store, spec.environment) if spec.environment else None
        interpreter = self.interpreter(environment)
        command = [
            str(interpreter),
            "-m",
            "finery.serving.host",
            str(place / "serve.json"),
        ]
        env = {
            **spec.env,
            "FINERY_SERVING_SECRET": self.keys.derived("serving", id),
            "FINERY_DEPLOYMENT": deployment.name,
            "PATH": f"{interpreter.parent}:/usr/local/bin:/usr/bin:/bin",
        }
        process = Process(
            id=id,
            command=command,
            cwd=place,
            log=place / "log.txt",
            env=env,
            warm=True,
            grace=_GRACE,
        )
        self.engine.start(process)

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
        ids = {deployment.process(instance) for instance in range(deployment.spec.instances)}
        ids |= set(deployment.addresses)
        for id in ids:
            self.engine.stop(id)
        if all(self.engine.report(id).state in ("exited", "unknown") for id in ids):
            for id in ids:
                self.engine.forget(id)
            shutil.rmtree(self.home / "deployments" / deployment.id, ignore_errors=True)
            endpoints.move(self.store, deployment, "gone")

    def _fail(self, deployment: Deployment, why: str) -> None:
        """Mark it failed; an update that failed leaves the revision before it at work."""
        current = endpoints.find_deployment(self.store, deployment.endpoint, deployment.name)
        if current is None or current.status in ("deleting", "failed"):
            return
        for instance in range(deployment.spec.instances):
            self.engine.stop(deployment.process(instance))
        reachable = current.addresses if deployment.status == "updating" else {}
        error = {"message": why, "target": deployment.name}
        if deployment.status == "ready":
            deployment = endpoints.move(self.store, deployment, "unhealthy", reason=why)
        endpoints.move(
            self.store,
            deployment,
            "failed",
            reason=why,
            error=error,
            addresses=reachable,
        )

    def _reports(self, deployment: Deployment) -> dict[int, Report]:
        return {
            instance: self.engine.report(deployment.process(instance))
            for instance in range(deployment.spec.instances)
        }

    def _why(self, deployment: Deployment, instance: int) -> str:
        """Return the last line of an instance's log: where most programs say why they ended."""
        tail = self.engine.log(deployment.process(instance), -4096).decode(errors="replace")
        lines = [line.strip() for line in tail.splitlines() if line.strip()]
        return f": {lines[-1][:500]}" if lines else ""


def _probe(watch: Watch, address: str, timeout: float) -> None:
    try:
        with urllib.request.urlopen(address, timeout=timeout):
            watch.failures = 0
    except (OSError, urllib.error.HTTPError):
        watch.failures += 1
    finally:
        watch.busy = False
