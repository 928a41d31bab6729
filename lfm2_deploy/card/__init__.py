"""The model card of a bundle (README.md), and what was measured of it (measurements.json)."""
