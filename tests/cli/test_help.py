"""The command line as a user meets it, in a fresh process."""

import json
import os
import signal
import subprocess
import sys
from importlib import metadata

import pytest

from synthgen import cli, torchvision_guard
from synthgen.cli import doctor
from synthgen.core.errors import RequestError, StoreError

HEAVY = ("torch", "diffusers", "monai", "accelerate", "h5py", "scipy", "matplotlib", "nibabel")


def run(*arguments, code=""):
    program = ["-c", code] if code else ["-m", "synthgen"]
    return subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, *program, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "labels", "--help"],
        ["train", "distil", "--help"],
        ["angiograms", "--help"],
        ["segment", "--help"],
        ["--version"],
    ],
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\n"
        "from synthgen.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        f"print('heavy:', [m for m in {HEAVY} if m in sys.modules])\n"
    )
    done = run(*arguments, code=code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("heavy: []")


def test_help_lists_every_command():
    out = run("--help").stdout
    commands = "demo doctor info prepare train labels images styles evaluate export verify preview"
    commands += " vessels angiograms segment"
    commands += " replay redraw benchmark"
    missing = [c for c in commands.split() if f" {c} " not in out]
    assert not missing


@pytest.mark.parametrize("arguments", [["nope"], ["train", "labels"], ["info", "nope"]])
def test_wrong_usage_exits_2(arguments):
    assert run(*arguments).returncode == 2


def test_domain_error_is_one_line_with_its_exit_code():
    done = run("train", "labels", "no-such-recipe")
    assert done.returncode == 2
    assert done.stderr.startswith("synthgen: no recipe 'no-such-recipe'")
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_bad_override_is_found_before_torch_is_loaded():
    done = run("train", "labels", "tiny", "-o", "labels.difusion.train.lr=1")
    assert done.returncode == 2
    assert "did you mean diffusion" in done.stderr


@pytest.mark.parametrize("code", [2, 3])
def test_main_maps_errors_to_exit_codes(code, monkeypatch, capsys):
    error = {2: RequestError, 3: StoreError}[code]("what came")

    def fail():
        raise error

    monkeypatch.setattr(cli, "build_app", lambda: fail)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == code
    assert capsys.readouterr().err == "synthgen: what came\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_one_line_and_its_exit_code(number, code, monkeypatch, capsys):
    before = signal.getsignal(number)
    # A shell that starts the tests in the background makes them ignore SIGINT.
    monkeypatch.setattr(signal, "SIG_IGN", None)
    monkeypatch.setattr(cli, "build_app", lambda: lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == code
    line = "synthgen: interrupted; the same command continues where it was\n"
    assert capsys.readouterr().err == line
    assert signal.getsignal(number) is before


def test_info_lists_recipes_as_json():
    done = run("info", "recipes", "--json")
    assert done.returncode == 0, done.stderr
    names = [row["recipe"] for row in json.loads(done.stdout)["recipes"]]
    assert names == [
        "benchmark",
        "brainspade2d",
        "darl",
        "darl_small",
        "hidiff",
        "hidiff_small",
        "hidiff_vessels_small",
        "imgx",
        "imgx3d_small",
        "imgx_small",
        "small",
        "starter_images",
        "starter_labels",
        "starter_labels_fast",
        "starter_labels_guidance",
        "tiny",
        "tiny_distil",
        "tiny_segmentation",
        "tiny_vessels",
    ]


def test_doctor_reports_and_exits_0(tmp_path):
    done = run("doctor", "--json", "--workspace", str(tmp_path / "not" / "there"))
    assert done.returncode == 0, done.stdout + done.stderr
    findings = {row["name"]: row for row in json.loads(done.stdout)}
    assert {"python", "torch", "torchvision", "diffusers", "disk", "recipes"} <= set(findings)
    assert findings["torch"]["state"] == "ok"
    assert not (tmp_path / "not").exists()


def test_a_broken_torchvision_is_reported_with_its_remedy(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda _: "0.28.0")
    monkeypatch.setattr(torchvision_guard, "hide_broken_torchvision", lambda: "RuntimeError: nms")
    finding = doctor._torchvision()
    assert finding.state == "note"
    assert "RuntimeError: nms" in finding.detail
    assert "from one index" in finding.remedy
