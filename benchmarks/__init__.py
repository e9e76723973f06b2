"""Benchmarks: ours and the peer in one process, interleaved.

``python -m benchmarks [NAME...]`` runs them and writes JSON and Markdown to
``benchmarks/results/``. A benchmark is a file of this folder with ``NAME``,
``DESCRIPTION`` and ``run(options) -> Table``.
"""
