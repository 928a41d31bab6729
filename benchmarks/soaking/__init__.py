"""The parts of `benchmarks/soak.py`, which `tests/server/test_soak.py` runs, too."""
