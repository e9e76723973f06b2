"""What stands in the files: links that resolve, names of rooms, paths, spelling."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = {".py", ".md", ".rst", ".toml", ".cfg", ".txt", ".yml", ".yaml", ".j2", ".css", ".js", ".json", ""}


def tracked():
    """Files of the checkout; of a source archive without git, all that are not made by tools."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode == 0:
        paths = [ROOT / line for line in listed.stdout.splitlines()]
    else:
        made = {".venv", "build", "dist", "demo", "_build", "__pycache__", ".git"}
        paths = [path for path in ROOT.rglob("*") if not made & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in paths if path.is_file())


FILES = tracked()
PROSE = [path for path in FILES if path.suffix in (".md", ".rst")]
WRITTEN = [path for path in FILES if path.suffix in TEXT and path != Path(__file__)]
name_of = lambda path: str(path.relative_to(ROOT))  # noqa: E731


def read(path):
    return path.read_text(encoding="utf-8", errors="strict")


def test_there_is_something_to_check():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= {name_of(path) for path in PROSE}
    assert len(WRITTEN) > 50


def targets(path):
    """Local targets of links, pictures and tables of contents."""
    text = read(path)
    if path.suffix == ".md":
        text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
        found = re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", text) + re.findall(
            r"""(?:src|href)=["']([^"']+)""", text
        )
        found += re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, flags=re.M)
    else:
        found = re.findall(r"`[^`<]*<([^>`]+)>`_", text)
        found += re.findall(r"^\s*\.\. (?:image|figure|include|literalinclude):: (\S+)", text, flags=re.M)
        for block in re.findall(r"\.\. toctree::\n((?:[ \t]+.*\n|\n)+)", text + "\n"):
            found += [
                line.strip()
                for line in block.splitlines()
                if line.strip() and not line.strip().startswith(":")
            ]
    return [target for target in found if not re.match(r"[a-z][a-z0-9+.-]*:|//", target)]


def anchors(path):
    """The names that headings of a Markdown page get."""
    headings = re.findall(r"^#+\s+(.*?)\s*#*$", re.sub(r"```.*?```", "", read(path), flags=re.S), flags=re.M)
    plain = [re.sub(r"[`*_]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def test_the_link_rule_sees_links(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("[a](b.md#c) ![p](q.png) <img src='r.png'> [x](https://y.z) `[not](code)`\n\n# A `B` c\n")
    assert targets(page) == ["b.md#c", "q.png", "r.png"]
    assert anchors(page) == {"a-b-c"}
    page = tmp_path / "page.rst"
    page.write_text("`a <b.html>`_\n\n.. toctree::\n   :maxdepth: 1\n\n   c\n\n.. image:: d.png\n")
    assert targets(page) == ["b.html", "d.png", "c"]


@pytest.mark.parametrize("path", PROSE, ids=name_of)
def test_links_resolve(path):
    broken = []
    for target in targets(path):
        file, _, anchor = target.partition("#")
        # Made by the builders: `make docs` (gallery pages), `make claims`, autosummary.
        if file.startswith(("auto_gallery/", "generated/")):
            continue
        base = ROOT if file.startswith("/") else path.parent
        there = base / file.lstrip("/") if file else path
        candidates = [there, there.with_name(there.name + ".md"), there.with_name(there.name + ".rst")]
        there = next((candidate for candidate in candidates if candidate.exists()), None)
        if there is None or (anchor and there.suffix == ".md" and anchor.lower() not in anchors(there)):
            broken.append(target)
    assert not broken


def test_no_room_is_named_for_what_did_not_fit_elsewhere():
    forbidden = {"util", "utils", "misc", "common", "helper", "helpers", "core", "base", "tool", "tools"}
    offending = []
    for path in FILES:
        inside = path.relative_to(ROOT)
        if path.suffix == ".py" and inside.parts[0] in ("src", "tests", "benchmarks", "gallery"):
            words = {part.removesuffix(".py").removeprefix("test_").strip("_") for part in inside.parts}
            offending += [name_of(path)] if words & forbidden else []
    assert not offending


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"(^|[^A-Za-z0-9_./-])/(work|root|home/\w+|Users/\w+)/", "an absolute path of somebody's machine"),
        (r"\b(TODO|FIXME|XXX|HACK)\b", "a note for later: do it, or open an issue"),
        (r"https?://[^\s\"')]*\b(artifactory|nexus|jfrog|devpi)\b", "a private package index"),
        (r"^(<{7}|>{7}) ", "a conflict mark"),
    ],
    ids=["paths", "notes", "indexes", "conflicts"],
)
def test_files_are_free_of(pattern, why):
    offending = []
    for path in WRITTEN:
        for number, line in enumerate(read(path).splitlines(), start=1):
            if re.search(pattern, line):
                offending.append(f"{name_of(path)}:{number}: {line.strip()[:100]}")
    assert not offending, f"{why}:\n" + "\n".join(offending)


# Stems whose British form differs; names of other libraries' interfaces are excused below.
BRITISH = (
    r"(optimi|normali|initiali|regulari|generali|summari|minimi|maximi|organi|recogni|visuali|quanti|reali|"
    r"factori|parameteri|orthogonali|vectori|seriali|tokeni|symmetri|speciali|utili|penali|locali|equali|"
    r"stabili|synchroni|categori|diagonali|emphasi|lineari|randomi|rasteri|customi|standardi)s(e|ed|es|er|ers|ing|ation|ations)\b"
    r"|\b(colour|behaviour|neighbour|favour|honour|labour|flavour|rigour|vapour|centre[ds]?\b|centring|"
    r"analys(e|ed|ing)\b|modell(ed|ing|er)\b|labell(ed|ing)\b|cancell(ed|ing)\b|travell(ed|ing)\b|"
    r"signall(ed|ing)\b|fulfil\b|artefact|catalogue|defence|licence|programme\b|whilst|grey\b)"
)
EXCUSED = re.compile(r"orthogonalis|emphasis\b|basis\b|analysis\b|get_centre|grey(scale)?=")


def test_spelling_is_american():
    offending = []
    for path in WRITTEN:
        if path.suffix not in (".py", ".md", ".rst", ".j2") or path.name == "LICENSE":
            continue
        for number, line in enumerate(read(path).splitlines(), start=1):
            for match in re.finditer(BRITISH, line, flags=re.I):
                if not EXCUSED.search(match.group()):
                    offending.append(f"{name_of(path)}:{number}: {match.group()}")
    assert not offending, "\n".join(offending)
