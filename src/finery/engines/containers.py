"""A process in a container: the words that Docker or Podman are given.  It runs none itself.

The container sees the folders that its process works with, at the same paths,
and nothing else of the home: neither the database nor a key.  Its variables are
in a file, because a command line is seen by everyone.  It has the machine's
network, so that the server is where it always is, and goes by the id of its
process, so that it can be removed whoever has died.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finery.core.compute import Process
from finery.engines import ranks

PROGRAMS = ("docker", "podman")
HOST = "/opt/finery"  # where the scoring host is, in a container that serves
PACKAGE = Path(__file__).parents[1]
SHM_SIZE = 2 << 30  # bytes, as on Azure
# What tells the client where its engine is, and nothing that a job could say.
CLIENT = re.compile(
    r"DOCKER_(HOST|CONTEXT|CONFIG|CERT_PATH|TLS_VERIFY)|CONTAINER_HOST|XDG_RUNTIME_DIR"
)
# What a client ends with where its engine did not start the container, or is gone itself.
NOT_STARTED = (125, 126, 127)
_ANSWERS = 3.0  # seconds that a client is given to say that its engine runs
# By these a job would change the client, which runs outside of the container.
_CLIENTS_OWN = re.compile(
    r"LD_.*|DOCKER.*|CONTAINER.*|PODMAN.*|REGISTRY.*|GO.*|SSL_.*|.*_PROXY|.*_proxy|PATH|HOME"
    r"|XDG_.*|TMPDIR|BASH.*|ENV|IFS|PS4|STORAGE_.*|BUILDAH.*"
)
# Each rank is a container: its number is known only to the shell that the keeper starts.
_LINE = 'client=$1; name=$2; shift 2; exec "$client" run --name "$name-$RANK" "$@"'


@dataclass(frozen=True, kw_only=True)
class Container:
    """What the keeper is given for a process that runs in a container."""

    command: list[str]
    after: list[str]  # to be run when it has ended, however it did
    env: dict[str, str]  # of the client
    file: str  # what the container's own variables are read from


def find(surroundings: Mapping[str, str]) -> str | None:
    """Return the client of a container engine that answers; None where none does."""
    for name in PROGRAMS:
        program = shutil.which(name, path=surroundings.get("PATH"))
        if program and answers(program, surroundings):
            return program
    return None


def answers(program: str, surroundings: Mapping[str, str]) -> bool:
    """Say whether the engine behind a client is running: a client alone can do nothing."""
    said = "{{.Server.Version}}" if os.path.basename(program) == "docker" else "{{.Version}}"
    words = [program, "version", "--format", said]
    if os.path.basename(program) == "podman":
        words = [program, "info", "--format", "{{.Version.Version}}"]
    try:
        ran = subprocess.run(
            words, capture_output=True, text=True, timeout=_ANSWERS, env=dict(surroundings)
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return ran.returncode == 0 and bool(ran.stdout.strip())


def enclose(
    process: Process,
    *,
    program: str,
    home: Path,
    directory: Path,
    variables: Mapping[str, str],
    devices: Sequence[str],
    surroundings: Mapping[str, str],
) -> Container:
    """Return how a process runs in its image.

    `program`: the client, as `find` returned it.
    `directory`: its own below `home`/processes; `variables`: what it is to see;
    `devices`: of the machine, by the names that the driver has for them.
    """
    name = f"finery-{process.id}"
    simple = {k: v for k, v in variables.items() if "\n" not in v}
    by_name = {
        k: v for k, v in variables.items() if k not in simple and not _CLIENTS_OWN.fullmatch(k)
    }
    options = [
        *("--rm", "--init", "--network", "host", "--log-driver", "none"),
        *("--entrypoint", "", "--workdir", str(process.cwd.absolute())),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        *("--security-opt", "label=disable"),
        *_user(program),
        "--env-file",
        str(directory / "container.env"),
        *(word for one in sorted(ranks.each(process)[0]) for word in ("--env", one)),
        *(word for one in sorted(by_name) for word in ("--env", one)),
        *_limits(process),
        *_devices(program, devices),
        *_mounts(process, home, directory),
    ]
    words = [*options, process.image, *process.command]
    client = {k: v for k, v in surroundings.items() if CLIENT.fullmatch(k)}
    names = [f"{name}-{rank}" for rank in range(process.ranks)]
    return Container(
        command=["/bin/sh", "-c", _LINE, "finery", program, name, *words],
        after=[program, "rm", "--force", *names],
        env={**client, **by_name},
        file="".join(f"{key}={value}\n" for key, value in sorted(simple.items())),
    )


def _user(program: str) -> list[str]:
    """The container's user is ours, so that what it writes is ours too."""
    user = ["--user", f"{os.getuid()}:{os.getgid()}"]
    rootless = os.path.basename(program) == "podman" and os.getuid() != 0
    return [*user, "--userns", "keep-id"] if rootless else user


def _limits(process: Process) -> list[str]:
    # Ranks speak to each other through shared memory: theirs is then the machine's.
    shared = ["--shm-size", str(process.shm_size or SHM_SIZE)] if process.ranks == 1 else []
    words = shared or ["--ipc", "host"]
    if process.cpus is not None:
        words += ["--cpus", f"{process.cpus / process.ranks:g}"]
    if process.memory is not None:
        words += ["--memory", str(process.memory), "--memory-swap", str(process.memory)]
    return words


def _devices(program: str, devices: Sequence[str]) -> list[str]:
    if not devices:
        return []
    if os.path.basename(program) == "podman":
        return [word for one in devices for word in ("--device", f"nvidia.com/gpu={one}")]
    return ["--gpus", '"device=' + ",".join(devices) + '"']


def _mounts(process: Process, home: Path, directory: Path) -> list[str]:
    """The folders that it may see, each at the path that it has here."""
    cwd = process.cwd.absolute()
    shared = [home / "files", cwd, directory]
    fetched = cwd.with_name(f"{cwd.name}.inputs")  # what a job's inputs were downloaded to
    shared += [fetched] if fetched.is_dir() else []
    words = [word for path in shared for word in ("--volume", f"{path}:{path}")]
    for target in (PACKAGE, Path(HOST) / "finery"):  # the catalog's files; the scoring host
        words += ["--volume", f"{PACKAGE}:{target}:ro"]
    return words


def dockerfile(image: str, *, conda: str = "", host: Sequence[str] = ()) -> str:
    """Return the Dockerfile of what has to be laid over an image; empty where nothing has."""
    lines = [f"FROM {image}", "USER root"]
    if conda:
        lines += [
            "COPY conda.yml /opt/finery-env.yml",
            "RUN " + _CONDA.replace("\n", " "),
            'ENV PATH="/opt/finery-env/bin:$PATH"',
        ]
    if host:
        wanted = " ".join(shlex.quote(one) for one in host)
        lines += [f"RUN python -m pip install --no-cache-dir {wanted}"]
        lines += [f'ENV PYTHONPATH="{HOST}:$PYTHONPATH"']
    return "\n".join(lines) + "\n" if conda or host else ""


_CONDA = """for program in micromamba mamba conda /opt/miniconda/bin/conda /opt/conda/bin/conda; do
if command -v "$program" > /dev/null; then
if [ "${program##*/}" = micromamba ]; then
exec "$program" create --yes --prefix /opt/finery-env --file /opt/finery-env.yml; fi;
exec "$program" env create --prefix /opt/finery-env --file /opt/finery-env.yml; fi; done;
echo "the image has neither conda nor micromamba, and is to have a conda environment" >&2; exit 1"""
