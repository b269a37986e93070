"""Prometheus metrics of one server, in a registry of its own."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """What `/metrics` shows. Labels are route patterns and never what a client sent."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "rwkv_embed_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "rwkv_embed_request_seconds", "Time to answer a request.", ("route",), registry=self._registry
        )
        self.embedded = Counter(
            "rwkv_embed_texts_embedded", "Texts embedded for requests.", registry=self._registry
        )
        self._queue = Gauge("rwkv_embed_queue_inputs", "Inputs waiting or in work.", registry=self._registry)

    def watch_queue(self, load: Callable[[], int]) -> None:
        self._queue.set_function(load)

    def text(self) -> bytes:
        return generate_latest(self._registry)
