"""A window to ask a model in, which stays responsive: python samples/desktop_app.py BUNDLE."""

import sys
from concurrent.futures import Future
from multiprocessing.pool import ThreadPool

import PySide6.QtWidgets as qt  # noqa: N813
from PySide6.QtCore import Qt, Signal

from lfm2_deploy import Engine


class Chat(qt.QSplitter):  # a column; works on one thread, whose signals Qt brings to its own
    moved, said, pool, engine, stream = Signal(object), Signal(str), ThreadPool(1), None, Future()

    def start(self, work, argument):
        self.stream.cancel()
        self.pool.apply_async(work, [argument], error_callback=lambda e: self.said.emit(f"[{e}]\n"))

    def load(self, name):
        old, self.engine = self.engine, Engine.load(bundle, device=name, progress=self.moved.emit)
        old and old.close()

    def ask(self, question):
        with self.engine.stream([{"role": "user", "content": question}]) as self.stream:
            for event in self.stream:
                self.said.emit(getattr(event, "text", "\n"))


bundle = sys.argv[1] if sys.argv[1:] else sys.exit(__doc__)
app, ui = qt.QApplication(sys.argv), Chat(Qt.Vertical, windowTitle=bundle, minimumWidth=640)
devices = qt.QComboBox(ui, currentTextChanged=lambda name: ui.start(ui.load, name))
text = qt.QPlainTextEdit(ui, textInteractionFlags=Qt.NoTextInteraction, minimumHeight=400)
line = qt.QLineEdit(ui, returnPressed=lambda: ui.start(ui.ask, line.text()))
bar, stop = qt.QProgressBar(ui), qt.QPushButton("Stop", ui, clicked=lambda: ui.stream.cancel())
ui.moved.connect(lambda at: bar.setValue(100 * at.done // (at.total or 1)))
ui.said.connect(lambda new: text.insertPlainText(new) or text.ensureCursorVisible())
devices.addItems(["cpu", "gpu", "npu"])
ui.show()
app.exec()
