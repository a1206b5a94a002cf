"""A host of this process behind a real socket, and a client for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx

from finery.serving.connection import Listener
from finery.serving.routes import Host


@contextlib.asynccontextmanager
async def answering(host: Host) -> AsyncIterator[httpx.AsyncClient]:
    """The host listens, and its threads work, for as long as the client is used."""
    if host.workers:
        host.workers.start()
    listener = Listener(host)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(listener.connect, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=120) as client:
            yield client
    finally:
        server.close()
        await listener.close(5)
        if host.workers:
            host.workers.stop()
        host.journal.flush()
