"""What a server is told once: names, limits, who may come in.

Enters: what the command line or an embedding program says. Leaves: one frozen value. Knows
nothing of HTTP or of engines.
"""

from __future__ import annotations

from dataclasses import dataclass

# The largest of the numbers below that requests may ask for.
MOST_CHOICES = 16
MOST_STOPS = 16
# Far more than fit a context; laying out so many takes about a second.
MOST_MESSAGES = 10_000
MOST_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server behaves.

    Args:
        names: what the model is called; the first is told, all are taken in requests.
        host: the address that is listened at; decides which `Host` headers are taken.
        api_keys: any of them lets a client in; none lets everybody in.
        origins: of web pages that may call from a browser, such as "http://localhost:3000"; "*"
            for every page. The server's own page always may.
        hosts: further names that the server is reached by; "*" for any.
        max_body_bytes: largest request.
        body_seconds: longest time that a request's body may take to come.
        max_tokens: most tokens of an answer, whatever is asked for; None leaves it to the context.
        request_seconds: longest time for an answer, waiting included; None for no limit.
        kept_responses: answers of the Responses API that `previous_response_id` finds.
        serves_page: there is a chat page at "/".
        access_log: "text", "json" or "off": one line a request on stderr, without contents.
    """

    names: tuple[str, ...] = ("lfm2",)
    host: str = "127.0.0.1"
    api_keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    # Three times what a context of 128,000 tokens takes, as text or as ids.
    max_body_bytes: int = 2 * 2**20
    body_seconds: float = 30.0
    max_tokens: int | None = None
    request_seconds: float | None = None
    kept_responses: int = 64
    serves_page: bool = True
    access_log: str = "off"
