"""What a server counts, for Prometheus.

Enters: what requests came to, and the engine's own state when somebody asks. Leaves: the text
format. Each server has a registry of its own, so that several in one program do not mix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lfm2_deploy.answers.events import Usage
from lfm2_deploy.serving.engine import EngineState

CONTENT_TYPE = CONTENT_TYPE_LATEST
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The counters of one server."""

    def __init__(self, read_state: Callable[[], EngineState | None]) -> None:
        """Begin at zero.

        Args:
            read_state: the engine's, or None while there is none.
        """
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "lfm2_requests",
            "Requests by endpoint and status code.",
            ("endpoint", "code"),
            registry=self._registry,
        )
        self._first_token = Histogram(
            "lfm2_time_to_first_token_seconds",
            "From a request to its first token, waiting included.",
            buckets=_FIRST_TOKEN,
            registry=self._registry,
        )
        self._per_token = Histogram(
            "lfm2_time_per_output_token_seconds",
            "Between the tokens of an answer, other requests' work included; one mean an answer.",
            buckets=_PER_TOKEN,
            registry=self._registry,
        )
        self._registry.register(_EngineCollector(read_state))

    def count_request(self, endpoint: str, code: int) -> None:
        """One request has been answered."""
        self._requests.labels(endpoint, str(code)).inc()

    def observe_first_token(self, seconds: float) -> None:
        """A request's first token has come."""
        self._first_token.observe(seconds)

    def observe_answer(self, usage: Usage) -> None:
        """An answer has ended."""
        rate = usage.tokens_per_second
        if rate:
            self._per_token.observe(1 / rate)

    def render(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Reads the engine's state when it is asked for, so that nothing is counted twice."""

    def __init__(self, read_state: Callable[[], EngineState | None]) -> None:
        self._read_state = read_state

    def collect(self) -> Iterator[Metric]:
        state = self._read_state()
        if state is None:
            yield GaugeMetricFamily("lfm2_model_loaded", "1 while the model is in memory.", 0)
            return
        for name, told, value in (
            ("lfm2_model_loaded", "1 while the model is in memory.", int(state.loaded)),
            ("lfm2_requests_running", "Answers that run.", state.running),
            ("lfm2_requests_waiting", "Answers that wait.", state.waiting),
        ):
            yield GaugeMetricFamily(name, told, value)
        for name, told, value in (
            ("lfm2_prompt_tokens", "Tokens of prompts.", state.prompt_tokens),
            (
                "lfm2_prompt_tokens_reused",
                "Of these, those computed for an earlier prompt.",
                state.reused_tokens,
            ),
            ("lfm2_completion_tokens", "Tokens of answers.", state.completion_tokens),
            ("lfm2_requests_refused", "Requests refused for a full queue.", state.refused),
        ):
            yield CounterMetricFamily(name, told, value)
        answers = CounterMetricFamily(
            "lfm2_answers", "Finished answers by reason.", labels=("finish_reason",)
        )
        for reason, count in sorted(state.answers.items()):
            answers.add_metric([reason], count)
        yield answers
