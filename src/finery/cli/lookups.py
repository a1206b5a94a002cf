"""`finery job|model|endpoint …`: everyday look-ups, from the home's own database.

They need no running server; a cancelled job is ended by the server when it
runs.  Tables for people, `--json` for programs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finery import config
from finery.cli import rollback
from finery.cli.refused import Refused

HOME_IS = "where everything is kept (default: $FINERY_HOME, or ~/.finery)"
JSON_IS = "print JSON, for programs"

if TYPE_CHECKING:
    from finery.core.endpoints import Deployment
    from finery.core.files import Files
    from finery.core.store import Store


def add(words: Any) -> None:
    """Add the look-ups to the command line."""
    job = group(words, "job", "Jobs: list, show, logs, cancel.")
    word(job, "list", job_list).add_argument("--limit", type=int, default=20)
    for name, does in (("show", job_show), ("cancel", job_cancel)):
        word(job, name, does).add_argument("name")
    logs = word(job, "logs", job_logs)
    logs.add_argument("name")
    logs.add_argument("--follow", "-f", action="store_true", help="go on until the job ends")
    model = group(words, "model", "Models: list, import.")
    word(model, "list", model_list)
    imports = word(model, "import", model_import)
    imports.add_argument("folder", type=Path, help="a Hugging Face or MLflow model folder")
    imports.add_argument("--name", required=True)
    endpoint = group(words, "endpoint", "Endpoints: list, logs, rollback.")
    word(endpoint, "list", endpoint_list)
    logs = word(endpoint, "logs", endpoint_logs)
    logs.add_argument("name")
    logs.add_argument("--deployment", "-d")
    logs.add_argument("--lines", type=int, default=100)
    back = word(endpoint, "rollback", rollback.rollback)
    back.add_argument("name")
    back.add_argument(
        "--deployment",
        "-d",
        help="what this one runs, instead of the traffic; waits until it serves that again",
    )
    back.add_argument(
        "--no-wait", dest="wait", action="store_false", help="do not wait until it does"
    )


def job_list(args: argparse.Namespace) -> None:
    """List the newest jobs."""
    from finery.core import jobs

    store, workspace, _ = open_home(args)
    found = jobs.list(store, workspace, limit=args.limit).items
    documents = [_job(job) for job in found]
    headings = ("name", "display_name", "kind", "status", "created", "seconds")
    table(args, documents, headings)


def job_show(args: argparse.Namespace) -> None:
    """Show one job with its steps."""
    from finery.core import jobs

    store, _, files = open_home(args)
    job = jobs.get(store, args.name)
    document = {
        **_job(job),
        "experiment": job.experiment,
        "compute": job.compute,
        "error": (job.error or {}).get("message"),
        "warnings": job.warnings,
        "outputs": job.outputs,
        "steps": [_job(child) for child in jobs.children(store, job.name)],
        "events": [
            {"at": event.at.isoformat(), "status": event.status, "reason": event.reason}
            for event in jobs.events(store, job.name)
        ],
    }
    if args.json:
        print(json.dumps(document, indent=2, default=str))
        return
    for name, value in document.items():
        if name not in ("warnings", "outputs", "steps", "events") and value:
            print(f"{name:<13} {value}")
    for warning in job.warnings:
        print(f"{'warning':<13} {warning}")
    for name, location in job.outputs.items():
        print(f"{'output':<13} {name}: {_place(store, files, job.workspace, location)}")
    if document["steps"]:
        print()
        show(document["steps"], ("display_name", "name", "status", "seconds"))


def job_logs(args: argparse.Namespace) -> None:
    """Print what a job wrote; a pipeline's steps one after the other."""
    from finery.core import jobs

    store, workspace, files = open_home(args)
    job = jobs.get(store, args.name)
    if job.reused and job.kind != "sweep":
        print(f"(nothing: the result of {job.reused} was kept, and its log is there)")
    children = jobs.children(store, job.name)
    for child in children:
        print(f"==> {child.display_name} ({child.status}) <==")
        job_logs(argparse.Namespace(**{**vars(args), "name": child.name}))
    if not children:
        _print_log(args, store, files, job.name)


