"""A window to chat with a model in: python samples/desktop/app.py BUNDLE."""

import sys

from devices import list_devices
from PySide6.QtWidgets import QApplication
from window import OWN_DEVICE, ChatWindow
from worker import Worker


def choose() -> None:
    name = window.devices.currentText()
    worker.chat.stop()
    worker.start(worker.load, None if name == OWN_DEVICE else name)


def ask() -> None:
    if question := window.line.text().strip():
        window.line.clear()
        worker.start(worker.ask, question, worker.chat.stops)


if len(sys.argv) != 2:
    sys.exit(__doc__)
app = QApplication(sys.argv)
worker = Worker(sys.argv[1])
window = ChatWindow(worker.bundle, list_devices(worker.bundle))
window.devices.activated.connect(choose)
window.line.returnPressed.connect(ask)
window.stop.clicked.connect(worker.chat.stop)
worker.progressed.connect(window.show_progress)
worker.settled.connect(window.show_device)
worker.wrote.connect(window.write)
window.line.setFocus()
window.show()
choose()
app.exec()
worker.pool.terminate()  # an engine ends with the program
