"""A container engine that is none: writes down what it is told, and runs it on this machine.

Installed by `install` as `docker` in a folder.  `run` reads the variables'
file, goes to the working directory and becomes the command; `build` runs the
Dockerfile's RUN lines when asked to by their word, and fails at `RUN false`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

VALUED = (
    *("--network", "--log-driver", "--entrypoint", "--workdir", "--cap-drop", "--security-opt"),
    *("--user", "--userns", "--env-file", "--env", "--shm-size", "--ipc", "--cpus", "--memory"),
    *("--memory-swap", "--gpus", "--device", "--volume", "--name"),
)


def install(folder: Path, *, name: str = "docker", running: bool = True) -> Path:
    """Put the program on disk; it keeps its notes beside itself."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(
        f"#!{sys.executable} -IS\nimport runpy\n"
        f"runpy.run_path({__file__!r}, run_name='__main__', init_globals={{'HERE': {str(folder)!r}}})\n"
    )
    program.chmod(0o755)
    if running:
        (folder / "running").touch()
    return program


def told(folder: Path) -> list[list[str]]:
    """Return every call, but for the questions whether the engine runs."""
    return [call for call in _calls(folder) if call[0] not in ("version", "info")]


def looked(folder: Path) -> int:
    """Return how often it was asked whether the engine runs."""
    return len(_calls(folder)) - len(told(folder))


def _calls(folder: Path) -> list[list[str]]:
    notes = folder / "calls"
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def main() -> None:
    here, words = Path(HERE), sys.argv[1:]  # noqa: F821
    with (here / "calls").open("a") as notes:
        notes.write(json.dumps(words) + "\n")
    if not (here / "running").exists():
        print("Cannot connect to the Docker daemon. Is the docker daemon running?", file=sys.stderr)
        sys.exit(125 if words[0] == "run" else 1)
    match words[0]:
        case "version" | "info":
            print("99.0")
        case "image" | "pull":
            images = here / "images"
            known = images.read_text().split() if images.exists() else []
            if words[0] == "image":
                sys.exit(words[2] not in known)
            if words[1].startswith("nowhere/"):
                sys.exit(f"Error response from daemon: manifest for {words[1]} not found")
            images.write_text(" ".join([*known, words[1]]))
        case "build":
            build(words)
            with (here / "images").open("a") as images:
                images.write(f" {words[words.index('--tag') + 1]}")
        case "rm":
            for name in words[2:]:
                if (pid := here / f"{name}.pid").exists():
                    try:
                        os.kill(int(pid.read_text()), signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                    pid.unlink()
        case "run":
            run(here, words[1:])


def build(words: list[str]) -> None:
    file = Path(words[-1]) / "Dockerfile"
    if "--file" in words:
        file = Path(words[words.index("--file") + 1])
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        print(f"#{number} {line}", flush=True)
        if line.startswith("RUN false"):
            print("#5 0.131 it said no\n------\nDockerfile:" + str(number))
            print(f"--------------------\n   {number} | >>> {line}\n--------------------")
            sys.exit(f'ERROR: failed to solve: process "/bin/sh -c {line[4:]}" did not complete')


def run(here: Path, words: list[str]) -> None:
    """Be the container: its process is a session of its own, as a daemon's child would be."""
    options: dict[str, list[str]] = {}
    while words[0].startswith("--"):
        flag = words.pop(0)
        options.setdefault(flag, []).append(words.pop(0) if flag in VALUED else "")
    env = {"PATH": f"{os.path.dirname(sys.executable)}:/usr/bin:/bin", "IMAGE": words.pop(0)}
    for file in options["--env-file"]:
        env |= dict(line.split("=", 1) for line in Path(file).read_text().splitlines())
    env |= {name: os.environ[name] for name in options.get("--env", []) if name in os.environ}
    # It is no child of the client: only `rm` ends it for sure.
    inside = subprocess.Popen(words, cwd=options["--workdir"][0], env=env, start_new_session=True)
    (here / f"{options['--name'][0]}.pid").write_text(str(inside.pid))
    signal.signal(signal.SIGTERM, lambda *_: inside.send_signal(signal.SIGTERM))
    code = inside.wait()
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
