"""Metrics of a run: to the log as one line each, and to MLflow from a thread of their own.

The thread drains what has come since its last call into one `log_batch` for the
step's run and one for the root run, so training never waits for the network, and
an MLflow that does not answer costs a warning and nothing else.  Without
MLFLOW_TRACKING_URI and MLFLOW_RUN_ID there is only the log.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INTERVAL = 0.5
LAST_WAIT = 20.0
POINTS_PER_CALL = 1000
PARAMS_PER_CALL = 100
LINE = (
    "loss",
    "eval_loss",
    "eval_anls",
    "eval_exact_match",
    "mean_token_accuracy",
    "learning_rate",
)


@dataclass
class Pending:
    """What one run is still to get."""

    points: list[tuple[str, float, int, int]] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    files: list[tuple[str, str]] = field(default_factory=list)

    def empty(self) -> bool:
        """Nothing left."""
        return not (self.points or self.params or self.tags or self.files)


class Reporter:
    """What was measured, each (step, name) once, on its way to the runs of this job."""

    def __init__(self, *, client: Any = None, runs: list[str] | None = None) -> None:
        """`client` and `runs` are for tests; by default those that the environment names."""
        self.client = client
        self.waiting = {run: Pending() for run in (_runs() if runs is None else runs)}
        self.seen: set[tuple[int, str]] = set()
        self.trouble = ""
        self.lock = threading.Lock()
        self.closed = threading.Event()
        self.thread: threading.Thread | None = None

    def log(self, values: Mapping[str, Any], *, step: int) -> None:
        """Numbers at a step; what is not a finite number, or already there, is left out."""
        now = int(time.time() * 1000)
        fresh = []
        for name, value in values.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and math.isfinite(value) and (step, name) not in self.seen:
                self.seen.add((step, name))
                fresh.append((name, float(value), now, step))
        with self.lock:
            for pending in self.waiting.values():
                pending.points += fresh
        self._start()

    def describe(
        self, *, params: Mapping[str, Any] | None = None, tags: Mapping[str, Any] | None = None
    ) -> None:
        """Parameters (of the step's run) and tags (of both runs)."""
        with self.lock:
            for number, pending in enumerate(self.waiting.values()):
                if number == 0:
                    pending.params.update({k: str(v)[:5000] for k, v in (params or {}).items()})
                pending.tags.update({k: str(v)[:5000] for k, v in (tags or {}).items()})
        self._start()

    def file(self, path: Path, folder: str) -> None:
        """A file that stays as it is, as an artifact of both runs below `folder`."""
        with self.lock:
            for pending in self.waiting.values():
                pending.files.append((str(path), folder))
        self._start()

    def close(self, *, wait: float = LAST_WAIT) -> None:
        """Sends the rest, for at most `wait` seconds; says what could not be sent."""
        self.closed.set()
        if self.thread is not None:
            self.thread.join(wait)
        with self.lock:
            left = sum(len(pending.points) for pending in self.waiting.values())
        if left:
            why = self.trouble or "it did not answer in time"
            print(f"warning: {left} metrics did not reach MLflow ({why})", flush=True)

    def _start(self) -> None:
        if self.thread is None and self.waiting and not self.closed.is_set():
            # Started here and not at import: a thread does not survive a fork.
            self.thread = threading.Thread(target=self._work, name="metrics", daemon=True)
            self.thread.start()

    def _work(self) -> None:
        pause = INTERVAL
        while not self.closed.wait(pause):
            pause = INTERVAL if self._send() else min(10.0, pause * 2)
        self._send()

    def _send(self) -> bool:
        """Delivers what each run is to get; what fails stays for the next time."""
        done = True
        for number, (run, pending) in enumerate(self.waiting.items()):
            while not pending.empty():
                with self.lock:
                    batch = Pending(
                        pending.points[:POINTS_PER_CALL],
                        dict(list(pending.params.items())[:PARAMS_PER_CALL]) if not number else {},
                        dict(pending.tags),
                        list(pending.files),
                    )
                try:
                    self._deliver(run, batch)
                except Exception as error:  # whatever a client raises, training goes on
                    self._complain(error)
                    done = False
                    break
                with self.lock:
                    del pending.points[: len(batch.points)]
                    del pending.files[: len(batch.files)]
                    for kept, sent in ((pending.params, batch.params), (pending.tags, batch.tags)):
                        for name, value in sent.items():
                            if kept.get(name) == value:
                                del kept[name]
        return done

    def _complain(self, error: Exception) -> None:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        if not self.trouble:
            print(f"warning: MLflow cannot be reached: {reason}", flush=True)
        self.trouble = reason

    def _deliver(self, run: str, batch: Pending) -> None:
        if self.client is None:
            self.client = _client()
        from mlflow.entities import Metric, Param, RunTag

        self.client.log_batch(
            run,
            metrics=[Metric(name, value, at, step) for name, value, at, step in batch.points],
            params=[Param(name, value) for name, value in batch.params.items()],
            tags=[RunTag(name, value) for name, value in batch.tags.items()],
        )
        for path, folder in batch.files:
            try:
                self.client.log_artifact(run, path, folder)
            except Exception as error:  # a picture is not worth sending the numbers twice
                self._complain(error)


def line(
    values: Mapping[str, float],
    *,
    step: int,
    steps: int,
    speed: float,
    left: float | None,
    unit: str = "tok/s",
) -> str:
    """One line of progress: how far, the loss, tokens or rows per second, time left."""
    share = min(1.0, step / max(1, steps))
    bar = "█" * int(share * 20) + "░" * (20 - int(share * 20))
    parts = [f"{share:4.0%} {bar} {step}/{steps}"]
    for name in LINE:
        if name in values:
            shown = f"{values[name]:.2e}" if name == "learning_rate" else f"{values[name]:.4f}"
            parts.append(f"{name.replace('mean_token_', '')} {shown}")
    if speed:
        parts.append(f"{speed:,.0f} {unit}")
    if left is not None:
        parts.append(f"{_clock(left)} left")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    whole = int(seconds + 0.5)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _runs() -> list[str]:
    """The step's run, then the root run where that is another."""
    if not os.environ.get("MLFLOW_TRACKING_URI") or os.environ.get("RANK", "0") != "0":
        return []
    named = [os.environ.get("MLFLOW_RUN_ID", ""), os.environ.get("FINERY_ROOT_RUN_ID", "")]
    return list(dict.fromkeys(run for run in named if run))


def _client() -> Any:
    # The default is seven retries with growing pauses: minutes at the end of a job.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    return mlflow.MlflowClient()
