"""CITATION.cff is what readers copy: it must be valid and name every paper."""

from pathlib import Path

import pytest
import yaml

import synthgen

ROOT = Path(__file__).parent.parent
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PAPERS = {
    "2209.08256": "Fernandez",
    "1903.07291": "Park",
    "2112.10752": "Rombach",
    "10.1016/j.media.2023.102789": "Billot",
    "10.1038/s41592-020-01008-z": "Isensee",
    "2209.14566": "Kim",
    "2303.06040": "Fu",
    "2407.03548": "Chen",
}
# The types that the schema of CFF 1.2.0 lists and that occur here.
TYPES = {"article", "conference-paper"}


def test_required_keys_of_cff_1_2_0():
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] == "software"
    assert all(CITATION[key] for key in ("message", "title", "authors", "license"))
    assert CITATION["version"] == synthgen.__version__


@pytest.mark.parametrize("reference", CITATION["references"], ids=lambda r: r["title"][:30])
def test_references_are_complete(reference):
    known = {"type", "title", "authors", "year", "notes", "conference", "identifiers", "url"}
    assert set(reference) <= known | {"journal", "volume", "doi"}
    assert reference["type"] in TYPES
    assert isinstance(reference["year"], int)
    assert all({"family-names", "given-names"} == set(author) for author in reference["authors"])
    for identifier in reference.get("identifiers", []):
        assert set(identifier) == {"type", "value"}
        assert identifier["type"] in {"doi", "url", "swh", "other"}
    assert reference.get("url", "https://").startswith("https://")


@pytest.mark.parametrize(("identifier", "author"), PAPERS.items())
def test_every_paper_is_listed(identifier, author):
    found = [r for r in CITATION["references"] if identifier in str(r)]
    assert [r["authors"][0]["family-names"] for r in found] == [author]


def test_version_is_the_packages():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{synthgen.__version__}"' in text


@pytest.mark.parametrize("command", ['pip install torch==2.13.0 -e ".[dev]"', "pytest -n 2"])
def test_ci_runs_the_commands_of_the_readme(command):
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
