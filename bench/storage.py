"""One GiB up and down through the official storage client, and what the server holds in memory.

    python bench/storage.py [--mib 1024] [--client .venv-sdk/bin/python]

The server is a process of its own with nothing but the blob door, on plain
http; the client runs in the environment of the official packages, with the
concurrency that `azure-ai-ml` asks for.  Prints MB/s each way and the growth of
the server's peak memory, and ends with status 1 if that is 100 MB or more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

ROOT = Path(__file__).parent.parent

CLIENT = """
import json, os, sys, time
from azure.storage.blob import ContainerClient
url, path, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
container = ContainerClient.from_container_url(url, retry_total=0)
def timed(name, work):
    start = time.perf_counter()
    work()
    print(json.dumps({"what": name, "seconds": time.perf_counter() - start}), flush=True)
def upload(workers):
    with open(path, "rb") as file:
        container.upload_blob("big", file, overwrite=True, max_concurrency=workers)
def download(workers):
    with open(path + ".back", "wb") as file:
        container.download_blob("big", max_concurrency=workers).readinto(file)
timed("up, 16 at a time", lambda: upload(16))
timed("down, 16 at a time", lambda: download(16))
timed("up, one at a time", lambda: upload(1))
timed("down, one at a time", lambda: download(1))
same = os.system(f"cmp {path} {path}.back") == 0
print(json.dumps({"what": "same", "seconds": 0.0 if same else -1.0}))
"""


def serve(home: Path) -> None:
    """Run the blob door on a free port; its address goes to `home/address`."""
    import uvicorn
    from fastapi import FastAPI

    from finery.core import ids, store
    from finery.core.compute import Capacity
    from finery.core.files import Files
    from finery.core.workspaces import Keys
    from finery.doors.azureml import sas, storage
    from finery.doors.http import House

    database = store.open_sqlite(home / "finery.db")
    store.metadata.create_all(database._engine)
    house = House(
        store=database,
        files=Files(home / "files", database),
        keys=Keys(home),
        http="http://127.0.0.1",
        https="https://127.0.0.1",
        wake=lambda: None,
        log=lambda _, __: b"",
        capacity=lambda: Capacity(cpus=1, memory=1, gpus=0),
        default_workspace=("s", "g", "w"),
    )
    app = FastAPI()
    app.include_router(storage.router(house))
    house.files.create("w1", "store")
    query = sas.sign(house.keys, "w1", container="store", until=ids.now() + timedelta(hours=1))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    socket = server.config.bind_socket()
    port = socket.getsockname()[1]
    (home / "part").write_text(f"http://127.0.0.1:{port}/blob/w1/store?{query}")
    (home / "part").rename(home / "address")
    server.run(sockets=[socket])


def peak(pid: int) -> float:
    """Return the most memory a process has held, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def busy(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--client", default=str(ROOT / ".venv-sdk" / "bin" / "python"))
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return 0
    with tempfile.TemporaryDirectory(prefix="finery-bench-") as folder:
        return measure(Path(folder), args.mib, args.client)


def measure(home: Path, mib: int, client: str) -> int:
    data = home / "data"
    with data.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
    server = subprocess.Popen([sys.executable, __file__, "--serve", str(home)])
    try:
        while not (home / "address").exists():
            time.sleep(0.05)
        url, before = (home / "address").read_text(), peak(server.pid)
        command = [client, "-c", CLIENT, url, str(data), str(mib << 20)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        after, cpu = peak(server.pid), busy(server.pid)
    finally:
        server.terminate()
        server.wait()
    rows = [json.loads(line) for line in answer.stdout.splitlines()]
    for row in rows[:-1]:
        rate = mib * 1.048576 / row["seconds"]
        print(f"{row['what']:22} {rate:8.0f} MB/s {row['seconds']:8.2f} s")
    print(f"{'server CPU':22} {4 * mib * 1.048576 / cpu:8.0f} MB per second of it")
    print(f"{'server memory':22} {before:8.0f} MB, at most {after - before:.0f} MB more")
    same = rows[-1]["seconds"] == 0.0
    print(f"{'bytes':22} {'the same' if same else 'DIFFERENT'}")
    return 0 if same and after - before < 100 else 1


if __name__ == "__main__":
    sys.exit(main())
