"""What is seen: the device and how far its loading is, the conversation, a line to ask in."""

from PySide6 import QtWidgets as qt  # noqa: N813
from PySide6.QtGui import QTextCursor

from lfm2_deploy import LoadProgress

OWN_DEVICE = "the bundle's device"


class ChatWindow(qt.QWidget):
    def __init__(self, title: str, devices: tuple[str, ...]) -> None:
        super().__init__(windowTitle=title)
        self.devices, self.bar = qt.QComboBox(), qt.QProgressBar()
        self.devices.addItems([OWN_DEVICE, *devices])
        self.text = qt.QTextEdit(readOnly=True, minimumWidth=640, minimumHeight=400)
        self.line = qt.QLineEdit(placeholderText="Ask something, and press Enter")
        self.stop, rows = qt.QPushButton("Stop"), qt.QFormLayout(self)
        rows.addRow(self.devices, self.bar)
        rows.addRow(self.text)
        rows.addRow(self.stop, self.line)

    def show_progress(self, at: LoadProgress) -> None:
        self.bar.setFormat(f"{at.stage} %p%")
        self.bar.setValue(100 * at.done // at.total if at.total else 0)

    def show_device(self, device: str | None, name: str) -> None:
        self.devices.setCurrentText(device or OWN_DEVICE)
        self.bar.setFormat(name or "no model is loaded")
        self.bar.setValue(100 if name else 0)

    def write(self, text: str) -> None:
        """Append; a reader who scrolled up stays where he is."""
        place = self.text.verticalScrollBar()
        follows = place.maximum() - place.value() < place.singleStep()
        end = QTextCursor(self.text.document())
        end.movePosition(QTextCursor.MoveOperation.End)
        end.insertText(text)
        if follows:
            place.setValue(place.maximum())
