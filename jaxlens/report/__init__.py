"""A page that people look at: what was compared, what is best, and why.

One HTML file that works offline: data, style and script are inside, nothing is fetched.
"""

from jaxlens.report.content import content
from jaxlens.report.page import page, write_report

__all__ = ["content", "page", "write_report"]
