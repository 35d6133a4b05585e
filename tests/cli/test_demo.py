"""The main job from start to end, as the README shows it."""

import subprocess
import sys

import pytest

from synthgen.core.manifest import Manifest, file_digest

OUTPUTS = ("images/mni152_t1/shards/00000.h5", "labels/shards/00000.h5")


def demo(out):
    command = [sys.executable, "-m", "synthgen", "demo", "--out", str(out)]
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [*command, "--minutes", "0.05", "--n", "2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, demo(out)


def test_demo_makes_a_labelled_dataset_and_a_contact_sheet(first):
    out, printed = first
    images = out / "images" / "mni152_t1"
    assert Manifest.read(images).n == 2
    assert Manifest.read(images).subjects == ["mni152/sub-template"]
    assert (images / "preview.png").read_bytes().startswith(b"\x89PNG")
    assert "2 samples of images, all right" in printed
    assert str(images / "preview.png") in printed
    for line in ("prepare mni152", "train labels tiny", "labels --n 2", "images --style mni152_t1"):
        assert f"$ synthgen {line}" in printed


def test_demo_again_keeps_everything(first):
    out, _ = first
    before = {name: file_digest(out / name) for name in OUTPUTS}
    printed = demo(out)
    assert "$ synthgen train" not in printed
    assert "$ synthgen prepare" not in printed
    assert printed.count("nothing to do") == 2
    assert {name: file_digest(out / name) for name in OUTPUTS} == before
