"""The page: escaping, completeness, tables, figures."""

import base64
import gzip
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from plotly.graph_objects import Figure

from lowdim.errors import DataError
from lowdim.report import Card, Page

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


class Balance(HTMLParser):
    """Collects tags that are not closed, and all attributes."""

    VOID = frozenset({"meta", "link", "img", "br", "input", "hr"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def parsed(html):
    balance = Balance()
    balance.feed(html)
    assert balance.open == []
    return balance


def everything(text):
    figure = Figure().add_scatter(x=[text], y=[1.0], name=text)
    return (
        Page(text, subtitle=text, eyebrow=text)
        .lead(text)
        .cards([Card(text, text, text, 0.5)])
        .section(text, intro=text)
        .statements([(text, [text])])
        .sentences([text])
        .verdicts([(True, text), (False, text)])
        .facts([(text, text)])
        .text(text)
        .code(text, caption=text)
        .figure(figure, caption=text)
        .table([{text: text}], caption=text)
    )


def test_text_is_shown_and_never_run():
    harmless = parsed(everything("plain").html())
    evil = parsed(everything(EVIL).html())
    assert evil.tags == harmless.tags
    assert "img" not in evil.tags


def test_every_kind_of_element_shows_its_text():
    html = everything("wanted-text").html()
    assert html.count("wanted-text") >= 20


def test_the_file_is_complete_in_itself():
    html = everything("plain").html()
    assert all(link.startswith(("#", "data:")) for link in parsed(html).links)
    assert "default-src 'none'" in html
    packed = re.search(r'<script type="text/plain" id="plotly">([^<]*)</script>', html).group(1)
    source = gzip.decompress(base64.b64decode(packed)).decode()
    assert "plotly.js v" in source[:200]
    assert len(html) < 2_500_000


def test_plotly_is_there_once_and_only_for_figures():
    page = Page("No figures").text("Only text.")
    assert len(page.html()) < 40_000
    figure = Figure().add_bar(x=[1], y=[2])
    two = Page("Two").figure(figure, caption="one").figure(figure, caption="two").html()
    assert two.count('id="plotly"') == 1
    assert two.count('class="plot-area"') == 2


def test_a_figure_carries_data_and_no_template():
    html = Page("t").figure(Figure().add_bar(x=["a<b"], y=[2]), caption="c").html()
    text = re.search(r'<script type="application/json">(.*?)</script>', html).group(1)
    assert "<" not in text
    shown = json.loads(text)
    assert shown["data"][0]["x"] == ["a<b"]
    assert "template" not in shown["layout"]


def cells(html):
    return re.findall(r'<td data-key="([^"]*)"[^>]*>(?:<i[^>]*></i>)?<span>([^<]*)</span>', html)


def test_a_table_sorts_by_values_and_shows_formats():
    rows = pd.DataFrame({"name": ["a", "b"], "error": [0.25, np.float32(0.5)], "size": [(3, 4), (30, 4)]})
    html = Page("t").table(rows, caption="c", formats={"error": "{:.1%}"}, bars=["error"]).html()
    times = "\N{MULTIPLICATION SIGN}"
    assert cells(html) == [
        ("a", "a"),
        ("0.25", "25.0%"),
        (f"3 {times} 4", f"3 {times} 4"),
        ("b", "b"),
        ("0.5", "50.0%"),
        (f"30 {times} 4", f"30 {times} 4"),
    ]
    assert re.findall(r'class="bar" style="width:([\d.]+)%"', html) == ["50.0", "100.0"]
    assert html.count('<th scope="col" class="number">') == 1


def test_missing_values_are_empty_cells():
    html = (
        Page("t").table([{"a": 1, "b": None}, {"a": math.nan, "b": 2.5}, {"b": math.inf}], caption="c").html()
    )
    assert cells(html) == [("1.0", "1"), ("", ""), ("", ""), ("2.5", "2.5"), ("", ""), ("inf", "inf")]


def test_an_empty_table_is_a_table():
    parsed(Page("t").table([], caption="nothing", formats={"a": "{}"}).html())


def test_a_format_for_no_column_is_refused():
    with pytest.raises(DataError, match=r"no column 'eror'. Columns: error"):
        Page("t").table([{"error": 1.0}], caption="c", formats={"eror": "{:.1f}"})


def test_numbers_stay_with_their_units():
    html = Page("t").lead("It takes 12 ms, 43 MB and 5 % of 3 models.").html()
    assert "12\N{NO-BREAK SPACE}ms, 43\N{NO-BREAK SPACE}MB and 5\N{NO-BREAK SPACE}% of 3 models." in html


def test_the_same_page_is_the_same_bytes(tmp_path):
    first = everything("x").write(tmp_path / "a.html").read_bytes()
    assert everything("x").write(tmp_path / "b.html").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]
