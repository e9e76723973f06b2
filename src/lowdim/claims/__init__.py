"""The papers' claims as measurements that anybody can run.

Problem: a library that says "reproduces the paper" should show what was
measured, in which setting, against which threshold, and where it fell short.
A claim is a declaration and a function; ``lowdim claims run`` measures it
over its seeds and writes one row of the table.

    status = pass      the mean over the seeds meets our threshold
             short     it does not, or the measurement broke
             reported  measured and shown, not gated
             skipped   not measurable here, with the reason

Input: nothing, or the data folder that ``LOWDIM_DATA`` names. Output: one
JSON file per claim and a Markdown table. One file per system declares its
claims with the decorator :func:`claim`; none of them imports torch before it
measures, so listing is quick.
"""

from lowdim.claims.declare import Claim, Measurement, Trial, Unavailable, claim, find, registered
from lowdim.claims.gap import Gap, paired_bootstrap
from lowdim.claims.runner import Result, run
from lowdim.claims.store import Store, data_folder
from lowdim.claims.table import markdown

__all__ = [
    "Claim",
    "Gap",
    "Measurement",
    "Result",
    "Store",
    "Trial",
    "Unavailable",
    "claim",
    "data_folder",
    "find",
    "markdown",
    "paired_bootstrap",
    "registered",
    "run",
]
