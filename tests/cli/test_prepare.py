import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from typer.testing import CliRunner

from synthgen.cli import build_app
from synthgen.core.errors import LeakageError, RequestError
from synthgen.core.schema import BRAIN9
from synthgen.data.store import TrainingStore


@pytest.fixture(scope="session")
def phantoms():
    path = Path(__file__).parents[1] / "phantoms.py"
    spec = spec_from_file_location("phantoms", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path, phantoms):
    """Three label maps of 80 x 96 x 48 mm."""
    for number in range(3):
        phantoms.save_labels(tmp_path / "ds", f"sub-{number}", spacing=2.0)
    return tmp_path / "ds"


def run(*arguments):
    return CliRunner().invoke(build_app(), ["prepare", *map(str, arguments)])


def test_store_and_summary(source, tmp_path):
    done = run(source, "--out", tmp_path / "store", "--val", "sub-1,sub-2", "--step", "4")
    assert done.exit_code == 0, done.output
    store = TrainingStore.open(tmp_path / "store", BRAIN9)
    assert store.subjects("val") == ("ds/sub-1", "ds/sub-2")
    assert "3 subject(s) (1 train, 2 val, 0 test), datasets: ds" in done.stdout
    assert f"{tmp_path / 'store' / 'store.h5'}: {len(store.slices)} slices" in done.stdout
    assert "1/3 ds/sub-0" in done.stderr


def test_json_is_one_document(source, tmp_path):
    done = run(source, "--out", tmp_path / "store", "--json", "--step", "9")
    report = json.loads(done.stdout)
    assert [row["subject"] for row in report["rows"]] == ["ds/sub-0", "ds/sub-1", "ds/sub-2"]
    assert report["fingerprint"] == TrainingStore.open(tmp_path / "store").fingerprint


def test_dry_run_writes_nothing(source, tmp_path):
    done = run(source, "--out", tmp_path / "store", "--dry-run")
    assert "nothing written" in done.stdout
    assert not (tmp_path / "store").exists()


def test_subject_for_both_splits_is_refused(source):
    done = run(source, "--val", "sub-1", "--test", "ds/sub-1", "--dry-run")
    assert isinstance(done.exception, LeakageError)


def test_unknown_schema_is_refused(source):
    done = run(source, "--schema", "brain99")
    assert isinstance(done.exception, RequestError)


def test_schema_from_a_file(source, tmp_path):
    (tmp_path / "schema.json").write_text(BRAIN9.to_json())
    done = run(source, "--schema", tmp_path / "schema.json", "--dry-run")
    assert done.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(["nowhere"], 2, "nowhere: no such folder"), (["."], 3, ".: no usable NIfTI file")],
)
def test_exit_code_and_one_line(tmp_path, arguments, code, message):
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "synthgen", "prepare", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert done.stderr.startswith(f"synthgen: {message}")
    assert len(done.stderr.splitlines()) == 1
