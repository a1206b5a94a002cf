"""Answers that may take long, each sought by a thread of its own: nobody waits past a moment.

For what a tick of the supervisor asks and must not wait for: a program that
hangs, a folder of many files.  Who asks again later gets the answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

T = TypeVar("T")
MOST = 8  # that are sought at once
_MOST_KEPT = 200  # answers that nobody has come back for


class Aside:
    """Questions on their way.  An answer is given once: who wants it longer keeps it."""

    def __init__(self, patience: float) -> None:
        """`patience`: seconds that the one who asks first waits."""
        self.patience = patience
        self._sought: dict[Hashable, Future[Any]] = {}
        self._lock = threading.Lock()

    def answer(self, name: Hashable, seek: Callable[[], T], *, wait_for: bool = True) -> T | None:
        """Return what `seek` returned, which is never None; None where it is still sought.

        Raises what it raised.  Not `wait_for`: the first to ask does not wait either.
        """
        with self._lock:
            sought = self._sought.get(name)
            begun = sought is None
            if sought is None:
                if sum(not one.done() for one in self._sought.values()) >= MOST:
                    return None
                if len(self._sought) >= _MOST_KEPT:
                    self._sought = {k: one for k, one in self._sought.items() if not one.done()}
                sought = self._sought[name] = Future()
                work = (sought, seek)
                threading.Thread(target=_seek, args=work, name="aside", daemon=True).start()
        if begun and wait_for:
            wait([sought], timeout=self.patience)
        if not sought.done():
            return None
        with self._lock:
            if self._sought.get(name) is sought:
                del self._sought[name]
        found: T = sought.result()
        return found


def _seek(sought: Future[Any], seek: Callable[[], Any]) -> None:
    try:
        sought.set_result(seek())
    except BaseException as exc:
        sought.set_exception(exc)
