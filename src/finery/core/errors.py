"""The ways an operation can fail.

Nine kinds, and no more: a caller can do something different about each.  The
core raises them; each door says them in its own words (`doors/http.py` has the
status codes, `doors/*/wire.py` the bodies).  Nothing here knows of HTTP.
"""

from __future__ import annotations


class Failure(Exception):
    """The operation failed."""

    def __init__(self, message: str = "", *, target: str = "") -> None:
        """`message` says what, where and what to do; `target` names the field or thing."""
        super().__init__(message or self.__doc__)
        self.target = target


class Unauthenticated(Failure):
    """No valid credential came with the request."""


class Forbidden(Failure):
    """The caller may not do this here."""


class NotFound(Failure):
    """There is no such thing."""


class AlreadyExists(Failure):
    """Something with that name and version exists and cannot be changed."""


class Invalid(Failure):
    """The request does not make sense."""


class TooLarge(Failure):
    """The request is larger than is taken here."""


class Conflict(Failure):
    """The thing is not in a state that allows this now."""


class NotSupported(Failure):
    """The real service can do this; we cannot, and will not pretend to."""


class Unavailable(Failure):
    """Something this operation needs is not answering, or is full."""
