"""Shows the reStructuredText of docstrings as HTML: roles such as :func:`name` as code, a math directive as one line."""

import re
from typing import Any

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):<code>~?(?:[\w.]*\.)?([\w()]+)</code>")
_MATH = re.compile(r"<p>\.\. math::\s*(.*?)</p>", re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return _MATH.sub(r'<p><code class="formula">\1</code></p>', _ROLE.sub(r"<code>\1</code>", html))
