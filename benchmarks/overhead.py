"""What HTTP costs: tokens a second and the first token, of a server and of its engine alone.

    python benchmarks/overhead.py BUNDLE [--clients 1 8] [--tokens 128] [--rounds 5]

The server is a process of its own, as it would be; the engine runs in this one. Both take turns, so
that what else the computer does falls on both; medians are shown. The clients' own work, reading
the stream line by line, is part of the server's figures.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from soaking import served

from lfm2_deploy.serving.engine import Engine, EngineLimits

Measured = tuple[float, float]
PROMPT = "The king went to the river, and said:"


def ask_engine(engine: Engine, prompt: str, tokens: int) -> float:
    """Seconds to the first event."""
    began, first = time.perf_counter(), 0.0
    options = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0.0}
    for _ in engine.stream(prompt, **options):
        first = first or time.perf_counter() - began
    return first


def ask_server(url: str, prompt: str, tokens: int) -> float:
    """Seconds to the first event."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port)
    body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    content = json.dumps({**body, "stream": True})
    began, first, last = time.perf_counter(), 0.0, b""
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", content, headers)
    for line in connection.getresponse():
        if line.startswith(b"data:"):
            first, last = first or time.perf_counter() - began, line
    assert last.strip() == b"data: [DONE]", last
    connection.close()
    return first


def measure(ask: Callable[[str], float], clients: int, tokens: int) -> Measured:
    """All tokens a second, and the median time to a first token."""
    firsts: list[float] = []
    threads = [
        threading.Thread(target=lambda n=n: firsts.append(ask(f"{PROMPT} {n}")))
        for n in range(clients)
    ]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return clients * tokens / (time.perf_counter() - began), statistics.median(firsts)


def main() -> None:
    """Measure in turns, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    most, tokens = max(given.clients), given.tokens
    engine = Engine.load(given.bundle, limits=EngineLimits(running=most))
    with engine, served.start(given.bundle, "--max-running", str(most)) as server:
        ways: dict[str, Callable[[str], float]] = {
            "engine": lambda prompt: ask_engine(engine, prompt, tokens),
            "server": lambda prompt: ask_server(server.url, prompt, tokens),
        }
        print("| clients | engine tok/s | server tok/s | ratio | engine first | server first |")
        print("|---|---|---|---|---|---|")
        for clients in given.clients:
            found: dict[str, list[Measured]] = {name: [] for name in ways}
            for _ in range(given.rounds + 1):
                for name, ask in ways.items():
                    found[name].append(measure(ask, clients, tokens))
            # Without the first round, in which states and threads are made.
            (a, x), (b, y) = (
                [statistics.median(column) for column in zip(*found[name][1:], strict=True)]
                for name in ways
            )
            print(
                f"| {clients} | {a:.0f} | {b:.0f} | {b / a:.2f} | {1e3 * x:.1f} ms | "
                f"{1e3 * y:.1f} ms |",
                flush=True,
            )


if __name__ == "__main__":
    main()
