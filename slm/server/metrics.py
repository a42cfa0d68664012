"""What a server measures, for Prometheus."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from slm.server.versions import ServedModels

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters and histograms of one server, in a registry of their own."""

    def __init__(self, models: ServedModels) -> None:
        self.registry = CollectorRegistry()
        self.cut = 0  # requests that the server's end cut off
        self.requests = Counter(
            "slm_requests", "Requests that were answered.", ["route", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "slm_request_seconds", "Seconds until a request was answered in full.", ["route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.first_token_seconds = Histogram(
            "slm_first_token_seconds", "Seconds until the first token of a streamed text.",
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.finished = Counter(
            "slm_texts", "Texts that ended, by why: stop, length, timeout, error, gone.",
            ["model", "end"], registry=self.registry,
        )  # fmt: skip
        self.registry.register(_EngineMetrics(models))

    def page(self) -> bytes:
        return generate_latest(self.registry)


class _EngineMetrics(Collector):
    """The state of every engine at the time of a scrape."""

    def __init__(self, models: ServedModels) -> None:
        self.models = models

    def collect(self) -> Iterator[Metric]:
        served = [self.models.get(name) for name in self.models.names()]
        gauges: dict[str, tuple[str, Callable[[int], float]]] = {
            "slm_running_texts": (
                "Texts that are being generated.", lambda i: served[i].engine.running
            ),
            "slm_waiting_texts": (
                "Texts that wait for a place.", lambda i: served[i].engine.waiting
            ),
        }  # fmt: skip
        counters: dict[str, tuple[str, Callable[[int], float]]] = {
            "slm_generated_tokens": (
                "Tokens generated.", lambda i: served[i].engine.counts.tokens
            ),
            "slm_prompt_tokens": (
                "Tokens of prompts read.", lambda i: served[i].engine.counts.prompt_tokens
            ),
            "slm_steps": (
                "Passes over the weights.", lambda i: served[i].engine.counts.steps
            ),
        }  # fmt: skip
        stale = self.models.stale
        gauges["slm_alias_stale"] = (
            "1 while an alias names a version that cannot be served.",
            lambda i: float(served[i].name in stale),
        )
        counters["slm_version_swaps"] = (
            "Versions that took the place of another one.",
            lambda i: self.models.swaps[served[i].name],
        )
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(name, text, labels=["model", "version"])
            for i, model in enumerate(served):
                gauge.add_metric([model.name, model.version], value(i))
            yield gauge
        for name, (text, value) in counters.items():
            counter = CounterMetricFamily(name, text, labels=["model", "version"])
            for i, model in enumerate(served):
                counter.add_metric([model.name, model.version], value(i))
            yield counter
