"""Fixtures of the whole suite."""

import random  # noqa: TID251 - only to see that nobody used it
import sys

import numpy as np
import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType
from recorder import Recorder

from synthgen import starter
from synthgen.cli import main
from synthgen.torchvision_guard import hide_broken_torchvision

# Test modules import diffusers above synthgen, as import sorting wants it.
hide_broken_torchvision()


@pytest.fixture(autouse=True)
def fixed_initial_weights():
    """Start every test from one state of torch's global generator: it draws initial weights."""
    torch.default_generator.manual_seed(0)


@pytest.fixture
def command_line(monkeypatch, capsys):
    """Run the command line in this process; returns (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["synthgen", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def nothing_is_shipped(monkeypatch, tmp_path):
    """Let a test use no model that this installation ships."""
    monkeypatch.setattr(starter, "FOLDER", tmp_path / "starter")


@pytest.fixture
def untouched_rng():
    """Fail a test whose code draws from a global random generator."""

    def states():
        numpy_state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002 - only read
        return (
            torch.default_generator.get_state().tolist(),
            numpy_state["key"].tolist(),
            numpy_state["pos"],
            random.getstate(),
        )

    before = states()
    yield
    assert states() == before, "a global random generator was used"


@pytest.fixture
def recorders(monkeypatch):
    """Let `trackers: [tensorboard]` make recorders; return the list of those that were made."""
    monkeypatch.setattr(Recorder, "made", [])
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TENSORBOARD])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Recorder)
    return Recorder.made
