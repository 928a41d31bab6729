"""A conversation that any thread may stop; it knows nothing of windows."""

from collections.abc import Iterator

from lfm2_deploy import Engine, Finished, Stream, TextDelta
from lfm2_deploy.errors import ContextOverflowError


class Conversation:
    def __init__(self) -> None:
        self.messages, self.stops, self.stream = [], 0, None

    def stop(self) -> None:
        """End the answer that is being written; questions asked before this are void."""
        self.stops += 1
        if self.stream:
            self.stream.cancel()

    def answer(self, engine: Engine, question: str, stops: int) -> Iterator[str]:
        """The answer piece by piece; `stops` is how often it was stopped when this was asked."""
        asked = {"role": "user", "content": question}
        with self.begin(engine, asked) as self.stream:
            for event in self.stream:
                if stops != self.stops:  # stopped before there was a stream to cancel
                    self.stream.cancel()
                match event:
                    case TextDelta(text):
                        yield text
                    case Finished(answer):
                        self.messages += [asked, {"role": "assistant", "content": answer.text}]

    def begin(self, engine: Engine, asked: dict) -> Stream:
        """What is too long for the context loses its oldest turns."""
        while True:
            try:
                return engine.stream([*self.messages, asked])
            except ContextOverflowError:
                if not self.messages:
                    raise
                del self.messages[:2]
