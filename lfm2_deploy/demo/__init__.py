"""The demo model, shipped inside the package."""
