"""Carries out a plan of runs against one or two servers. The only place that knows both the clock and the client."""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol

from loadtest.client import Client
from loadtest.config import MAX_REQUESTS, Config, ServerOptions
from loadtest.fitting import fit
from loadtest.goodput import parse_limits
from loadtest.loops import Watcher, closed_loop, open_loop
from loadtest.plan import Label, Step, plan
from loadtest.record import Record, RequestError
from loadtest.schedule import poisson_arrivals
from loadtest.served import ServedModel, list_models
from loadtest.session import Session
from loadtest.statistics import Summary, summarize
from loadtest.workload import PURPOSE_ARRIVALS, Workload

OPEN_LOOP_WARMUP_CONCURRENCY = 8


class Observer(Watcher, Protocol):
    """A watcher that is also told which run its requests belong to."""

    def begin(self, step: Step, num_requests: int | None) -> None:
        """A run's counted requests are about to be sent."""


@dataclass(frozen=True)
class Run:
    """One finished run."""

    step: Step
    url: str
    model: str
    start: float
    records: list[Record]
    warmup_errors: dict[str, int]
    client_cpu_share: float
    """Seconds of processor per second; near 1, this load generator was itself the limit."""
    summary: Summary


async def resolve(config: Config) -> Config:
    """`config` with the models named and both lengths given. Raises RequestError where a server must tell its models
    and does not."""
    first = await _chosen_model(config.server)
    models = [first]
    versus = config.versus
    if versus.versus is not None:
        models.append(await _chosen_model(_second(config)))
        versus = replace(versus, versus_model=models[1].id)
    # Both get the same requests, so the shorter context decides.
    context_length = min((model.max_model_len for model in models if model.max_model_len is not None), default=None)
    requests = fit(config.requests, context_length)
    return replace(config, server=replace(config.server, model=first.id), requests=requests, versus=versus)


async def measure(config: Config, lines: Sequence[str], observer: Observer) -> AsyncIterator[Run]:
    """Yield each run of the plan as it ends. `config` is resolved."""
    targets: dict[Label, ServerOptions] = {"A": config.server}
    if config.versus.versus is not None:
        targets["B"] = _second(config)
    runner = _Runner(config, Workload(config.requests, lines), observer)
    for step in plan(config.load, config.versus):
        yield await runner.run(step, targets[step.label])


def _second(config: Config) -> ServerOptions:
    versus = config.versus
    assert versus.versus is not None
    return replace(config.server, url=versus.versus, model=versus.versus_model, api_key=versus.versus_api_key)


async def _chosen_model(server: ServerOptions) -> ServedModel:
    """The model asked for, with what the server tells of it, if anything; else the first that it lists."""
    async with Session(server) as session:
        try:
            models = await list_models(session)
        except RequestError:
            if server.model is None:
                raise
            models = []
    if server.model is None:
        return models[0]
    return next((model for model in models if model.id == server.model), ServedModel(server.model))


class _Runner:
    def __init__(self, config: Config, workload: Workload, observer: Observer) -> None:
        self._config = config
        self._workload = workload
        self._observer = observer
        self._limits = parse_limits("goodput", config.report.goodput)

    async def run(self, step: Step, server: ServerOptions) -> Run:
        """Warm up, then send and count. Each run has connections of its own."""
        assert server.model is not None
        async with Session(server, time.perf_counter) as session:
            client = Client(session, server.model, self._config.requests)
            warmup = await self._warm_up(step, client)
            self._observer.begin(step, self._config.load.max_requests)
            start, cpu_start = time.perf_counter(), time.process_time()
            records = await self._send_all(step, client)
            wall = time.perf_counter() - start
        return Run(
            step=step,
            url=server.url,
            model=server.model,
            start=start,
            records=sorted(records, key=lambda record: record.index),
            warmup_errors=_errors_by_kind(warmup),
            client_cpu_share=(time.process_time() - cpu_start) / wall if wall > 0 else 0.0,
            summary=summarize(records, wall, self._limits),
        )

    async def _warm_up(self, step: Step, client: Client) -> list[Record]:
        num_warmup = self._config.load.warmup_requests
        is_closed = step.point.kind == "concurrency"
        workers = min(num_warmup, int(step.point.value) if is_closed else OPEN_LOOP_WARMUP_CONCURRENCY)
        drawn = (self._workload.request(step.first_index + number) for number in range(num_warmup))
        requests = (replace(request, disconnect_after=None) for request in drawn)
        return await closed_loop(client.send, requests, workers, lambda: True, _Unwatched())

    async def _send_all(self, step: Step, client: Client) -> list[Record]:
        load, first = self._config.load, step.first_index + self._config.load.warmup_requests
        if step.point.kind == "concurrency":
            ends_at = time.perf_counter() + (load.duration_seconds or float("inf"))
            limit = step.first_index + MAX_REQUESTS if load.max_requests is None else first + load.max_requests
            requests = (self._workload.request(index) for index in range(first, limit))
            workers = int(step.point.value)
            return await closed_loop(
                client.send, requests, workers, lambda: time.perf_counter() < ends_at, self._observer
            )
        seed = (self._config.requests.seed, PURPOSE_ARRIVALS, step.first_index)
        arrivals = poisson_arrivals(step.point.value, load.max_requests, load.duration_seconds, seed)
        prepared = [self._workload.request(index) for index, _ in zip(count(first), arrivals, strict=False)]
        return await open_loop(client.send, prepared, arrivals, time.perf_counter, self._observer)


class _Unwatched:
    def started(self) -> None:
        pass

    def finished(self, record: Record) -> None:
        pass


def _errors_by_kind(records: Sequence[Record]) -> dict[str, int]:
    return summarize(records, 0.0, None).totals.errors_by_kind