def job_cancel(args: argparse.Namespace) -> None:
    """Ask for a job to end."""
    from finery.core import jobs

    store, _, _ = open_home(args)
    job = jobs.cancel(store, args.name)
    table(args, [_job(job)], ("name", "status"))


def model_list(args: argparse.Namespace) -> None:
    """List the registered models, the newest version of each, and the catalog's."""
    from finery.core import assets

    store, workspace, _ = open_home(args)
    found = []
    for scope, kept in ((workspace, "workspace"), ("azureml", "catalog")):
        for name in assets.names(store, scope, "model", limit=1000).items:
            newest = assets.find(store, scope, "model", name.name)
            if newest is not None:
                found.append(
                    {
                        "name": newest.name,
                        "version": newest.version,
                        "type": newest.type,
                        "kept": kept,
                        "stand_in": newest.tags.get("stand_in", ""),
                        "description": newest.description.strip().split("\n")[0][:60],
                    }
                )
    table(args, found, ("name", "version", "type", "kept", "description"))


def model_import(args: argparse.Namespace) -> None:
    """Register a model folder: its files are copied into the home."""
    import shutil

    from finery.core import assets, ids
    from finery.core.assets import Asset

    store, workspace, files = open_home(args)
    folder = args.folder.resolve()
    if not folder.is_dir():
        raise Refused(f"{folder} is no folder")
    _check_model(folder)
    ids.name(args.name)
    path = f"imported/{ids.new()}/{folder.name}"
    target = files.path(workspace, "workspaceblobstore", path)
    try:
        shutil.copytree(folder, target)
    except (OSError, shutil.Error) as exc:
        shutil.rmtree(target.parent, ignore_errors=True)
        raise Refused(f"{folder} cannot be copied into the home: {exc}") from exc
    type = "mlflow_model" if (folder / "MLmodel").exists() else "custom_model"
    location = f"file:workspaceblobstore/{path}"
    model = assets.create(
        store,
        Asset(scope=workspace, kind="model", name=args.name, type=type, location=location),
    )
    table(args, [{"name": model.name, "version": model.version}], ("name", "version"))


def _check_model(folder: Path) -> None:
    """Raise `Refused` for a folder without a model, or a model of ours without weights."""
    from finery import checkpoint

    ours = any(folder.rglob("config.json"))
    if not ours and not (folder / "MLmodel").exists():
        raise Refused(f"{folder} holds no model: neither config.json nor MLmodel is in it")
    try:
        if ours:
            checkpoint.check(folder)
    except checkpoint.NoModel as exc:
        raise Refused(str(exc)) from exc


def endpoint_list(args: argparse.Namespace) -> None:
    """List the endpoints with their deployments."""
    from finery.core import endpoints

    store, workspace, _ = open_home(args)
    found, serving = [], _serving(config.home(args.home))
    for endpoint in endpoints.list(store, workspace, limit=1000).items:
        rows: list[Deployment | None] = [*endpoints.deployments(store, endpoint.name)]
        for row in rows or [None]:
            found.append(
                {
                    "endpoint": endpoint.name,
                    "deployment": row.name if row else "",
                    "status": _status(args, row, serving) if row else "no deployment",
                    "traffic": endpoint.traffic.get(row.name, 0) if row else "",
                    "instances": row.count if row else "",
                    "error": _failure(row, serving) if row else "",
                }
            )
    table(
        args,
        found,
        ("endpoint", "deployment", "status", "traffic", "instances", "error"),
    )


def _serving(home: Path) -> bool:
    """Whether the home's server runs; a note where not: no endpoint answers without it."""
    from finery import cli

    try:
        cli.server(home)
    except Refused as exc:
        print(f"finery: no endpoint answers: {exc}", file=sys.stderr)
        return False
    return True


def _status(args: argparse.Namespace, row: Deployment, serving: bool) -> str:
    from finery.core import instances

    if serving or row.status == "failed":
        return row.status
    home = config.home(args.home)
    places = [home / "processes" / id for id in instances.started(home, row)]
    there = [one for one in places if one.exists() and not (one / "exit.json").exists()]
    return "left running" if there else "stopped"


