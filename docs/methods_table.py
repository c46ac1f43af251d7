"""The table of methods in the documentation and the README, written from `trueward.methods()`.

mkdocs puts it in place of the line ``<!-- methods -->`` of a page; `python docs/methods_table.py` (`make figures`) renews the
README's, between ``<!-- methods -->`` and ``<!-- end -->``.
"""

import re
from pathlib import Path
from typing import Any

import trueward

README = Path(__file__).parents[1] / "README.md"
_MARKED = re.compile(r"(<!-- methods -->\n).*?(<!-- end -->)", re.DOTALL)


def table() -> str:
    """One line per method: name, what it does, paper, room, status."""
    lines = ["| method | what it does | paper | room | status |", "|---|---|---|---|---|"]
    for m in trueward.methods():
        paper = f"[{m.venue} {m.year}](https://arxiv.org/abs/{m.arxiv})"
        lines.append(f"| {m.name} | {m.purpose} | {paper} | `{m.room}` | {m.last_reproduction() or m.status} |")
    return "\n".join(lines) + "\n"


def renewed(text: str) -> str:
    """A text with its marked table written anew."""
    return _MARKED.sub(lambda match: match[1] + "\n" + table() + "\n" + match[2], text)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return markdown.replace("<!-- methods -->", table())


if __name__ == "__main__":
    README.write_text(renewed(README.read_text()))
