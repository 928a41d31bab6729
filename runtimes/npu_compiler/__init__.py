"""Intel's NPU compiler without an NPU: graphs are compiled, and their time is estimated.

`compiler.py` finds one, `wine.py` runs the Windows wheel's under Wine on Linux (with
`npu_compile.c`), `bundles.py` compiles all graphs of a bundle. What comes out says that the
compiler takes a graph, how large the blob is and what its cost model expects; nothing is
executed.
"""
