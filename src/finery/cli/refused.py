"""How a command says that it cannot be done."""

from __future__ import annotations


class Refused(Exception):
    """The command cannot be done; the message says what and what to do.  Exit status 1."""
