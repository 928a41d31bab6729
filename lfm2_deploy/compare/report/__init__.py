"""A comparison as one HTML page that needs nothing else: for people, and for bug reports."""

from lfm2_deploy.compare.report.page import render_page, write_page

__all__ = ["render_page", "write_page"]