def _failure(row: Deployment, serving: bool) -> str:
    from finery.core import instances

    return instances.failure(row) if serving else str((row.error or {}).get("message", ""))


def endpoint_logs(args: argparse.Namespace) -> None:
    """Print what an endpoint's instances wrote, or how an environment's building goes."""
    from finery.core import endpoints, instances

    store, _, _ = open_home(args)
    endpoint, home = endpoints.get(store, args.name), config.home(args.home)
    shown = endpoints.deployments(store, endpoint.name)
    if args.deployment:
        shown = [endpoints.get_deployment(store, endpoint.name, args.deployment)]
    for deployment in shown:
        print(f"==> {deployment.name} ({deployment.status}) <==")
        print(instances.logs(home, deployment, lines=args.lines), end="")


def _job(job: Any) -> dict[str, Any]:
    end = job.ended_at or datetime.now(UTC)
    of = f" ({'best:' if job.kind == 'sweep' else 'as'} {job.reused})" if job.reused else ""
    return {
        "name": job.name,
        "display_name": job.display_name,
        "kind": job.kind,
        "status": job.status + of,
        "created": job.created_at.astimezone().isoformat(sep=" ", timespec="seconds"),
        "seconds": round((end - job.started_at).total_seconds(), 1) if job.started_at else "",
    }


def _place(store: Store, files: Files, workspace: str, location: str) -> str:
    """Return where an output lies on disk, or its reference while it is nowhere."""
    from finery.core import references
    from finery.core.errors import Failure

    try:
        return str(references.path(store, files, workspace, location))
    except Failure:
        return location


def _print_log(args: argparse.Namespace, store: Store, files: Files, name: str) -> None:
    from finery.core import jobs, references

    datastore, _, path = references.artifacts(name, "").partition("/")
    job, offsets = jobs.get(store, name), dict[Path, int]()
    folder = files.path(job.workspace, datastore.removeprefix("file:"), path)
    while True:
        final = jobs.get(store, name).final
        # Before it wrote a line of its own: how its environment is built.
        for file in sorted(folder.glob("user_logs/std_log*")) or [
            *folder.glob("system_logs/environment.log")
        ]:
            with file.open(errors="replace") as text:
                text.seek(offsets.get(file, 0))
                print(text.read(), end="", flush=True)
                offsets[file] = text.tell()
        if final or not args.follow:
            return
        time.sleep(0.2)


def open_home(args: argparse.Namespace) -> tuple[Store, str, Files]:
    """Return the home's store, the default workspace's id, and the files."""
    from finery.core import workspaces
    from finery.core.files import Files
    from finery.core.store import Store, open_sqlite

    home, database = config.home(args.home), config.database()
    if not database and not (home / "finery.db").exists():
        raise Refused(f"{home} is no home of Finery yet: start one with `finery up --home {home}`")
    store = Store(database) if database else open_sqlite(home / "finery.db")
    store.migrate()
    workspace = workspaces.get(store, *config.DEFAULT_WORKSPACE)
    return store, workspace.id, Files(home / "files", store)


def table(
    args: argparse.Namespace,
    documents: Sequence[dict[str, Any]],
    headings: Sequence[str],
) -> None:
    if args.json:
        print(json.dumps(documents, indent=2, default=str))
    else:
        show(documents, headings)


def show(documents: Sequence[dict[str, Any]], headings: Sequence[str]) -> None:
    rows = [[str(document[name]) for name in headings] for document in documents]
    widths = [max(len(row[i]) for row in [list(headings), *rows]) for i in range(len(headings))]
    for row in [list(headings), *rows]:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def group(words: Any, name: str, said: str) -> Any:
    made = words.add_parser(name, help=said, description=said)
    return made.add_subparsers(required=True, metavar="WORD")


def word(
    words: Any, name: str, does: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    said = (does.__doc__ or "").strip()
    made: argparse.ArgumentParser = words.add_parser(name, help=said, description=said)
    made.add_argument("--home", help=HOME_IS)
    made.add_argument("--json", action="store_true", help=JSON_IS)
    made.set_defaults(does=does)
    return made
