"""`finery bench endpoint`: how long an endpoint takes to answer, and how much it answers.

Warm-up requests first, then `--requests` of them one after the other from each
of so many threads.  How they are timed is `measuring.py`; the picture and the
run in MLflow, `recording.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finery.cli import lookups, measuring
from finery.cli.measuring import Measured, Progress, Target
from finery.cli.refused import Refused

if TYPE_CHECKING:
    from finery.cli.recording import Subject
    from finery.core.endpoints import Endpoint
    from finery.core.store import Store

HEADINGS = ("threads", "duration", "throughput", "avg_sec", "std_sec", "p95_sec", "p99_sec")


def add(words: Any) -> None:
    group = words.add_parser("bench", help="Benchmarks: endpoint.", description="Benchmarks.")
    inner = group.add_subparsers(required=True, metavar="WORD")
    made = inner.add_parser(
        "endpoint",
        help="Latency and throughput of an endpoint.",
        description="Latency and throughput of an endpoint: a table, a picture, and a run in "
        "MLflow beside the model that was measured.",
    )
    made.add_argument("name")
    made.add_argument("--request-file", type=Path, required=True, help="the body of each request")
    made.add_argument("--deployment", "-d", help="instead of the endpoint's traffic")
    made.add_argument(
        "--threads",
        type=_counts,
        default=(1, 2, 4),
        help="how many call at once, one measurement each (default: 1,2,4)",
    )
    made.add_argument("--requests", type=_count, default=10, help="of each thread (default: 10)")
    made.add_argument(
        "--warmup", type=_from_zero, default=1, help="requests that do not count (default: 1)"
    )
    made.add_argument(
        "--plot", type=Path, metavar="FILE", help="the picture (default: in the home; .png, .svg)"
    )
    made.add_argument("--no-log", action="store_true", help="keep no run of it in MLflow")
    made.add_argument("--home", help=lookups.HOME_IS)
    made.add_argument("--json", action="store_true", help="for programs")
    made.set_defaults(does=endpoint)


def endpoint(args: argparse.Namespace) -> int:
    """Measure an endpoint: print the table, draw the picture, log both.  1: no call succeeded."""
    from finery import cli, config
    from finery.cli import recording
    from finery.core import endpoints

    home = config.home(args.home)
    server = cli.server(home)
    if not args.request_file.is_file():
        raise Refused(f"there is no file {args.request_file}")
    if args.plot and args.plot.suffix not in recording.FORMATS:
        raise Refused(f"--plot {args.plot}: a picture ends in {' or '.join(recording.FORMATS)}")
    store, _, _ = lookups.open_home(args)
    with closing(store):
        found = endpoints.get(store, args.name)
        if args.deployment:
            endpoints.get_deployment(store, args.name, args.deployment)
        key = cli.environment(home)["MLFLOW_TRACKING_TOKEN"]
        target = _target(args, found, address=server["http"], key=key)
        measured = _measure(args, target)
        subject = _subject(store, found, measured)
    _print(args, measured)
    _complain(measured)
    if not any(one.times for one in measured):
        print(f"finery: no call of {args.name!r} succeeded", file=sys.stderr)
        return 1
    picture = args.plot or recording.place(home, args.name)
    recording.draw(picture, subject, measured)
    print(f"picture: {picture}", file=sys.stderr)
    if not args.no_log:
        setting = {"threads": ",".join(map(str, args.threads)), "requests": args.requests}
        setting |= {"warmup": args.warmup, "request_bytes": len(target.body)}
        print(
            recording.log(home, subject, measured, picture=picture, setting=setting),
            file=sys.stderr,
        )
    return 0


def _target(args: argparse.Namespace, found: Endpoint, *, address: str, key: str) -> Target:
    secret = found.keys["primary"] if found.auth == "key" else key
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    if args.deployment:
        headers["azureml-model-deployment"] = args.deployment
    return Target(
        address=f"{address}/endpoints/{args.name}/score",
        headers=headers,
        body=args.request_file.read_bytes(),
    )


def _measure(args: argparse.Namespace, target: Target) -> list[Measured]:
    """Return a row for each number of threads; one where no call succeeds is the last."""
    progress = Progress(args.warmup + args.requests * sum(args.threads))
    measured: list[Measured] = []
    try:
        measuring.warm(target, args.warmup, progress=progress)
        for threads in args.threads:
            measured.append(
                measuring.measure(target, threads, requests=args.requests, progress=progress)
            )
            if not measured[-1].times:
                break
    finally:
        progress.close()
    return measured


def _subject(store: Store, found: Endpoint, measured: Sequence[Measured]) -> Subject:
    """Return what was measured: the deployments that answered, and their model if it is one."""
    from finery.cli import recording
    from finery.core import endpoints

    names = sorted({name for one in measured for name in one.answered_by})
    rows = [endpoints.find_deployment(store, found.name, name) for name in names]
    models = {row.spec.model for row in rows if row is not None}
    return recording.subject(
        store, found, deployments=names, model=models.pop() if len(models) == 1 else ""
    )


def _print(args: argparse.Namespace, measured: Sequence[Measured]) -> None:
    documents = [asdict(one.row) for one in measured]
    if args.json:
        print(json.dumps(documents, indent=2))
        return
    headings = (*HEADINGS, "errors") if any(one.failed for one in measured) else HEADINGS
    shown = [{name: _figure(value) for name, value in document.items()} for document in documents]
    lookups.show(shown, headings)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _complain(measured: Sequence[Measured]) -> None:
    """Say what failed calls were told, the most frequent first; they are in no figure above."""
    failed = sum((one.failed for one in measured), Counter[str]())
    if not failed:
        return
    calls = sum(len(one.times) for one in measured) + failed.total()
    print(f"{failed.total()} of {calls} calls failed, and are in no time above:", file=sys.stderr)
    for said, often in failed.most_common(5):
        print(f"  {often} x {said}", file=sys.stderr)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


def _count(text: str) -> int:
    if not text.strip().isdigit() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100000")
    return int(text)


def _from_zero(text: str) -> int:
    return 0 if text.strip() == "0" else _count(text)
