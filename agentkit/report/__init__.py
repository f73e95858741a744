"""A finished run becomes report files: data, a page, and text for the terminal."""

from agentkit.report.build import build_report, verify
from agentkit.report.html import to_html
from agentkit.report.markdown import to_markdown
from agentkit.report.model import Report
from agentkit.report.write import to_json, write_report

__all__ = [
    "Report",
    "build_report",
    "to_html",
    "to_json",
    "to_markdown",
    "verify",
    "write_report",
]
