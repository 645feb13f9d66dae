import json
from html.parser import HTMLParser

import pytest

from orchestrator.report.html_text import Html, data_block, element, joined, text

pytestmark = pytest.mark.unit
HOSTILE = "</script><img src=x onerror=\"alert('1')\">&amp;\x1b[31m\u2028"


def test_text_and_attributes_are_escaped() -> None:
    written = element("p", {"title": HOSTILE}, HOSTILE)
    assert "<img" not in written
    assert written.count('"') == 2, "no quote ends the attribute"
    assert "\x1b" not in written

    class Reader(HTMLParser):
        seen: str = ""

        def handle_data(self, data: str) -> None:
            self.seen += data

    reader = Reader()
    reader.feed(written)
    assert reader.seen == HOSTILE.replace("\x1b", "\ufffd").replace("\u2028", "\ufffd")


def test_markup_is_kept_and_what_is_added_to_it_is_not() -> None:
    inner = element("b", None, "x < y")
    assert element("p", None, inner, " & ") == "<p><b>x &lt; y</b> &amp; </p>"
    assert type(inner + "<i>") is str, "so it is escaped again"
    assert joined([text("<"), "<", Html("<hr>")]) == "&lt;&lt;<hr>"


def test_data_cannot_end_its_element() -> None:
    block = data_block({"name": HOSTILE, "values": [1, 2.5, None]})
    assert block.count("<") == 2
    inner = block.removeprefix('<script type="application/json">').removesuffix("</script>")
    assert json.loads(inner) == {"name": HOSTILE, "values": [1, 2.5, None]}
