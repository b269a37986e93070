"""The work that does not belong on the event loop: a bounded pool of threads, batching of embedding requests.

The bound counts inputs, not requests: a request of 500 texts takes 500 places, so that many small requests
and one big one are treated alike. What finds no place is refused at once; nothing waits unseen.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from api.errors import Overloaded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
RETRY_SECONDS = 1


@contextmanager
def closing_if_closable(items: Iterable[T]) -> Iterator[Iterable[T]]:
    """Generators have clean-up to do when they are left early; other iterables have none."""
    try:
        yield items
    finally:
        if isinstance(items, Generator):
            items.close()


class Workers:
    """Threads that work for the event loop. `load` is the number of inputs waiting or being worked on.

    Writes have one thread of their own: they wait for each other and for other processes, and would keep
    searches waiting with them.
    """

    def __init__(self, threads: int, limit: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="rwkv-embed")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="rwkv-embed-writer")
        self._streams: set[threading.Event] = set()
        self.limit, self.load = limit, 0

    @contextmanager
    def places(self, inputs: int) -> Iterator[None]:
        """Hold places in the queue; Overloaded when there are not enough.

        A request larger than the whole queue is let in when it is alone: it could never run otherwise.
        """
        if self.load and self.load + inputs > self.limit:
            raise Overloaded(
                f"the server is busy with {self.load} inputs, {inputs} more are over its limit of "
                f"{self.limit}; try again in {RETRY_SECONDS} s",
                retry_after=RETRY_SECONDS,
            )
        self.load += inputs
        try:
            yield
        finally:
            self.load -= inputs

    async def run(self, work: Callable[[], T], *, inputs: int = 1, writes: bool = False) -> T:
        """`work()` in a thread. Cancelled while it waits, it never starts."""
        with self.places(inputs):
            return await self.run_admitted(work, writes=writes)

    async def run_admitted(self, work: Callable[[], T], *, writes: bool = False) -> T:
        """As `run`, for work that holds its places already."""
        pool = self._writer if writes else self._pool
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    async def stream(self, produce: Callable[[], Iterable[T]]) -> AsyncGenerator[T, None]:
        """The items of `produce()`, made in one thread, which stops when the reader leaves."""
        loop, items, stop = (
            asyncio.get_running_loop(),
            asyncio.Queue[tuple[bool, T | None]](),
            threading.Event(),
        )

        def put(more: bool, item: T | None) -> None:
            loop.call_soon_threadsafe(items.put_nowait, (more, item))

        def pump() -> None:
            try:
                with closing_if_closable(produce()) as produced:
                    for item in produced:
                        put(True, item)
                        if stop.is_set():
                            break
            finally:
                put(False, None)

        with self.places(1):
            self._streams.add(stop)
            pumping = asyncio.ensure_future(self.run_admitted(pump))
            try:
                while True:
                    more, item = await items.get()
                    if not more:
                        break
                    yield item  # type: ignore[misc]  # None only as an item of the producer's own
                await pumping
            finally:
                stop.set()
                self._streams.discard(stop)
                pumping.cancel()  # for a pump that has not started; a running one looks at `stop`

    def close(self) -> None:
        """Stop streams at their next item, drop what has not started, wait for what runs."""
        for stop in self._streams:
            stop.set()
        for pool in (self._pool, self._writer):
            pool.shutdown(wait=True, cancel_futures=True)


@dataclass(eq=False)
class _Job:
    """Texts of one request. `rows` fills up, possibly over several model calls."""

    texts: Sequence[str]
    done: asyncio.Future[NDArray[np.float32]]
    taken: int = 0
    rows: list[NDArray[np.float32]] = field(default_factory=list)


_Share = tuple[_Job, int, int]  # texts[start:end] of a request


class Batcher:
    """Dynamic batching: whenever the model is free, it gets up to `size` texts from all waiting requests.

    Nobody waits for a batch to fill. Requests take turns, so that a short one is not stuck behind a long one,
    and the texts of a request that was cancelled are not embedded.
    """

    def __init__(
        self, workers: Workers, encode: Callable[[list[str]], NDArray[np.float32]], size: int
    ) -> None:
        self._workers, self._encode, self._size = workers, encode, size
        self._jobs: deque[_Job] = deque()
        self._running: asyncio.Task[None] | None = None

    async def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) vectors of at least one text. Overloaded when the queue is full."""
        with self._workers.places(len(texts)):
            job = _Job(texts, asyncio.get_running_loop().create_future())
            self._jobs.append(job)
            if self._running is None:
                self._running = asyncio.create_task(self._work())
            return await job.done

    async def _work(self) -> None:
        try:
            while shares := self._take():
                try:
                    vectors = await self._embed(
                        [text for job, start, end in shares for text in job.texts[start:end]]
                    )
                except Exception as error:
                    await self._separately(shares, error)
                else:
                    self._hand_out(shares, vectors)
        finally:
            self._running = None

    async def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        return await self._workers.run_admitted(lambda: self._encode(texts))

    def _take(self) -> list[_Share]:
        """An equal share for each waiting request, those that waited longest first; `size` texts at most."""
        room, shares = self._size, []
        self._jobs = deque(job for job in self._jobs if not job.done.done())  # the others were cancelled
        while room and self._jobs:
            fair = -(-room // len(self._jobs))
            job = self._jobs.popleft()
            end = min(len(job.texts), job.taken + fair)
            shares.append((job, job.taken, end))
            room -= end - job.taken
            job.taken = end
        return shares

    def _hand_out(self, shares: list[_Share], vectors: NDArray[np.float32]) -> None:
        import numpy as np

        place = 0
        for job, start, end in shares:
            job.rows.append(vectors[place : place + end - start])
            place += end - start
            if end < len(job.texts):
                self._jobs.append(job)
            elif not job.done.done():
                job.done.set_result(np.concatenate(job.rows))

    async def _separately(self, shares: list[_Share], error: Exception) -> None:
        """A batch failed: find the request that is to blame, so that its neighbours do not fail with it."""
        for job, start, end in shares:
            try:
                if len(shares) == 1:
                    raise error
                self._hand_out([(job, start, end)], await self._embed(list(job.texts[start:end])))
            except Exception as own:
                if not job.done.done():
                    job.done.set_exception(own)
