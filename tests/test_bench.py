"""The arithmetic of `finery bench endpoint`."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from finery.cli import bench
from finery.cli.refused import Refused


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([3.0, 1.0, 2.0], 50, 2.0), ([0.0, 10.0], 95, 9.5), ([7.0], 99, 7.0), ([1, 2, 3, 4], 100, 4)],
)
def test_percentiles_are_interpolated_linearly(values, percent, expected):
    assert bench.percentile(values, percent) == pytest.approx(expected)


class Scripted(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    status, seen = 200, []

    def do_POST(self):
        self.seen.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(self.status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_): ...


@pytest.fixture
def target(monkeypatch):
    monkeypatch.setattr(Scripted, "seen", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/endpoints/e/score"
        yield bench.Target(address=address, headers={}, body=b'{"x": 1}')
        server.shutdown()
        thread.join()


def test_every_thread_sends_all_its_requests(target):
    row = bench.measure(target, 3, 5)
    assert Scripted.seen == [b'{"x": 1}'] * 15
    assert row.threads == 3
    assert row.throughput == pytest.approx(15 / row.duration)
    assert 0 < row.avg_sec <= row.p95_sec <= row.p99_sec <= row.duration


def test_an_answer_that_is_none_ends_the_measurement(target, monkeypatch):
    monkeypatch.setattr(Scripted, "status", 424)
    with pytest.raises(Refused, match="424"):
        bench.measure(target, 1, 1)
