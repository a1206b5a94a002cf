"""How long an environment takes to build, and what disk it costs.

`python bench/environments.py [--json]`: a scikit-learn conda file with an empty
cache of packages and with a full one, a conda file that shares our PyTorch, and
a context with one package on top of a copy of ours.  It needs the package
index.  Wall time, each once: run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from finery.core.assets import Asset
from finery.engines import built
from finery.engines.environments import Environments
from finery.engines.local import LocalEngine

SKLEARN = """dependencies:
  - python=3.11
  - numpy=1.23.5
  - scikit-learn=1.2.2
  - scipy=1.10.1
  - pip: [azureml-defaults==1.53.0, joblib==1.2.0]
"""
TORCH = "dependencies: [python=3.11, pytorch, accelerate]"
CONTEXT = "FROM python:3.11\nRUN pip install einops\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = measure(Path(place))
    if asked.json:
        print(json.dumps(found, indent=1))
        return
    for one in found:
        print(f"{one['what']:<44}{one['seconds']:>7} s {one['own_mib']:>8} MiB of its own")


def measure(place: Path) -> list[dict[str, object]]:
    (place / "context").mkdir()
    (place / "context" / "Dockerfile").write_text(CONTEXT)
    wishes = [
        ("scikit-learn, nothing downloaded yet", "a", {"kind": "conda", "conda": SKLEARN}),
        ("scikit-learn, all in uv's cache", "b", {"kind": "conda", "conda": SKLEARN}),
        ("PyTorch and accelerate, PyTorch shared", "b", {"kind": "conda", "conda": TORCH}),
        ("a context: one package on a copy of ours", "b", {"kind": "build"}),
    ]
    surroundings = {**os.environ, "UV_CACHE_DIR": str(place / "cache")}
    return [once(place / home, place, surroundings, what, spec) for what, home, spec in wishes]


def once(
    home: Path, place: Path, surroundings: dict[str, str], what: str, spec: dict[str, str]
) -> dict[str, object]:
    home.mkdir(exist_ok=True)
    engine = LocalEngine(home, surroundings=surroundings)
    server = Environments(
        home, engine=engine, locate=lambda _, name: place / name, surroundings=surroundings
    )
    location = "context" if spec["kind"] == "build" else ""
    asset = Asset(
        scope="w", kind="environment", name=what, version="1", spec=spec, location=location
    )
    before = {one.key for one in built.all(home)}
    begun = time.monotonic()
    while server.runtime(asset, serving=False, log=home / "log") is None:
        time.sleep(0.005)
    seconds = round(time.monotonic() - begun, 2)
    engine.close()
    (made,) = [one for one in built.all(home) if one.key not in before]
    return {
        "what": what,
        "seconds": seconds,
        "own_mib": round(made.bytes / 2**20, 1),
        "shared_mib": round(made.shared / 2**20, 1),
    }


if __name__ == "__main__":
    main()
