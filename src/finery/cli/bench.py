"""`finery bench endpoint`: how long an endpoint takes to answer, and how much it answers.

Warm-up requests first, then `requests` of them from each of so many threads,
every thread with one connection of its own.  Times are of whole answers, as a
caller sees them; percentiles are interpolated linearly.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from finery.cli.refused import Refused

HEADINGS = ("threads", "duration", "throughput", "avg_sec", "std_sec", "p95_sec", "p99_sec")


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where requests go: an address, the headers and the body."""

    address: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; times in seconds, throughput in requests per second."""

    threads: int
    duration: float
    throughput: float
    avg_sec: float
    std_sec: float
    p95_sec: float
    p99_sec: float


def add(words: Any) -> None:
    group = words.add_parser("bench", help="Benchmarks: endpoint.", description="Benchmarks.")
    inner = group.add_subparsers(required=True, metavar="WORD")
    made = inner.add_parser("endpoint", help="Latency and throughput of an endpoint.")
    made.add_argument("name")
    made.add_argument("--request-file", type=Path, required=True, help="the body of each request")
    made.add_argument("--deployment", "-d", help="instead of the endpoint's traffic")
    made.add_argument("--threads", type=_counts, default=(1, 2, 4), help="e.g. 1,2,4")
    made.add_argument("--requests", type=_count, default=10, help="of each thread")
    made.add_argument("--warmup", type=int, default=1)
    made.add_argument("--home", help="where everything is kept (default: ~/.finery)")
    made.add_argument("--json", action="store_true", help="for programs")
    made.set_defaults(does=endpoint)


def endpoint(args: argparse.Namespace) -> None:
    """Measure an endpoint and print the table."""
    from finery.cli import lookups

    target = _target(args)
    with closing(_connect(target)) as connection:
        for _ in range(args.warmup):
            _ask(connection, target)
    rows = [measure(target, threads, args.requests) for threads in args.threads]
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    shown = [{name: f"{value:.4g}" for name, value in asdict(row).items()} for row in rows]
    lookups.show(shown, HEADINGS)


def measure(target: Target, threads: int, requests: int) -> Row:
    """Send `requests` from each of `threads` at once."""

    def work(_: int) -> list[float]:
        with closing(_connect(target)) as connection:
            return [_ask(connection, target) for _ in range(requests)]

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        times = [taken for part in pool.map(work, range(threads)) for taken in part]
    duration = time.perf_counter() - started
    return Row(
        threads=threads,
        duration=duration,
        throughput=len(times) / duration,
        avg_sec=statistics.fmean(times),
        std_sec=statistics.pstdev(times),
        p95_sec=percentile(times, 95),
        p99_sec=percentile(times, 99),
    )


def percentile(values: list[float], percent: float) -> float:
    """Return the percentile, interpolated linearly between the values beside it."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _target(args: argparse.Namespace) -> Target:
    from finery import cli, config
    from finery.cli import lookups
    from finery.core import endpoints

    server = cli.server(config.home(args.home))
    if not args.request_file.is_file():
        raise Refused(f"there is no file {args.request_file}")
    store, _, _ = lookups.open_home(args)
    found = endpoints.get(store, args.name)
    headers = {
        "Authorization": f"Bearer {found.keys['primary']}",
        "Content-Type": "application/json",
    }
    if args.deployment:
        endpoints.get_deployment(store, args.name, args.deployment)
        headers["azureml-model-deployment"] = args.deployment
    store.close()
    address = f"{server['http']}/endpoints/{args.name}/score"
    return Target(address=address, headers=headers, body=args.request_file.read_bytes())


def _connect(target: Target) -> http.client.HTTPConnection:
    parts = urlsplit(target.address)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=600)


def _ask(connection: http.client.HTTPConnection, target: Target) -> float:
    """Send one request and return the seconds until its whole answer was there."""
    started = time.perf_counter()
    connection.request("POST", urlsplit(target.address).path, target.body, target.headers)
    answer = connection.getresponse()
    said = answer.read()
    taken = time.perf_counter() - started
    if answer.status != 200:
        text = said.decode(errors="replace")[:300]
        raise Refused(f"the endpoint answered {answer.status}: {text}")
    return taken


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


def _count(text: str) -> int:
    if not text.strip().isdigit() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 100000")
    return int(text)
