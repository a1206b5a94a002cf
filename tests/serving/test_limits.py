from __future__ import annotations

import asyncio

import pytest

from finery.serving.limits import Gate
from finery.serving.wire import Refusal


def test_places_are_given_in_order_of_arrival() -> None:
    async def story() -> list[int]:
        gate = Gate(1, queue=5, wait=60)
        order: list[int] = []

        async def one(number: int) -> None:
            await gate.enter()
            order.append(number)
            await asyncio.sleep(0)
            gate.leave()

        await asyncio.gather(*(one(number) for number in range(5)))
        assert (gate.running, gate.waiting) == (0, 0)
        return order

    assert asyncio.run(story()) == [0, 1, 2, 3, 4]


def test_who_waits_too_long_is_refused_and_who_comes_later_is_not() -> None:
    async def story() -> None:
        gate = Gate(1, queue=5, wait=0.03)
        await gate.enter()
        with pytest.raises(Refusal, match="within 30 ms") as refused:
            await gate.enter()
        assert refused.value.status == 429
        gate.leave()
        await gate.enter()
        assert (gate.running, gate.waiting) == (1, 0)

    asyncio.run(story())


def test_a_full_queue_refuses_at_once() -> None:
    async def story() -> None:
        gate = Gate(1, queue=1, wait=60)
        await gate.enter()
        waits = asyncio.ensure_future(gate.enter())
        await asyncio.sleep(0)
        with pytest.raises(Refusal, match="1 requests are running and 1 are waiting"):
            await gate.enter()
        gate.leave()
        await waits

    asyncio.run(story())


@pytest.mark.parametrize("given", [False, True], ids=["while waiting", "as the place comes"])
def test_a_caller_who_leaves_takes_no_place(given: bool) -> None:
    async def story() -> None:
        gate = Gate(1, queue=5, wait=60)
        await gate.enter()
        waits = asyncio.ensure_future(gate.enter())
        await asyncio.sleep(0)
        if given:
            gate.leave()
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        if not given:
            gate.leave()
        assert (gate.running, gate.waiting) == (0, 0)

    asyncio.run(story())
