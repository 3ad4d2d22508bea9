from __future__ import annotations

import asyncio
import threading

import pytest
from fastapi import HTTPException

from vitrieve.serve.service import WorkerPool


def build_pool(num_workers: int = 1, num_waiting: int = 1) -> WorkerPool:
    return WorkerPool("test", num_workers=num_workers, num_waiting=num_waiting, retry_after_seconds=3)


def test_run_returns_the_result_and_raises_the_error() -> None:
    async def main() -> None:
        pool = build_pool()
        assert await pool.run(lambda: 7, seconds=5) == 7
        with pytest.raises(KeyError):
            await pool.run(lambda: {}["a"], seconds=5)
        await asyncio.sleep(0)
        pool.close()

    asyncio.run(main())


def test_run_turns_away_what_does_not_fit_into_the_queue() -> None:
    async def main() -> None:
        pool, gate = build_pool(num_workers=1, num_waiting=1), threading.Event()
        waiting = [asyncio.create_task(pool.run(gate.wait, seconds=5)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(HTTPException) as refused:
            await pool.run(lambda: 1, seconds=5)
        assert refused.value.status_code == 503
        assert refused.value.headers == {"Retry-After": "3"}
        assert pool.num_refused == 1
        gate.set()
        assert await asyncio.gather(*waiting) == [True, True]
        while pool.num_unfinished:
            await asyncio.sleep(0.001)
        assert await pool.run(lambda: 1, seconds=5) == 1
        pool.close()

    asyncio.run(main())


def test_run_ends_in_time_and_the_slot_stays_taken_until_the_work_ends() -> None:
    async def main() -> None:
        pool, gate = build_pool(num_workers=1, num_waiting=0), threading.Event()
        with pytest.raises(HTTPException) as late:
            await pool.run(gate.wait, seconds=0.01)
        assert late.value.status_code == 504
        with pytest.raises(HTTPException) as refused:
            await pool.run(lambda: 1, seconds=5)
        assert refused.value.status_code == 503
        gate.set()
        while pool.num_unfinished:
            await asyncio.sleep(0.001)
        assert await pool.run(lambda: 1, seconds=5) == 1
        pool.close()

    asyncio.run(main())


def test_work_that_waited_too_long_is_never_begun() -> None:
    async def main() -> None:
        pool, gate, begun = build_pool(), threading.Event(), []
        first = asyncio.create_task(pool.run(gate.wait, seconds=5))
        await asyncio.sleep(0)
        with pytest.raises(HTTPException):
            await pool.run(lambda: begun.append(1), seconds=0.01)
        gate.set()
        await first
        while pool.num_unfinished:
            await asyncio.sleep(0.001)
        assert not begun
        pool.close()

    asyncio.run(main())
