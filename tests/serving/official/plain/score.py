"""A script without decorators: the body says what to do."""

import importlib
import json
import logging


def init():
    print("init was called")
    logging.info("and so was logging")


def run(data, request_headers):
    try:
        wanted = json.loads(data)
    except ValueError:
        return data
    what = wanted.get("what") if isinstance(wanted, dict) else None
    if what == "raise":
        raise KeyError("image")
    if what == "exit":
        raise SystemExit(3)
    if what == "memory":
        raise MemoryError
    if what == "headers":
        names = ("X-Custom", "Content-Type", "Accept", "X-Twice")
        return {name: request_headers.get(name) for name in names}
    if what in ANSWERS:
        return ANSWERS[what]()
    return wanted


ANSWERS = {
    "none": lambda: None,
    "bytes": lambda: b"bytes",
    "set": lambda: {1, 2},
    "nan": lambda: [float("nan"), float("inf")],
    "accents": lambda: {"said": "é€😀"},
    "keys": lambda: {1: "one", None: "none"},
    "tuple": lambda: (1, "two", 3.5),
    "empty": lambda: "",
    "deep": lambda: json.loads("[" * 500 + "]" * 500),
    "float64": lambda: {"mean": importlib.import_module("numpy").float64(1.5)},
    "array": lambda: importlib.import_module("numpy").zeros(2),
    "generator": lambda: (f"part {number}\n" for number in range(3)),
    "large": lambda: "x" * 300_000,
}
