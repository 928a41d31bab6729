"""Graphs of somebody else's exporter -> graphs that runtimes here run, changed only at their edges."""
