"""``python -m benchmarks [NAME...] [--long] [--quick] [--output DIR]``."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.harness import Options, Skipped, Table, write
from lowdim.claims.machine import machine

NAMES = (
    *("blast_layer", "whole_model", "factorization", "triton"),
    *("geodesic", "streaming", "tensor_regression", "phase_retrieval", "incontext", "monitor", "sharpness"),
    *("inverse", "resample", "costs", "policy", "compaction"),
)
#: Language models that write for a quarter of an hour each: not in `make bench`, but in `make bench-long`.
LONG = ("policy", "compaction")
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> int:
    """Run benchmarks; the exit code is 1 when a threshold is missed.

    Parameters
    ----------
    arguments : list of str, optional
        The words of the command line.

    Returns
    -------
    int
        Exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Ours against the peer, interleaved."
    )
    short = ", ".join(name for name in NAMES if name not in LONG)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default {short}")
    parser.add_argument(
        "--long", action="store_true", help=f"by default those that are long: {', '.join(LONG)}"
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and cases")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for JSON and Markdown")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(NAMES)}")
    met = True
    for name in given.names or [name for name in NAMES if (name in LONG) == given.long]:
        table = measure(name, Options(quick=given.quick))
        write(table, folder=given.output)
        sys.stdout.write(table.markdown() + "\n")
        sys.stdout.flush()
        met &= table.met
    return 0 if met else 1


def measure(name: str, options: Options) -> Table:
    """Run one benchmark by name.

    Parameters
    ----------
    name : str
        One of :data:`NAMES`.
    options : Options
        From the command line.

    Returns
    -------
    Table
        With time and machine; with the reason if it cannot run here.
    """
    module = importlib.import_module(f"benchmarks.{name}")
    start = time.perf_counter()
    try:
        table = module.run(options)
    except Skipped as reason:
        table = Table(name, module.DESCRIPTION, skipped=str(reason))
    return replace(table, seconds=time.perf_counter() - start, quick=options.quick, machine=machine())


if __name__ == "__main__":
    sys.exit(main())
