"""Graphs of somebody else's exporter -> graphs of bundles, changed only at their edges."""
