"""What runs as the process of a job's service: it starts the program, and says where it answers.

Run by its path, with the job's own Python and in the job's folder, so it may use
nothing but the standard library.  It looks for the program there, finds it a port
of the loopback, makes up a password, starts it, and writes the file `address` in
`FINERY_PROCESS_DIR` once it answers: its URL, with a token in it or, where the
program asks for a password, `#` and the password behind.  A secret is never on a
command line or in the log.  Its last line says why it ended.  When it is started
and stopped is `core/services.py`'s business.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time

HERE = "127.0.0.1"
MISSING = {
    "tensorboard": "TensorBoard is not in the job's environment: add the package tensorboard to it",
    "jupyterlab": "JupyterLab is not in the job's environment: add the package jupyterlab to it",
    "vscode": "code-server is not on the PATH of the job: install code-server, from "
    "https://github.com/coder/code-server, where the job runs",
}


def main(kind: str, asked: str, folder: str) -> int:
    """Run a service.  `asked`: its port, 0 for any; `folder`: what TensorBoard looks at."""
    sys.path[0] = os.getcwd()  # as `python -m` has it
    if not _found(kind):
        return _refuse(MISSING[kind])
    held = socket.socket()  # kept, so that nobody else is given the port before it is used
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((HERE, int(asked)))
    except OSError as error:
        return _refuse(
            f"port {asked} cannot be had ({error.strerror}): leave it out for a free one"
        )
    private = os.path.join(os.environ["FINERY_PROCESS_DIR"], "private")
    os.mkdir(private, 0o700)
    port, secret = held.getsockname()[1], secrets.token_urlsafe(24)
    words, env = _program(kind, port=port, secret=secret, folder=folder, private=private)
    program = subprocess.Popen(words, env={**os.environ, **env}, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: program.terminate())
    try:
        _tell(program, port, _after(kind, secret))
        return program.wait()
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _found(kind: str) -> bool:
    if kind == "vscode":
        return shutil.which("code-server") is not None
    return importlib.util.find_spec(kind) is not None


def _program(
    kind: str, *, port: int, secret: str, folder: str, private: str
) -> tuple[list[str], dict[str, str]]:
    """Return the program's command line, and the variables that it has beside the job's."""
    if kind == "tensorboard":
        words = [f"--logdir={folder}", f"--host={HERE}", f"--port={port}"]
        return [sys.executable, "-m", "tensorboard.main", *words], {}
    if kind == "jupyterlab":
        options = {"ip": HERE, "port": port, "port_retries": 0, "open_browser": False}
        words = [f"--ServerApp.{name}={value}" for name, value in options.items()]
        words += ["--allow-root"] if os.geteuid() == 0 else []
        # What the one who runs the server has set up for himself is nothing for a job.
        names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
        env = {name: os.path.join(private, name.lower()) for name in names}
        return [sys.executable, "-m", "jupyterlab", *words], {**env, "JUPYTER_TOKEN": secret}
    config = os.path.join(private, "config.yaml")
    with open(os.open(config, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(f"bind-addr: {HERE}:{port}\nauth: password\npassword: {secret}\ncert: false\n")
    folders = [f"--user-data-dir={private}/user", f"--extensions-dir={private}/extensions"]
    quiet = ["--disable-telemetry", "--disable-update-check"]
    return ["code-server", f"--config={config}", *folders, *quiet, "."], {}


def _after(kind: str, secret: str) -> str:
    """Return what follows the port in the address."""
    return {"jupyterlab": f"/lab?token={secret}", "vscode": f"/#{secret}"}.get(kind, "/")


def _tell(program: subprocess.Popen[bytes], port: int, after: str) -> None:
    """Write the address down once somebody listens there, unless the program ends before."""
    while program.poll() is None:
        with socket.socket() as caller:
            caller.settimeout(1)
            if caller.connect_ex((HERE, port)) == 0:
                break
        time.sleep(0.1)
    else:
        return
    address = os.path.join(os.environ["FINERY_PROCESS_DIR"], "address")
    with open(os.open(f"{address}.part", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(f"http://{HERE}:{port}{after}")
    os.rename(f"{address}.part", address)


def _refuse(why: str) -> int:
    print(why, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
