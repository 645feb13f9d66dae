"""HTML that is safe by its types: a plain `str` is text and is escaped, an `Html` is markup. Pure."""

import json
from collections.abc import Iterable, Mapping
from html import escape

from orchestrator.json_values import JsonValue
from orchestrator.run_facts.quantity_text import printable

_VOID = frozenset({"meta", "br", "hr", "line", "path", "rect", "circle"})


class Html(str):
    """Markup. Made by the functions of this module only."""

    __slots__ = ()


def element(name: str, attributes: Mapping[str, str] | None = None, *children: str) -> Html:
    """An element. Attributes and children that are not `Html` are escaped."""
    written = "".join(f' {key}="{escape(printable(value), quote=True)}"' for key, value in (attributes or {}).items())
    if name in _VOID and not children:
        return Html(f"<{name}{written}>" if name in ("meta", "br", "hr") else f"<{name}{written}/>")
    return Html(f"<{name}{written}>{joined(children)}</{name}>")


def joined(children: Iterable[str]) -> Html:
    """Children one after the other."""
    return Html("".join(child if isinstance(child, Html) else text(child) for child in children))


def text(value: str) -> Html:
    """Text, without characters that control something."""
    return Html(escape(printable(value), quote=True))


def raw(markup: str) -> Html:
    """Markup that is a constant of this package: a style sheet, a script."""
    return Html(markup)


def data_block(value: JsonValue) -> Html:
    """JSON for a script of the page. Nothing in it can end the element that holds it."""
    written = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return Html(f'<script type="application/json">{written}</script>')
