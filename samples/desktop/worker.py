"""What waits for the model: a thread that does one thing after the other, and tells by signals."""

from collections.abc import Callable
from multiprocessing.pool import ThreadPool

from conversation import Conversation
from PySide6.QtCore import QObject, Signal

from lfm2_deploy import Engine


class Worker(QObject):
    progressed, wrote = Signal(object), Signal(str)
    settled = Signal(object, str)  # the device that answers, as it was asked for and by its name

    def __init__(self, bundle: str) -> None:
        super().__init__()
        self.bundle, self.engine, self.answering = bundle, None, (None, "")
        self.chat, self.pool = Conversation(), ThreadPool(1)

    def start(self, task: Callable, *words: object) -> None:
        self.pool.apply_async(task, words, error_callback=lambda e: self.wrote.emit(f"[{e}]\n\n"))

    def load(self, device: str | None) -> None:
        try:
            engine = Engine.load(self.bundle, device=device, progress=self.progressed.emit)
            if self.engine:
                self.engine.close()
            self.engine, self.answering = engine, (device, engine.model.runtime.info.device)
        finally:  # where the new one was refused, the old one goes on
            self.settled.emit(*self.answering)

    def ask(self, question: str, stops: int) -> None:
        if stops == self.chat.stops:
            self.wrote.emit(f"> {question}\n")
            if not self.engine:
                raise RuntimeError("no model is loaded: choose another device")
            for text in self.chat.answer(self.engine, question, stops):
                self.wrote.emit(text)
            self.wrote.emit("\n\n")
