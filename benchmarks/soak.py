"""Many clients of every sort against one server, for as long as wanted.

    python benchmarks/soak.py BUNDLE [--clients 32] [--minutes 10] [--seed 1]

Starts `lfm2-deploy serve`, or takes --url of one that nobody else uses. Clients stream and do
not, force calls and schemas, share prompts, leave in the middle, say half of what they should, and
send what must be refused. Checked is that

- every request is answered, or refused with a status that /openapi.json has, within a time;
- every stream ends as it should, or by the client;
- rows are not mixed up: greedy answers are those that the same prompts had alone. What differs
  must be a near tie: the model reads it, and each token is within rounding of the likeliest;
- what clients counted and /metrics agree, and nothing runs or waits at the end;
- memory does not grow, nor do threads and open files;
- the server ends with exit code 0.

Prints a line each ten seconds and a summary; the exit code is 1 where a check failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import httpx
from soaking import asks, served, watch
from soaking.books import Answers, Counts, compare_counts
from soaking.client import BUSY, Client, Outcome

# What clients in turn may ask for on a busy machine; the server cuts answers before that.
_SERVER_SECONDS, _CLIENT_SECONDS = 60, 90.0
_SECONDS_TO_CALM = 90.0
_QUIET_REQUESTS = 12
# Memory: allocators keep what was freed in pieces that still fill up for a while.
# A run of less than a minute is all warm-up.
_FIRST_MIB, _MIB_A_MINUTE = 24.0, 1.0
_MORE_FILES = 8


@dataclass
class Soak:
    """A run, and what it found."""

    bundle: str
    server: served.Served
    clients: int
    seconds: float
    seed: int
    quiet: bool = False
    outcomes: list[Outcome] = field(default_factory=list)
    samples: list[watch.Sample] = field(default_factory=list)
    health_seconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    async def run(self) -> None:
        """All of it; see the module."""
        self._answers = Answers(self.bundle)
        async with httpx.AsyncClient(base_url=self.server.url, timeout=30, trust_env=False) as http:
            self._http = http
            self._documented = read_statuses((await http.get("/openapi.json")).json())
            known = await self._learn()
            self._say(f"{len(known)} prompts are answered alone; {self.clients} clients begin")
            before = await self._count()
            self.began = time.monotonic()
            watching = asyncio.create_task(self._watch())
            await asyncio.gather(
                *(self._be_client(number, known) for number in range(self.clients))
            )
            self.load_seconds = time.monotonic() - self.began
            await self._await_calm()
            watching.cancel()
            self._check_counts("under load", self.outcomes, before, await self._count())
            await self._be_quiet(known)
            await asyncio.sleep(0.5)  # for the server to see that connections were closed
            self._look_at_process()
        self._check_growth()
        self.faults += [f"{o.ask.kind}: {o.fault}" for o in self.outcomes if o.fault]

    async def _learn(self) -> list[asks.Known]:
        """Ask prompts alone; those whose answers tell them apart."""
        rng, client = random.Random(self.seed), Client(self.server.url, self._documented)
        learned = []
        for known in asks.make_known(rng, max(8, 2 * self.clients)):
            outcome = await client.send(asks.ask_known(known, streams=False), _CLIENT_SECONDS)
            if outcome.fault:
                raise SystemExit(f"the server cannot answer one request alone: {outcome.fault}")
            if self._answers.learn(known, outcome):
                learned.append(known)
        await client.close()
        return learned

    async def _be_client(self, number: int, known: list[asks.Known]) -> None:
        rng = random.Random(f"{self.seed} {number}")
        client = Client(self.server.url, self._documented)
        while time.monotonic() - self.began < self.seconds:
            outcome = await client.send(asks.draw(rng, known), _CLIENT_SECONDS)
            self._answers.check(outcome)
            self.outcomes.append(outcome)
            if outcome.fault:
                self._say(f"FAULT {outcome.ask.kind}: {outcome.fault}")
            await asyncio.sleep(rng.random() * (1.0 if outcome.status in BUSY else 0.05))
        await client.close()

    async def _be_quiet(self, known: list[asks.Known]) -> None:
        """Requests one after the other, of which every token must be counted."""
        rng, before, outcomes = random.Random(self.seed), await self._count(), []
        client = Client(self.server.url, self._documented)
        for place in range(_QUIET_REQUESTS):
            ask = asks.ask_known(rng.choice(known), streams=bool(place % 2))
            outcomes.append(await client.send(ask, _CLIENT_SECONDS))
            self._answers.check(outcomes[-1])
        await client.close()
        after = await self._count()
        self._check_counts("one by one", outcomes, before, after)
        told = sum(outcome.usage[0] for outcome in outcomes if outcome.usage)
        if after.since(before).prompt != told:
            self.faults.append(f"one by one: {told} tokens of prompts were not counted so")
        self.faults += [f"one by one: {o.fault}" for o in outcomes if o.fault]

    async def _count(self) -> Counts:
        # It is counted after it was answered.
        counts = Counts.read((await self._http.get("/metrics")).text)
        self._own = getattr(self, "_own", 0) + 1
        return counts

    def _check_counts(
        self, when: str, outcomes: Sequence[Outcome], before: Counts, after: Counts
    ) -> None:
        counted = after.since(before)
        # The look before is counted in the look after, and each look at health.
        counted.requests["200"] -= 1 + len(self.health_seconds) * (when == "under load")
        self.faults += [f"{when}: {fault}" for fault in compare_counts(outcomes, counted)]

    async def _watch(self) -> None:
        """Look at the process each second, at health, and tell each ten."""
        told = 0.0
        while True:
            now = self._look_at_process()
            health = await self._look_at_health()
            if now - told >= 10:
                told = now
                self._tell(now, health)
            await asyncio.sleep(1)

    def _look_at_process(self) -> float:
        """Take a sample; the time."""
        now = time.monotonic() - self.began
        if self.server.process is not None:
            sample = watch.take_sample(self.server.process.pid, now)
            self.samples += [sample] if sample else []
        return now

    async def _look_at_health(self) -> dict[str, Any]:
        began = time.monotonic()
        found: dict[str, Any] = (await asyncio.shield(self._http.get("/health"))).json()
        self.health_seconds.append(time.monotonic() - began)
        return found

    async def _await_calm(self) -> None:
        """Wait until nothing runs or waits: whoever left has left nothing behind."""
        deadline = time.monotonic() + _SECONDS_TO_CALM
        while True:
            health = await self._look_at_health()
            if health["running"] == health["waiting"] == 0:
                return
            if time.monotonic() > deadline:
                self.faults.append(f"nobody asks, and yet {health}")
                return
            await asyncio.sleep(0.2)

    def _check_growth(self) -> None:
        late = watch.after_warm_up(self.samples)
        if len(late) < 5:
            return
        minutes = (late[-1].at - late[0].at) / 60
        self.mib_a_minute = 60 * watch.slope([(s.at, s.rss_mib) for s in late])
        allowed = _FIRST_MIB + _MIB_A_MINUTE * minutes
        if self.samples[-1].at >= 60 and self.mib_a_minute * minutes > allowed:
            self.faults.append(f"memory grows by {self.mib_a_minute:.1f} MiB a minute")
        for name in ("files", "threads"):
            first, last = getattr(self.samples[0], name), getattr(self.samples[-1], name)
            most = max(getattr(s, name) for s in self.samples if s.at <= late[0].at)
            if last > (first + _MORE_FILES if name == "files" else most + 4):
                self.faults.append(f"{first} {name} at the begin, {last} at the end")

    def _tell(self, now: float, health: dict[str, Any]) -> None:
        last = self.samples[-1] if self.samples else watch.Sample(now, 0, 0, 0)
        done = len(self.outcomes)
        self._say(
            f"{now:5.0f} s  {done:6} requests  {count_tokens(self.outcomes) / now:5.0f} tok/s  "
            f"{sum(o.status in BUSY for o in self.outcomes):5} busy  "
            f"{sum(o.reached for o in self.outcomes):5} left  "
            f"run {health['running']} wait {health['waiting']:2}  {last.rss_mib:4.0f} MiB  "
            f"{last.files:3} files  {last.threads:2} threads"
        )

    def _say(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def summarize(self) -> dict[str, Any]:
        """What was found, as JSON knows it."""
        others = self._answers.other
        streams = [o for o in self.outcomes if o.status == 200 and o.first and o.usage]
        paces = [(o.total - (o.first or 0)) / (o.usage[1] - 1) for o in streams if o.usage[1] > 1]
        late = watch.after_warm_up(self.samples)
        statuses = Counter(str(o.status or "left") for o in self.outcomes)
        return {
            "clients": self.clients,
            "seconds": round(self.load_seconds, 1),
            "requests": len(self.outcomes),
            "statuses": dict(sorted(statuses.items())),
            "kinds": dict(Counter(o.ask.kind for o in self.outcomes)),
            "tokens_per_second": round(count_tokens(self.outcomes) / self.load_seconds, 1),
            "busy_part": round(
                sum(o.status in BUSY for o in self.outcomes) / len(self.outcomes), 4
            ),
            "first_token_ms": spread([1e3 * (o.first or 0) for o in streams]),
            "per_token_ms": spread([1e3 * pace for pace in paces]),
            "total_ms": spread([1e3 * o.total for o in self.outcomes if o.status == 200]),
            "health_ms": spread([1e3 * seconds for seconds in self.health_seconds]),
            "answers_compared": self._answers.checked,
            "answers_other_by_rounding": len(others),
            "worst_excess": round(max((excess for _, excess in others), default=0), 3),
            "rss_mib": [round(late[0].rss_mib), round(late[-1].rss_mib)] if late else None,
            "rss_mib_a_minute": round(getattr(self, "mib_a_minute", 0.0), 2),
            "files": [late[0].files, self.samples[-1].files] if late else None,
            "threads": [late[0].threads, self.samples[-1].threads] if late else None,
            "exit_code": self.server.exit_code,
            "faults": self.faults,
        }


def count_tokens(outcomes: Sequence[Outcome]) -> int:
    """Tokens of all answers that told them."""
    return sum(outcome.usage[1] for outcome in outcomes if outcome.usage)


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median and what few are beyond."""
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {name: round(cuts[at], 1) for name, at in (("p50", 49), ("p95", 94), ("p99", 98))} | {
        "most": round(max(values), 1)
    }


