"""Builds that nobody waits for are stopped; what builds have left, and what nothing uses, goes.

Also those of an earlier server's life: a build outlives its server, and may be
wanted no more when there is one again.  `environments.py` says what is asked
for; how a built environment is removed is `built.py`.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from pathlib import Path

from finery.core.compute import Engine
from finery.engines import building, built

TIDIED_AGAIN = 3600.0  # seconds after which what is left, and what nothing uses, is looked for anew
FAILED_KEPT = 24 * 3600.0  # seconds that the files of a build that failed are kept
UNUSED_KEPT = 30 * 24 * 3600.0  # seconds that an environment is kept that nothing uses
_ENDS = ("exit.json", "lost.json")  # of a process that has ended
_LOOK = 1.0  # seconds between looks at the builds that run

logger = logging.getLogger(__name__)


class Minding:
    """What is done about the builds of one home while others wait for them, or nobody does."""

    def __init__(
        self, home: Path, *, engine: Engine, lock: threading.RLock, ignored: float
    ) -> None:
        """`home`: the server's.  `lock`: held by whoever begins a build, or gives one away.

        `ignored`: seconds after which a build that nobody asks for is stopped.
        """
        self.home, self.engine, self.ignored = home, engine, ignored
        self._lock = lock
        self._waited: dict[str, float] = {}  # builds that run -> when they were last asked for
        self._minds = False
        self._tidy_at = 0.0  # when to look again for what nothing uses
        self._over = threading.Event()

    def begin(self) -> None:
        """Look after what earlier servers have begun, and go on tidying while nobody asks."""
        threading.Thread(target=self._keep_tidy, name="tidying", daemon=True).start()

    def close(self) -> None:
        self._over.set()

    def asked(self, key: str) -> None:
        """Somebody waits for the build; it is stopped when nobody has said so for a while."""
        with self._lock:
            self._waited[key] = time.monotonic()
            if not self._minds:
                self._minds = True
                threading.Thread(target=self._mind, name="builds", daemon=True).start()

    def clear(self, key: str) -> None:
        """Take away what a build that ended early has left of its folder."""
        folder = self.home / "environments" / key
        if not (folder / building.READY).exists():
            shutil.rmtree(folder, ignore_errors=True)

    def look(self) -> None:
        """Have what nothing uses any more taken away, in the background, once an hour."""
        with self._lock:
            if time.monotonic() < self._tidy_at:
                return
            self._tidy_at = time.monotonic() + TIDIED_AGAIN
        threading.Thread(target=self.tidy, name="tidying", daemon=True).start()

    def tidy(self, *, unused: bool = True) -> None:
        """Take away what builds that failed have left and, if `unused`, what was long not used."""
        home, now = self.home, time.time()
        try:
            places = f"processes/{building.PROCESS}*"
            for end in (end for name in _ENDS for end in home.glob(f"{places}/{name}")):
                if built.when(end) < now - FAILED_KEPT:
                    self.engine.forget(end.parent.name)
            old = {"before": now - UNUSED_KEPT if unused else 0.0, "half": now - FAILED_KEPT}
            for key in built.expired(home, **old):
                with self._lock:
                    if built.put_aside(home, key, **old):
                        logger.info("the environment %s was not used for long: removed", key)
            built.sweep(home, before=now - FAILED_KEPT)
            built.discard(home)
        except Exception:
            logger.exception("the environments were not tidied: tried again in an hour")

    def _keep_tidy(self) -> None:
        for place in self.home.glob(f"processes/{building.PROCESS}*"):
            key = place.name.removeprefix(building.PROCESS)
            with self._lock:
                if key not in self._waited:
                    self.asked(key)  # from now on: who waits for it still will say so soon
        while not self._over.is_set():
            self.tidy(unused=False)
            self._over.wait(TIDIED_AGAIN)

    def _mind(self) -> None:
        """Look at the builds that run; ends with the last of them."""
        while not self._over.wait(min(_LOOK, self.ignored)):
            with self._lock:
                for key in [*self._waited]:
                    try:
                        self._mind_one(key)
                    except Exception:  # of one look: the next may go well, and others wait for it
                        logger.exception("the build of the environment %s was not looked at", key)
                if not self._waited:
                    self._minds = False
                    return

    def _mind_one(self, key: str) -> None:
        if self.engine.report(f"{building.PROCESS}{key}").state in ("exited", "unknown"):
            self._waited.pop(key)
            self.clear(key)
        elif time.monotonic() - self._waited[key] > self.ignored:
            logger.info("nobody waits for the environment %s: stopped", key)
            self.engine.stop(f"{building.PROCESS}{key}")
