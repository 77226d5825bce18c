"""What ``/metrics`` tells, under the names that vLLM's dashboards know."""

import asyncio
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from axk1.engine.interface import Engine, Times

_LABELS = ("model_name", "engine")
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_SLOW = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
_WATCH = 0.05  # seconds between looks at the event loop
_SIZES = (1, 10, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 131072)
_COUNTERS = {
    "vllm:prompt_tokens": ("Tokens of prompts read, cached ones included.", "prompt_tokens"),
    "vllm:generation_tokens": ("Tokens generated.", "generated_tokens"),
    "vllm:prefix_cache_queries": ("Tokens of prompts looked up in the prefix tree.", "prefix_queries"),
    "vllm:prefix_cache_hits": ("Tokens of prompts found in the prefix tree.", "prefix_hits"),
    "vllm:num_preemptions": ("Times that a running request had to give way.", "preemptions"),
    "vllm:spec_decode_num_draft_tokens": ("Tokens drafted by the MTP module.", "drafted"),
    "vllm:spec_decode_num_accepted_tokens": ("Drafted tokens that held.", "accepted"),
    "axk1:failed_steps": ("Steps in which the model failed; the log tells how.", "failed_steps"),
    "axk1:experts_asked": ("Routed experts that steps asked for, where they are read from disk.", "experts_asked"),
    "axk1:expert_cache_hits": ("Experts that were in the cache.", "experts_hit"),
    "axk1:expert_bytes_read": ("Bytes of experts read from disk.", "expert_bytes"),
    "axk1:expert_stalls": ("Times that a step waited for an expert.", "expert_stalls"),
    "axk1:expert_stall_seconds": ("How long steps waited for experts.", "expert_stall_seconds"),
}


class Metrics:
    """The numbers of one server, in a registry of its own.

    Args:
        engine: whose statistics are told.
        model: the model's name, a label of all.
    """

    def __init__(self, engine: Engine, model: str) -> None:
        self.registry = CollectorRegistry()
        self._values = (model, "0")
        self.registry.register(_EngineCollector(engine, self._values))
        self._success = Counter(
            "vllm:request_success",
            "Requests answered, by how they ended.",
            (*_LABELS, "finished_reason"),
            registry=self.registry,
        )
        self._first = self._histogram("time_to_first_token_seconds", "From a request to its first token.", _SLOW)
        self._between = self._histogram("inter_token_latency_seconds", "Between tokens of a reply.", _FAST)
        self._whole = self._histogram("e2e_request_latency_seconds", "From a request to its last token.", _SLOW)
        self._queue = self._histogram("request_queue_time_seconds", "From a request to its first step.", _SLOW)
        self._prompt = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _SIZES)
        self._tokens = self._histogram("request_generation_tokens", "Tokens of a reply.", _SIZES)

        self._lag = Histogram(
            "axk1:event_loop_lag_seconds",
            "How late the event loop was, 20 times a second.",
            _LABELS,
            registry=self.registry,
            buckets=_FAST,
        ).labels(*self._values)

    async def watch_loop(self) -> None:
        """Takes note of how late the event loop is, until it is cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + _WATCH
            await asyncio.sleep(_WATCH)
            self._lag.observe(max(clock() - due, 0.0))

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(f"vllm:{name}", help, _LABELS, registry=self.registry, buckets=buckets)
        return made.labels(*self._values)

    def between(self, seconds: float, tokens: int) -> None:
        """So many tokens came so long after those before them."""
        for _ in range(tokens):
            self._between.observe(seconds / tokens)

    def ended(self, reason: str, times: Times, prompt: int, tokens: int) -> None:
        """A reply has ended."""
        self._success.labels(*self._values, reason).inc()
        self._prompt.observe(prompt)
        self._tokens.observe(tokens)
        if times.queued is not None:
            self._queue.observe(times.queued)
        if times.first_token is not None:
            self._first.observe(times.first_token - times.submitted)
        if times.finished is not None:
            self._whole.observe(times.finished - times.submitted)


class _EngineCollector(Collector):
    """Reads the engine whenever somebody asks."""

    def __init__(self, engine: Engine, values: tuple[str, ...]) -> None:
        self._engine, self._values = engine, values

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """The engine's gauges and totals now."""
        now = self._engine.statistics()
        gauges = {
            "vllm:num_requests_running": ("Requests that have pages.", now.running),
            "vllm:num_requests_waiting": ("Requests that wait.", now.waiting),
            "vllm:kv_cache_usage_perc": (
                "Part of the pages in use; 1 is all.",
                now.pages_used / now.pages_total if now.pages_total else 0.0,
            ),
        }
        for name, (help, value) in gauges.items():
            gauge = GaugeMetricFamily(name, help, labels=_LABELS)
            gauge.add_metric(self._values, value)
            yield gauge
        for name, (help, field) in _COUNTERS.items():
            counter = CounterMetricFamily(name, help, labels=_LABELS)
            counter.add_metric(self._values, getattr(now, field))
            yield counter
