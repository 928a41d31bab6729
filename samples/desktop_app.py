"""A window to ask a model in, which stays responsive: python samples/desktop_app.py BUNDLE."""

from concurrent.futures import Future, ThreadPoolExecutor

from PySide6 import QtCore, QtWidgets

from lfm2_deploy import Engine


class Chat(QtWidgets.QSplitter):
    moved, said = QtCore.Signal(object), QtCore.Signal(str)  # from the worker's thread to Qt's
    worker, engine, stream = ThreadPoolExecutor(max_workers=1), None, Future()

    def start(self, work, argument):
        self.stream.cancel()
        task = self.worker.submit(work, argument)
        task.add_done_callback(lambda _: self.said.emit(f"\n[{task.exception() or 'ready'}]\n"))

    def load(self, device):
        new = Engine.load(app.arguments()[1], device=device, progress=self.moved.emit)
        self.engine, old = new, self.engine
        if old:
            old.close()

    def ask(self, question):
        with self.engine.stream([{"role": "user", "content": question}]) as self.stream:
            for event in self.stream:
                self.said.emit(getattr(event, "text", ""))


app, ui = QtWidgets.QApplication(aboutToQuit=lambda: ui.stream.cancel()), Chat(QtCore.Qt.Vertical)
devices = QtWidgets.QComboBox(ui, currentTextChanged=lambda name: ui.start(ui.load, name))
text = QtWidgets.QPlainTextEdit(ui, textInteractionFlags=QtCore.Qt.NoTextInteraction)
line = QtWidgets.QLineEdit(ui, returnPressed=lambda: ui.start(ui.ask, line.text()))
bar, _ = QtWidgets.QProgressBar(ui), QtWidgets.QPushButton("Stop", ui, clicked=lambda: ui.stream.cancel())
ui.moved.connect(lambda at: bar.setValue(100 * at.done // (at.total or 1)))
ui.said.connect(text.insertPlainText)
devices.addItems(["cpu", "gpu", "npu"])
ui.show()
app.exec()
