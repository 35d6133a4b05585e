"""`synthgen export` as a user meets it."""

import json

import pytest
from exporting import write_store

from synthgen.cli.export import Format
from synthgen.export import FORMATS


@pytest.fixture
def run(tmp_path, command_line):
    """Export a tiny store; returns (exit code, stdout, stderr)."""
    write_store(tmp_path / "store")

    def call(*arguments):
        return command_line("export", *map(str, arguments))

    return call


def test_the_formats_are_those_of_the_package():
    assert [choice.value for choice in Format] == [*FORMATS]


def test_exports_and_says_what_is_there(run, tmp_path):
    out = tmp_path / "raw"
    arguments = ("--to", "nnunet", "--out", out, "--dataset-id", 7, "--name", "Real", "--bits", 16)
    code, said, err = run(tmp_path / "store", *arguments, "--channels", "t1, flair")
    assert (code, err) == (0, "")
    assert said.startswith(f"{out / 'Dataset007_Real'}: 6 cases, 22 files, ")
    assert said.endswith("left out: 3 samples without every channel\n")
    assert (out / "Dataset007_Real" / "dataset.json").is_file()


def test_json_is_one_document(run, tmp_path):
    out = tmp_path / "bids"
    code, said, _ = run(tmp_path / "store", "--to", "nifti", "--out", out, "--json")
    told = json.loads(said)
    assert (code, told["folder"], told["to"], told["count"]) == (0, str(out), "nifti", 3)
    assert told["what"] == "subjects"
    assert told["written"] == told["files"] - 1  # the marker


def test_dry_run_writes_nothing(run, tmp_path):
    out = tmp_path / "raw"
    arguments = ("--to", "nnunet", "--channels", "t1", "--out", out, "--dry-run")
    code, said, _ = run(tmp_path / "store", *arguments)
    assert code == 0
    assert f"{out / 'Dataset901_Synthgen'}: 9 cases" in said
    assert "files: about 18\n" in said
    assert "nnU-Net's own preprocessing would add 5.1 MB or more" in said
    assert not out.exists()
    code, said, _ = run(
        tmp_path / "store", "--to", "hf", "--out", out, "--split", "val", "--dry-run", "--json"
    )
    assert json.loads(said)["count"] == 3


def test_the_ending_needs_no_dot(run, tmp_path):
    run(tmp_path / "store", "--to", "nnunet", "--out", tmp_path / "raw", "--file-ending", "nii.gz")
    assert (tmp_path / "raw/Dataset901_Synthgen/labelsTr/a_sub-1_z004_t1.nii.gz").is_file()


@pytest.mark.parametrize(
    ("arguments", "wanted", "message"),
    [
        (("--to", "nnunet", "--dataset-id", "1000"), 2, "expected 1 to 999, got 1000"),
        (("--to", "hf", "--bits", "8"), 2, "--bits means nothing to --to hf"),
        (("--to", "hf", "--split", "dev"), 2, "split must be one of"),
        (("--to", "png"), 2, "'png' is not one of"),
    ],
)
def test_bad_requests_exit_2(run, tmp_path, arguments, wanted, message):
    code, said, err = run(tmp_path / "store", "--out", tmp_path / "out", *arguments)
    assert (code, said) == (wanted, "")
    assert message in err
    assert not (tmp_path / "out").exists()


def test_bad_data_exits_3(run, tmp_path):
    (tmp_path / "store/store.h5").write_bytes(b"x" * 100)
    code, _, err = run(tmp_path / "store", "--to", "hf", "--out", tmp_path / "out")
    assert code == 3
    assert "not a readable training store" in err
    assert err.count("\n") == 1
