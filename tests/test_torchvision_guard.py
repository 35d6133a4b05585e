"""The package works whether torchvision works, is absent, or cannot be imported."""

import os
import subprocess
import sys

import pytest

PROBE = """
import sys
from synthgen.torchvision_guard import hide_broken_torchvision
reason = hide_broken_torchvision()
assert hide_broken_torchvision() == reason
print("reason:", reason)
import synthgen.models, synthgen.diffusion, synthgen.labels, synthgen.images, synthgen.training
from diffusers import AutoencoderKL, UNet2DModel, DiffusionPipeline
print("half imported:", [m for m in sys.modules if m.startswith("torchvision.")])
print("works")
"""

# No finder knows it, as if it were not installed.
ABSENT = """
from importlib.machinery import PathFinder
def find_spec(name, path=None, target=None, real=PathFinder.find_spec):
    return None if name.partition(".")[0] == "torchvision" else real(name, path, target)
PathFinder.find_spec = staticmethod(find_spec)
"""


def probe(tmp_path, files=None, before="", after=PROBE):
    for name, text in (files or {}).items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", before + after],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_broken_torchvision_is_hidden(tmp_path):
    out = probe(
        tmp_path,
        {
            "torchvision/__init__.py": "from torchvision import part, ops",
            "torchvision/part.py": "",
            "torchvision/ops.py": 'raise RuntimeError("operator torchvision::nms is\\nmissing")',
        },
    )
    assert "reason: RuntimeError: operator torchvision::nms is\n" in out
    assert "half imported: []" in out
    assert out.endswith("works\n")


@pytest.mark.parametrize("error", ["OSError('libcudart.so')", "ImportError('x')", "ValueError()"])
def test_whatever_breaks_it_is_one_line(tmp_path, error):
    out = probe(
        tmp_path,
        {"torchvision/__init__.py": f"raise {error}"},
        after=PROBE.partition("import synthgen.models")[0],
    )
    assert out.startswith(f"reason: {error.partition('(')[0]}: ")


def test_absent_torchvision_is_no_problem(tmp_path):
    out = probe(tmp_path, before=ABSENT)
    assert "reason: None" in out
    assert out.endswith("works\n")


def test_working_torchvision_is_left_alone(tmp_path):
    check = PROBE.partition("import synthgen.models")[0] + "import torchvision\nprint('works')"
    out = probe(tmp_path, {"torchvision/__init__.py": "__version__ = '1'"}, after=check)
    assert out == "reason: None\nworks\n"
