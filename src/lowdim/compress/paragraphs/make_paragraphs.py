"""Freeze the built-in paragraphs: ``python make_paragraphs.py`` rewrites paragraphs.jsonl beside it.

The text of `pydoc_data.topics` differs between Python versions, and the figures in the
documentation belong to one text; this script made the frozen copy and shows the rule.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from pydoc_data.topics import topics

SHORTEST, LONGEST, HELD_OUT = 80, 600, 300  # characters, characters, paragraphs


def paragraphs(names: list[str], *, without: set[str]) -> dict[str, str]:
    """Return text -> topic of the distinct paragraphs of some topics, in order."""
    found: dict[str, str] = {}
    for name in names:
        for block in topics[name].split("\n\n"):
            text = " ".join(block.split())
            if len(text) >= SHORTEST and text[:LONGEST] not in without:
                found.setdefault(text[:LONGEST], name)
    return found


def main() -> None:
    """Write the two splits."""
    names = sorted(topics)
    calibration = paragraphs(names[::2], without=set())
    # Some topics repeat whole sections of others: what was seen in calibration is not held out.
    held_out = paragraphs(names[1::2], without=set(calibration))
    texts = list(held_out)
    spread = [texts[i * len(texts) // HELD_OUT] for i in range(HELD_OUT)]
    rows = [{"split": "calibration", "topic": topic, "text": text} for text, topic in calibration.items()]
    rows += [{"split": "heldout", "topic": held_out[text], "text": text} for text in spread]
    target = Path(__file__).with_name("paragraphs.jsonl")
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    sys.stdout.write(
        f"{len(calibration)} calibration and {len(spread)} held-out paragraphs in {target.name}\n"
    )


if __name__ == "__main__":
    main()
