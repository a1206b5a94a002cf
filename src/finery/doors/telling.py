"""The counts of deployments in Prometheus' text: `/endpoints/{endpoint}/metrics` and `/metrics`.

Of one endpoint to whoever may call it, of all endpoints to whoever administers
the server, or those of one workspace to whoever administers that.  What the way
in has counted (`metering.py`) comes first, then what each instance tells of
itself, its samples labelled with the instance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from finery.core import endpoints
from finery.core.endpoints import Deployment
from finery.core.errors import Failure
from finery.doors import answering, http, metering
from finery.doors.answering import Call
from finery.doors.http import House
from finery.doors.metering import Line
from finery.doors.traffic import Directory, View
from finery.doors.upstream import Lost, Pool

_MOST = 2**18  # bytes of an instance's own metrics that are read
_WAIT = 1.0  # seconds for it to tell them
_KIND = b"text/plain; version=0.0.4; charset=utf-8"


class Telling:
    """The ASGI application of `/metrics`.  For use on one event loop."""

    def __init__(
        self,
        house: House,
        directory: Directory,
        pool: Pool,
        *,
        line: Callable[[str], Line],
        secret: Callable[[str], bytes],
    ) -> None:
        """`line`: what is counted of a deployment, by its id; `secret`: a process's, by its id."""
        self._house, self._directory, self._pool = house, directory, pool
        self._line, self._secret = line, secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = answering.read(scope, receive, send)
        try:
            caller = http.caller(self._house, answering.credential(call.headers))
            kept = await run_in_threadpool(endpoints.kept, self._house.store)
            mine = [one for one in kept if caller.workspace in (None, one.workspace)]
            names = dict.fromkeys(deployment.endpoint for deployment in mine)
            views = [view for name in names if (view := await self._directory.find(name))]
            await self.tell(call, views)
        except Failure as exc:
            await answering.refuse(call, *answering.told(exc))

    async def tell(self, call: Call, views: Sequence[View]) -> None:
        """Answer with what is known of these endpoints."""
        text = metering.Text()
        deployments = [one for view in views for one in view.deployments.values()]
        shares = {view.endpoint.name: view.endpoint.traffic for view in views}
        for deployment in deployments:
            share = shares[deployment.endpoint].get(deployment.name, 0)
            metering.tell(text, deployment, self._line(deployment.id), share=share)
        told = await asyncio.gather(*(self.instances(deployment) for deployment in deployments))
        for deployment, found in zip(deployments, told, strict=True):
            own = {"endpoint": deployment.endpoint, "deployment": deployment.name}
            for process, said in found.items():
                which = "-".join(process.rsplit("-", 3)[1:])  # revision, number, restarts
                text.add_text(said, {**own, "instance": which})
        await answering.answer(call, bytes(text), _KIND)

    async def instances(self, deployment: Deployment) -> dict[str, str]:
        """Return what each instance that answers tells of itself, by its process."""
        told = [self._told(*place) for place in deployment.addresses.items()]
        found = zip(deployment.addresses, await asyncio.gather(*told), strict=True)
        return {process: text for process, text in found if text}

    async def _told(self, process: str, address: str) -> str:
        headers = [(b"x-finery-secret", self._secret(process))]
        try:
            async with asyncio.timeout(_WAIT):
                answer = await self._pool.send(
                    address, "GET", "/metrics", headers=headers, body=b""
                )
                try:
                    said = b""
                    while answer.status == 200 and len(said) < _MOST:
                        if not (part := await answer.next()):
                            break
                        said += part
                finally:
                    answer.close()
        except (Lost, TimeoutError):
            return ""
        return said.decode(errors="replace")
