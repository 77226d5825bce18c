"""What MkDocs does besides: tables that GitHub and the site both read, and colours for code."""

from __future__ import annotations

import re
from typing import Any

from mkdocs.structure.files import File, Files
from pygments.formatters import HtmlFormatter

CODE = re.compile(r"(`+)(.+?)\1")


def on_page_markdown(markdown: str, **_: Any) -> str:
    r"""GitHub wants ``\|`` in the code of a table's cell, Python-Markdown takes it as written there."""
    lines = markdown.split("\n")
    return "\n".join(
        CODE.sub(lambda code: code[0].replace(r"\|", "|"), line) if line.startswith("|") else line for line in lines
    )


def on_page_content(html: str, **_: Any) -> str:
    """Wide tables scroll by themselves, the page does not."""
    return html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")


def on_files(files: Files, config: Any) -> Files:
    """The colours, for codehilite's classes."""
    styles = HtmlFormatter(style="default").get_style_defs(".codehilite")
    files.append(File.generated(config, "highlight.css", content=styles))
    return files
