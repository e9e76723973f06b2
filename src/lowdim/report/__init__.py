"""Report pages: a result as one self-contained HTML file.

Problem: the numbers of a run shall be read by people, years later, on a phone
or on paper, without a server, a network or this package. Equation: none; a
page shows what ``report.json`` says and computes nothing but ratios and
sentences. Input: the dictionary of ``report.json``. Output: one HTML file.

`Page` is the page of every system; beside it, one file per system says what
its page shows: `compress_page`.

Examples
--------
>>> from lowdim.report import Page
>>> page = Page("A small result").cards([("Error", "0.1 %", "of the norm")])
>>> "A small result" in page.html()
True
"""

from lowdim.report.compress import compress_page
from lowdim.report.dynamics import dynamics_page
from lowdim.report.incontext import incontext_page
from lowdim.report.inverse import inverse_page
from lowdim.report.page import Card, Page
from lowdim.report.phase import phase_page, transition_page
from lowdim.report.policy import policy_page
from lowdim.report.regress import coefficient_map, regress_page
from lowdim.report.track import track_page

__all__ = [
    "Card",
    "Page",
    "coefficient_map",
    "compress_page",
    "dynamics_page",
    "incontext_page",
    "inverse_page",
    "phase_page",
    "policy_page",
    "regress_page",
    "track_page",
    "transition_page",
]
