"""Attempts that were in vain: when to try again, and when to give up.

For what may go as it came, as a disk that is full for a while.  What is tried
is `upkeep.py`'s business.
"""

from __future__ import annotations

_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds: each pause is twice the one before
_MOST = 60  # in a row: about an hour


class Attempts:
    """Those that were in vain, by what was tried.  Only memory: losing it delays something."""

    def __init__(self) -> None:
        self._in_vain: dict[str, tuple[int, float]] = {}  # how many in a row; when the next is due

    def due(self, what: str, *, now: float) -> bool:
        """Say whether something may be tried now."""
        return now >= self._in_vain.get(what, (0, 0.0))[1]

    def failed(self, what: str, *, now: float) -> bool:
        """Take note of an attempt that was in vain; say whether there were too many in a row."""
        before = self._in_vain.get(what, (0, 0.0))[0]
        pause = min(_PAUSE * 2 ** min(before, 10), _LONGEST_PAUSE)
        self._in_vain[what] = (before + 1, now + pause)
        return before + 1 >= _MOST

    def over(self, what: str) -> None:
        """Forget about it: it has been done, or is not wanted any more."""
        self._in_vain.pop(what, None)
