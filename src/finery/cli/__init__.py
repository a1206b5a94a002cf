"""`finery`: a thin door for the terminal, and the entry point.

It starts and ends the server, hands out its environment, and answers the
everyday look-ups from the home's own database.  Each command is one function;
what a command does with things is the core's.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from finery import config
from finery.cli import bench, environments, lookups
from finery.cli.lookups import HOME_IS, JSON_IS
from finery.cli.refused import Refused

_FREE = "0: the one that the home had last, or a free one"


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    from finery.core.errors import Failure

    try:
        return int(args.does(args) or 0)
    except (Refused, Failure) as exc:
        print(f"finery: {exc}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as exc:  # a full disk, a home that may not be written
        print(f"finery: {exc.strerror or exc}: {exc.filename or 'the home'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def up(args: argparse.Namespace) -> None:
    """Serve in the foreground."""
    from finery import app
    from finery.cli import ending
    from finery.config import Settings

    settings = Settings(
        home=config.home(args.home),
        host=args.host,
        port=args.port,
        tls_port=args.tls_port,
        models=args.models,
        database=config.database(),
        strict=args.strict or config.strict(),
        own_packages=config.own_packages(),
    )

    def ready(platform: app.Platform) -> None:
        house = platform.house
        stand_ins = " models=tiny (small stand-ins)" if house.tiny else ""
        print(f"ready: {house.http} {house.https} home={settings.home}{stand_ins}", flush=True)

    left = app.serve(settings, ready=ready)
    ended = ending.asked(settings.home)
    if left and not ended:
        print(
            f"left running: {left}; `finery up` picks them up again, `finery down` ends them",
            file=sys.stderr,
        )


def down(args: argparse.Namespace) -> None:
    """End the server of the home with all its jobs and deployments."""
    from finery.cli import ending

    ended = ending.down(config.home(args.home), config.database())
    _show(args, ended, lambda: print("\n".join(ended["lines"]) or "nothing was running"))


def env(args: argparse.Namespace) -> None:
    """Print the environment that points the official clients at this server."""
    found = environment(config.home(args.home))
    if args.json:
        print(json.dumps(found, indent=2))
        return
    import shlex

    for name, value in found.items():
        print(f"export {name}={shlex.quote(value)}")


def run(args: argparse.Namespace) -> int:
    """Run a command with the environment that `finery env` prints."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        print("finery run: give a command, as in: finery run -- python train.py", file=sys.stderr)
        return 2
    surroundings = {**os.environ, **environment(config.home(args.home))}
    try:
        os.execvpe(command[0], command, surroundings)
    except OSError as exc:
        raise Refused(f"cannot run {command[0]!r}: {exc.strerror}") from exc


def show_config(args: argparse.Namespace) -> None:
    """Print the config.json that MLClient.from_config reads."""
    found = server(config.home(args.home))
    document = {
        "subscription_id": found["subscription"],
        "resource_group": found["group"],
        "workspace_name": found["workspace"],
    }
    print(json.dumps(document, indent=2))


def doctor(args: argparse.Namespace) -> None:
    """Say what this machine has, and what that makes possible or not."""
    from finery.cli import examination

    findings = examination.examine(config.home(args.home))
    _show(args, findings, lambda: examination.show(findings))


def environment(home: Path) -> dict[str, str]:
    """Return what the official clients need to find the running server of `home`."""
    found = server(home)
    key = (home / "admin.key").read_text().strip()
    bundle = str(home / "tls" / "bundle.pem")
    return {
        "ARM_CLOUD_METADATA_URL": f"{found['https']}/metadata/endpoints?api-version=2019-05-01",
        "REGISTRY_DISCOVERY_ENDPOINT_URL": f"{found['https']}/",
        "IDENTITY_ENDPOINT": f"{found['http']}/msi/token",
        "IDENTITY_HEADER": key,
        "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
        "REQUESTS_CA_BUNDLE": bundle,
        "SSL_CERT_FILE": bundle,
        "AZURE_SUBSCRIPTION_ID": found["subscription"],
        "AZURE_RESOURCE_GROUP": found["group"],
        "AZURE_ML_WORKSPACE": found["workspace"],
        "MLFLOW_TRACKING_URI": f"{found['http']}/mlflow",
        "MLFLOW_TRACKING_TOKEN": key,
        "OPENAI_BASE_URL": f"{found['http']}/openai/v1",
        "OPENAI_API_KEY": key,
        "AZURE_OPENAI_ENDPOINT": found["http"],
        "AZURE_OPENAI_API_KEY": key,
        "OPENAI_API_VERSION": "2024-10-21",
    }


def server(home: Path) -> dict[str, Any]:
    """Return where the server of `home` is.  Raises `Refused` when none runs."""
    path = home / "server.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        os.kill(found["pid"], 0)
        http = urlsplit(found["http"])
        # A number alone says little: after kill -9 another process may have got it.
        socket.create_connection((http.hostname, http.port or 80), timeout=5).close()
    except (OSError, ValueError):
        raise Refused(
            f"no server runs on the home {home}: start one with `finery up --home {home}`"
        ) from None
    return found


def _show(args: argparse.Namespace, document: Any, table: Callable[[], None]) -> None:
    if args.json:
        print(json.dumps(document, indent=2, default=str))
    else:
        table()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="finery", description="Fine-tune and serve models on your own machines."
    )
    words = parser.add_subparsers(required=True, metavar="COMMAND")

    def word(name: str, does: Callable[[argparse.Namespace], Any]) -> argparse.ArgumentParser:
        said = (does.__doc__ or "").strip()
        made = words.add_parser(name, help=said, description=said)
        made.add_argument("--home", help=HOME_IS)
        made.set_defaults(does=does)
        return made

    start = word("up", up)
    start.add_argument("--host", default="127.0.0.1", help="listen here (default: loopback only)")
    start.add_argument("--port", type=_port, default=8480, help=f"http (default: 8480); {_FREE}")
    start.add_argument(
        "--tls-port", type=_port, default=8443, help=f"https (default: 8443); {_FREE}"
    )
    start.add_argument(
        "--models",
        choices=("full", "tiny"),
        default="full",
        help="full (default): the real models, fetched from the hub when a job needs them; "
        "tiny: small stand-ins of the same architecture under the same names",
    )
    start.add_argument(
        "--strict",
        action="store_true",
        help="what an environment asks for and cannot get here (a line of a Dockerfile where no "
        "container engine runs) fails the job, instead of a warning",
    )
    word("down", down).add_argument("--json", action="store_true", help=JSON_IS)
    word("env", env).add_argument("--json", action="store_true", help=JSON_IS)
    runs = word("run", run)
    runs.add_argument(
        "command", nargs=argparse.REMAINDER, help="-- COMMAND …, e.g. -- python train.py"
    )
    word("config", show_config)
    word("doctor", doctor).add_argument("--json", action="store_true", help=JSON_IS)

    lookups.add(words)
    environments.add(words)
    bench.add(words)
    return parser


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
