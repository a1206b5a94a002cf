"""Bytes between the wire and a file, a megabyte at a time and off the event loop.

Nothing here knows what a blob is: `storage.py` does.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from finery.doors.azureml.blobs import Refusal

_CHUNK = 1 << 20
_MOST_SMALL = 8 << 20  # bytes of a body that is read whole
_MOST_HASHED = 4 << 20  # bytes of a range whose MD5 may be asked for
_DRAINED = 64 << 20  # bytes read and thrown away so that a refusal can be heard


async def sent(file: BinaryIO, size: int) -> AsyncIterator[bytes]:
    try:
        while size:
            data = await run_in_threadpool(file.read, min(size, _CHUNK))
            if not data:
                raise EOFError("the file became shorter while it was sent")
            size -= len(data)
            yield data
    finally:
        file.close()


async def received(request: Request, part: Path) -> bytes | None:
    """Write a request's body to a file, off the event loop; return its MD5 if one was sent."""
    checked = "content-md5" in request.headers
    digest = hashlib.md5(usedforsecurity=False)
    file = await run_in_threadpool(part.open, "wb", 0)

    def write(chunks: list[bytes]) -> None:
        data = b"".join(chunks)
        if checked:
            digest.update(data)
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]

    with file:
        chunks: list[bytes] = []
        size = 0
        async for chunk in request.stream():
            chunks.append(chunk)
            size += len(chunk)
            if size >= _CHUNK:
                await run_in_threadpool(write, chunks)
                chunks, size = [], 0
        await run_in_threadpool(write, chunks)
    return same_md5(request, digest.digest()) if checked else None


async def small(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_SMALL:
            raise Refusal(413, "RequestBodyTooLarge", "the block list is too long")
    return bytes(body)


async def drain(request: Request) -> None:
    """Read what is left of a refused body: a client that still sends hears no answer."""
    if request.method != "PUT" or length(request) > _DRAINED:
        return
    try:
        async for _ in request.stream():
            pass
    except (RuntimeError, ClientDisconnect):  # it was read already, or nobody is there
        return


def same_md5(request: Request, found: bytes) -> bytes | None:
    sent = request.headers.get("content-md5")
    if sent is None:
        return None
    if base64.b64encode(found).decode() != sent.strip():
        raise Refusal(400, "Md5Mismatch", "the bytes that came are not those of Content-MD5")
    return found


def md5_of(file: BinaryIO, start: int, end: int) -> str:
    if end - start > _MOST_HASHED:
        raise Refusal(400, "InvalidHeaderValue", "an MD5 is given for 4 MiB at most")
    file.seek(start)
    found = hashlib.md5(file.read(end - start), usedforsecurity=False)
    return base64.b64encode(found.digest()).decode()


def length(request: Request) -> int:
    text = request.headers.get("content-length", "0")
    return int(text) if text.isdecimal() else 0
