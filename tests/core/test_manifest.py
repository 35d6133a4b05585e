import errno
import os
from dataclasses import replace

import pytest

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.manifest import Manifest, canonical_json, digest, file_digest, write_atomic
from synthgen.core.schema import BRAIN9

MANIFEST = Manifest(
    kind="labels",
    identity={"seed": 0, "model": "abc", "condition": {"wmh": [0.01, 0.05]}},
    n=64,
    schema=BRAIN9.to_json(),
    subjects=["sub-01"],
)


def test_round_trip(tmp_path):
    MANIFEST.write(tmp_path)
    assert Manifest.read(tmp_path) == MANIFEST
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_same_identity_passes_whatever_n_and_provenance(tmp_path):
    MANIFEST.require_same_identity(replace(MANIFEST, n=128, provenance={}), tmp_path)


def test_other_identity_names_every_differing_field(tmp_path):
    asked = replace(MANIFEST, identity={**MANIFEST.identity, "seed": 1, "steps": 20})
    with pytest.raises(RequestError) as caught:
        MANIFEST.require_same_identity(asked, tmp_path)
    message = str(caught.value)
    assert "seed: there 0, asked 1" in message
    assert "steps: there None, asked 20" in message
    assert "model" not in message
    assert "\n" not in message
    assert str(tmp_path) in message


def test_other_kind_is_refused(tmp_path):
    with pytest.raises(RequestError, match="kind: there 'labels', asked 'images'"):
        MANIFEST.require_same_identity(replace(MANIFEST, kind="images"), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"{", "not readable as JSON"),
        (b"\xff", "not readable as JSON"),
        (b"[]", "expected format"),
        (b'{"format": "other/1"}', "got 'other/1'"),
        (b'{"format": "synthgen-dataset/1", "kind": "labels"}', "not a dataset manifest"),
    ],
)
def test_foreign_folder_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(StoreError, match=message) as caught:
        Manifest.read(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_digest_ignores_key_order():
    assert canonical_json({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_file_digest_is_the_sha256_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    # FIPS 180-4, the example for "abc".
    assert file_digest(tmp_path / "x").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_full_disk_keeps_the_old_file_and_leaves_no_temporary(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    write_atomic(path, b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"manifest\.json: could not be written \(No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_missing_folder_is_one_clear_error(tmp_path):
    with pytest.raises(StoreError, match="could not be written"):
        write_atomic(tmp_path / "absent" / "x", b"")
