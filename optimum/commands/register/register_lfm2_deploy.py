"""LFM2 in `optimum-cli export onnx`: what optimum finds at its start, without being told of us.

optimum imports every file of this folder, to which each package adds its own (optimum 2.1,
`load_optimum_namespace_cli_commands`); none of the folders has an `__init__.py`. A second command
`onnx` would be refused by argparse, so the one that optimum-onnx brings is given a new `run`.
"""

from __future__ import annotations

from typing import Any

REGISTER_COMMANDS: list[Any] = []

try:
    from optimum.commands.export.onnx import ONNXExportCommand
except ImportError:  # optimum without optimum-onnx, or none: there is no such command
    pass
else:
    _run_as_it_was = ONNXExportCommand.run

    def _run(command: Any) -> None:
        # Imported when it is asked for: every command of optimum-cli imports this file.
        from lfm2_deploy.integrations.optimum_export import run_export_command

        run_export_command(lambda: _run_as_it_was(command))

    ONNXExportCommand.run = _run
