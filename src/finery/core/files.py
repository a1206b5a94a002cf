"""Where bytes live: datastores as folders, so that a folder of data is a folder.

A location is a text that other rows keep:

    file:<datastore>/<path>      a file or folder of the workspace
    package:<path>               shipped with Finery, below `catalog/`
    https://…                    an address; fetched where it is used

Paths are confined to their datastore, links included.
"""

from __future__ import annotations

from pathlib import Path

from finery.core.errors import Invalid, NotFound
from finery.core.store import Store

PACKAGE = Path(__file__).parent.parent / "catalog"


class Files:
    """The bytes of every workspace, below one folder: `<root>/<scope>/<datastore>/<path>`."""

    def __init__(self, root: Path, store: Store) -> None:
        self.root, self.store = root, store

    def path(self, scope: str, datastore: str, path: str = "") -> Path:
        """Return where `path` of a datastore lies.  Raises `Invalid` if it would leave it."""
        base = (self.root / scope / datastore).resolve()
        found = (base / path.lstrip("/")).resolve()
        if not found.is_relative_to(base):
            raise Invalid(
                f"the path {path!r} leaves the datastore {datastore!r}", target="path"
            )
        return found

    def locate(self, scope: str, location: str) -> Path:
        """Return the file or folder that a location names.  Raises `NotFound` where none is."""
        if location.startswith("package:"):
            found = (PACKAGE / location.removeprefix("package:")).resolve()
            if not found.is_relative_to(PACKAGE.resolve()):
                raise Invalid(f"{location!r} leaves the package", target="path")
        elif location.startswith("file:"):
            datastore, _, path = location.removeprefix("file:").partition("/")
            found = self.path(scope, datastore, path)
        else:
            raise Invalid(f"{location!r} is not a place on this server", target="path")
        if not found.exists():
            raise NotFound(f"nothing is at {location!r}", target=location)
        return found
