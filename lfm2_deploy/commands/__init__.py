"""One file a command; `cli.py` wires them."""