def read_statuses(described: dict[str, Any]) -> dict[tuple[str, str], frozenset[int]]:
    """Statuses that each method and path may have, by /openapi.json."""
    return {
        (method.upper(), path): frozenset(map(int, operation["responses"]))
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    } | {("GET", "/openapi.json"): frozenset({200})}


def soak(
    bundle: str,
    *,
    url: str | None = None,
    clients: int = 32,
    seconds: float = 600,
    seed: int = 1,
    options: Sequence[str] = ("--exact-rows",),
    quiet: bool = False,
) -> dict[str, Any]:
    """Run it.

    Args:
        bundle: to serve, and to judge answers by.
        url: of a server that is there; None starts one.
        clients, seconds, seed: of the load.
        options: further ones for `lfm2-deploy serve`.
        quiet: print nothing.

    Returns:
        The summary; "faults" is empty where all is well.
    """
    usual = ("--timeout", str(_SERVER_SECONDS), "--max-waiting", str(max(4, clients // 2)))
    start = nullcontext(served.Served(url)) if url else served.start(bundle, *usual, *options)
    with start as server:
        run = Soak(bundle, server, clients, seconds, seed, quiet)
        asyncio.run(run.run())
        server.end()
    if server.exit_code not in (0, None):
        run.faults.append(f"the server ended with exit code {server.exit_code}")
    return run.summarize()


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--url", help="a server that is there, and that nobody else uses")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--joined-rows", action="store_true", help="without --exact-rows")
    parser.add_argument("--json", action="store_true", help="the summary as one line")
    given = parser.parse_args()
    summary = soak(
        given.bundle,
        url=given.url,
        clients=given.clients,
        seconds=60 * given.minutes,
        seed=given.seed,
        options=() if given.joined_rows else ("--exact-rows",),
    )
    if given.json:
        print(json.dumps(summary))
    else:
        for name, value in summary.items():
            print(f"{name:26} {value}")
    return bool(summary["faults"])


if __name__ == "__main__":
    sys.exit(main())
