"""What a reference is called on a page, and where a click on it leads; durations and sizes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import quote

from finery.doors.studio import concealing

_MADE = re.compile(r"(?:file:)?workspaceblobstore/azureml/(?P<job>[^/]+)/(?P<output>[^/]+)")
_WHO = re.compile(r"(?<=://)[^/]*@")  # of an address: who asks, and the password
_UNITS = ("KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class Place:
    text: str
    href: str = ""  # of a page here


def place(ref: str) -> Place:
    """Return what a reference is for a person."""
    if ref.startswith("asset:"):
        _, scope, asset, version = ref.removeprefix("asset:").split("/", 3)
        return Place(f"{asset}, version {version}{' (catalog)' if scope == 'azureml' else ''}")
    if ref.startswith("job:"):
        job, _, output = ref.removeprefix("job:").partition("/")
        return Place(f"{output} of {job}", of_job(job))
    if ref.startswith("file:"):
        return Place(ref.removeprefix("file:"))
    if ref.startswith("package:"):
        return Place(f"part of Finery: {ref.removeprefix('package:')}")
    if ref.startswith(("http://", "https://")):
        return Place(_WHO.sub("", ref.partition("?")[0]))  # what follows may be a signature
    return Place(concealing.hidden(ref))


def maker(location: str, *, of: str) -> str:
    """Return the job that made what lies there, where that is another one than `of`."""
    found = _MADE.match(location)
    return found["job"] if found and found["job"] != of else ""


def of_job(name: str) -> str:
    return f"/studio/jobs/{quote(name, safe='')}"


def of_model(name: str) -> str:
    """Return where MLflow's pages show a registered model."""
    return f"/mlflow/#/models/{quote(name, safe='')}"


def of_endpoint(name: str) -> str:
    return f"/studio/endpoints/{quote(name, safe='')}"


def lasting(seconds: float) -> str:
    """Return a time for a person: 12 ms, 3.4 s, 0:02:05."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return str(timedelta(seconds=round(seconds))) if seconds >= 60 else f"{seconds:.1f} s"


def size(count: int) -> str:
    """Return a number of bytes for a person: 12 bytes, 3.4 KiB."""
    if count < 1024:
        return f"{count} byte{'s' * (count != 1)}"
    power = min((count.bit_length() - 1) // 10, len(_UNITS))
    return f"{count / 1024**power:.1f} {_UNITS[power - 1]}"
