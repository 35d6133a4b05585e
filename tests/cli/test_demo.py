"""The main job from start to end, as the README shows it, with the shipped models."""

import json
import subprocess
import sys

import pytest

from synthgen.cli.demo import STYLES
from synthgen.core.manifest import Manifest, file_digest

IMAGES = "images/" + "+".join(STYLES)
OUTPUTS = (f"{IMAGES}/shards/00000.h5", "labels/shards/00000.h5")


def demo(out):
    command = [sys.executable, "-m", "synthgen", "demo", "--out", str(out), "--n", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, demo(out)


def test_demo_makes_a_labelled_dataset_a_contact_sheet_and_a_report(first):
    out, printed = first
    manifest = Manifest.read(out / IMAGES)
    assert manifest.n == 2
    assert manifest.subjects
    assert not any("sub-lo12" in subject or "sub-16" in subject for subject in manifest.subjects)
    assert (out / IMAGES / "preview.png").read_bytes().startswith(b"\x89PNG")
    body = json.loads((out / "reports" / "demo" / "metrics.json").read_text())
    assert body["kind"] == "overview"
    assert "2 samples of images, all right" in printed
    assert str(out / IMAGES / "preview.png") in printed
    for line in ("labels --n 2", f"images --style {','.join(STYLES)}", "evaluate overview"):
        assert f"$ synthgen {line}" in printed


def test_simulated_styles_are_named_once(first):
    """Two of the three styles come from protocols, not from images."""
    told = [line for line in first[1].splitlines() if "simulated" in line]
    assert [line.partition(":")[0] for line in told] == ["oasis_t1", "oasis_flair"]


def test_demo_again_keeps_everything(first):
    out, _ = first
    before = {name: file_digest(out / name) for name in OUTPUTS}
    printed = demo(out)
    assert printed.count("nothing to do") == 2
    assert {name: file_digest(out / name) for name in OUTPUTS} == before
