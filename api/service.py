"""One server's belongings: settings, store, workers, metrics. Routes get it by dependency: no globals."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.responses import Response

from api.errors import EXPECTED, ModelNotServed, NotReady, sentence
from api.metrics import Metrics
from api.settings import Settings
from api.shapes import dumps
from api.workers import Batcher, Workers
from indexer.errors import StoreError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from indexer.answers import Generator
    from indexer.collection import Collection
    from indexer.store import Store
    from rwkv_embed import Embedder

T = TypeVar("T")
log = logging.getLogger(__name__)
OpenStore = Callable[[str, "str | None", "str | None"], "Store"]  # location, model, reranker
START_SECONDS = 5  # what a client is told to wait while the model is loading


class ClientGone(Exception):
    """The client closed the connection; nobody reads the answer."""


class Service:
    """Opens the store and loads the model in the background; refuses with NotReady until then."""

    def __init__(self, settings: Settings, open_store: OpenStore) -> None:
        self.settings, self._open_store = settings, open_store
        self.metrics = Metrics()
        self.workers = Workers(settings.threads, settings.queue_limit)
        self.metrics.watch_queue(lambda: self.workers.load)
        self._store: Store | None = None
        self._embedder: Embedder | None = None
        self._failure: BaseException | None = None
        self._specifications = {spec.partition(":")[0]: spec for spec in settings.generators}
        self._generators: dict[str, Generator] = {}
        self._generators_lock = threading.Lock()
        self._batchers = {
            "document": Batcher(
                self.workers, lambda texts: self.embedder.encode_document(texts), settings.batch_inputs
            ),
            "query": Batcher(
                self.workers, lambda texts: self.embedder.encode_query(texts), settings.batch_inputs
            ),
        }

    async def start(self) -> None:
        """Open and load; a failure is kept for /ready and for every later request.

        A store that cannot be opened is tried again: its database may start after this server.
        """

        def load() -> None:
            self._store = self._open_store(self.settings.store, self.settings.model, self.settings.reranker)
            self._embedder = self._store.embedder(None)

        while True:
            try:
                await self.workers.run_admitted(load)
            except Exception as error:
                expected = isinstance(error, EXPECTED)  # its sentence says all; others need the traceback
                if self._failure is None or sentence(error) != sentence(self._failure):
                    log.error("The server cannot work: %s", sentence(error), exc_info=not expected)
                self._failure = error
                if not isinstance(error, StoreError):
                    return
                await asyncio.sleep(START_SECONDS)
            else:
                if self._failure is not None:
                    log.warning("The store is there now")
                    self._failure = None
                return

    async def stop(self) -> None:
        await asyncio.to_thread(self.workers.close)
        if self._store is not None:
            await asyncio.to_thread(self._store.close)

    def check(self, *, tell: bool = True) -> None:
        """NotReady when the store or the model is not there; the reason may name paths of this machine."""
        if self._failure is not None:
            reason = f": {sentence(self._failure)}" if tell else "; whoever runs it finds the reason in its log"
            raise NotReady(f"the server could not start{reason}")
        if self._embedder is None:
            raise NotReady(
                f"the model is still loading; try again in {START_SECONDS} s", retry_after=START_SECONDS
            )

    async def check_ready(self, *, tell: bool) -> None:
        """As `check`; NotReady, too, when the store's database does not answer."""
        self.check(tell=tell)
        try:
            await asyncio.wait_for(asyncio.to_thread(self.store.ping), START_SECONDS)
        except (StoreError, asyncio.TimeoutError) as error:
            slow = isinstance(error, asyncio.TimeoutError)
            reason = f"no answer in {START_SECONDS} s" if slow else sentence(error)
            raise NotReady(f"the store does not answer{f': {reason}' if tell else ''}") from None

    @property
    def store(self) -> Store:
        self.check()
        assert self._store is not None
        return self._store

    @property
    def embedder(self) -> Embedder:
        self.check()
        assert self._embedder is not None
        return self._embedder

    async def encode(self, texts: list[str], kind: str = "document") -> NDArray[np.float32]:
        """(n, dim) float32, batched with the texts of other requests."""
        self.check()
        vectors = await self._batchers[kind].encode(texts)
        self.metrics.embedded.inc(len(texts))
        return vectors

    def generator(self, name: str | None) -> Generator:
        """The answer generator of that kind, loaded once; called in a worker. None is the default.

        Clients choose among the settings' generators: they cannot name a file or an address of their own.
        """
        from indexer.answers import make_generator

        name = name or next(iter(self._specifications))
        if name not in self._specifications:
            raise ModelNotServed(
                f"generator {name!r} is not served here; there is: {', '.join(self._specifications)}",
                param="generator",
            )
        with self._generators_lock:
            if name not in self._generators:
                template = self.settings.template if name == "rwkv" else None
                self._generators[name] = make_generator(self._specifications[name], template=template)
            return self._generators[name]

    async def use(
        self,
        request: Request,
        collection: str,
        work: Callable[[Collection], T],
        *,
        inputs: int = 1,
        writes: bool = False,
    ) -> T:
        """`work(collection)` in a thread; given up when the client goes before it has started."""
        store = self.store
        return await while_connected(
            request,
            self.workers.run(lambda: work(store.collection(collection)), inputs=inputs, writes=writes),
        )


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client closes the connection (ClientGone)."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(dumps(value), status, dict(headers or {}), "application/json")


def get_service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceDependency = Annotated[Service, Depends(get_service)]
