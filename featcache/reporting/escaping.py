"""Text from anywhere made safe and visible: one function for HTML, one for Markdown, one for data in a page."""

from __future__ import annotations

import html
import json
import re
from typing import Any

__all__ = ["escape", "json_for_script", "json_text", "markdown_text", "short", "visible"]

#: Not printable by Python's rule, but part of how some languages and emoji are written.
_KEPT = frozenset("\u00a0\u200c\u200d\u3000\ufe0f")

_MARKDOWN = re.compile(r"([\\`*_\[\]|~$]|^[-+#>=]|(?<=^\d)[.)])")


def visible(text: object) -> str:
    r"""Return text with what nobody can see or print written as an escape.

    Control characters, marks that turn the direction of writing, lone surrogates and line breaks become ``\x07``,
    ``\u202e``, ``\udce9``, ``\n``: a name stays one line, reads in one direction, and can be encoded as UTF-8.

    Examples
    --------
    >>> visible("a\u202eb\n")
    'a\\u202eb\\n'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _KEPT else repr(c)[1:-1] for c in text)


def escape(text: object) -> str:
    """Return text as HTML shows it, in an element or in a quoted attribute: all that reaches a page goes through here.

    Examples
    --------
    >>> escape('</script><img onerror="x">')
    '&lt;/script&gt;&lt;img onerror=&quot;x&quot;&gt;'
    """
    return html.escape(visible(text), quote=True)


def short(text: object, limit: int = 40) -> str:
    """Return text of at most `limit` characters, the middle left out: names differ at their ends.

    Examples
    --------
    >>> short("a" * 30 + "b" * 30, 11)
    'aaaaa…bbbbb'
    """
    text = visible(text)
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return text[: limit - 1 - tail] + "…" + text[len(text) - tail :]


def markdown_text(text: object) -> str:
    r"""Return text that Markdown shows as it is: no markup, no HTML, no cell or line of its own.

    Examples
    --------
    >>> markdown_text("<b>|*x*")
    '&lt;b&gt;\\|\\*x\\*'
    """
    return _MARKDOWN.sub(r"\\\1", html.escape(visible(text), quote=False))


def json_text(value: Any, *, indent: int | None = None) -> str:
    r"""Return JSON that can be written as UTF-8: a lone surrogate becomes its escape, which JSON reads back."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def json_for_script(value: Any) -> str:
    r"""Return JSON that can stand within <script>: ASCII, and nothing in it ends the element or begins another.

    Examples
    --------
    >>> json_for_script(["</script>"])
    '["\\u003c/script\\u003e"]'
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
