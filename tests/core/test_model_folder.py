import errno
import json

import pytest

from synthgen.core.errors import StoreError
from synthgen.core.manifest import sealed
from synthgen.core.model_folder import read_model_folder, write_model_folder
from synthgen.core.schema import BRAIN9

WEIGHTS = "net/weights.safetensors"


def save(folder, weights=b"weights"):
    (folder / "net").mkdir()
    (folder / WEIGHTS).write_bytes(weights)
    (folder / "model_index.json").write_text("{}")


def write(folder, saver=save, kind="labels", **record):
    write_model_folder(folder, saver, kind=kind, schema=BRAIN9, card="# Card\n", record=record)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "model", subjects=["a/s1"], training={"steps": 3})
    return tmp_path / "model"


def bytes_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_is_written_is_read(folder, tmp_path):
    model = read_model_folder(folder, "labels")
    assert model.schema == BRAIN9
    assert model.record["subjects"] == ["a/s1"]
    assert model.record["training"] == {"steps": 3}
    assert set(model.files) == {WEIGHTS, "model_index.json", "schema.json"}
    assert (folder / "card.md").read_text() == "# Card\n"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_the_same_model_has_the_same_checksums_and_another_one_has_not(folder, tmp_path):
    write(tmp_path / "same")
    write(tmp_path / "other", lambda target: save(target, b"other"))
    files, same, other = (
        read_model_folder(path, "labels").files
        for path in (folder, tmp_path / "same", tmp_path / "other")
    )
    assert same == files
    assert {name for name in files if files[name] != other[name]} == {WEIGHTS}


def test_where_a_network_was_loaded_from_is_not_told(tmp_path):
    def saver(target):
        save(target)
        settings = {"_class_name": "Net", "_name_or_path": "/home/somebody/model", "width": 3}
        (target / "net" / "config.json").write_text(json.dumps(settings))

    write(tmp_path / "model", saver)
    read_model_folder(tmp_path / "model", "labels")
    kept = json.loads((tmp_path / "model" / "net" / "config.json").read_text())
    assert kept == {"_class_name": "Net", "width": 3}


def test_a_newer_model_replaces_the_older_one_whole(folder, tmp_path):
    def bare(target):
        (target / "model_index.json").write_text("{}")

    write(folder, bare)
    assert set(read_model_folder(folder, "labels").files) == {"model_index.json", "schema.json"}
    assert not (folder / "net").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_missing_parents_are_made(tmp_path):
    write(tmp_path / "work" / "models" / "labels")
    assert read_model_folder(tmp_path / "work" / "models" / "labels", "labels").schema == BRAIN9


def test_a_full_disk_leaves_the_older_model_and_no_rubbish(folder, tmp_path):
    before = bytes_of(folder)

    def full(target):
        save(target, b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match=r"model: the model could not be written.*No space left"):
        write(folder, full)
    assert bytes_of(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_the_older_model_and_no_rubbish(folder, tmp_path, error):
    before = bytes_of(folder)

    def interrupted(target):
        save(target, b"half")
        raise error

    with pytest.raises(error):
        write(folder, interrupted)
    assert bytes_of(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_the_older_model_comes_back_when_the_newer_one_cannot_take_its_place(
    folder, tmp_path, monkeypatch
):
    before = bytes_of(folder)
    plain = type(folder).rename

    def rename(self, target):
        if self.suffix == ".tmp":
            raise OSError(errno.EACCES, "Permission denied")
        return plain(self, target)

    monkeypatch.setattr(type(folder), "rename", rename)
    with pytest.raises(StoreError, match="Permission denied"):
        write(folder)
    assert bytes_of(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_process_left_is_named_then_cleared(folder, tmp_path):
    """Killed while it saved, or between the two renames by which a model takes its place."""
    before = bytes_of(folder)
    moved = folder.rename(tmp_path / ".model.123.old")
    (tmp_path / ".model.123.tmp").mkdir()
    with pytest.raises(StoreError, match=r"no such file.*\.model\.123\.old is an older one"):
        read_model_folder(folder, "labels")

    def fails(_target):
        assert bytes_of(folder) == before
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match="No space left"):
        write(folder, fails)
    assert bytes_of(folder) == before
    folder.rename(moved)
    write(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", [WEIGHTS, "model_index.json", "schema.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(StoreError, match=rf"{name}: missing"):
        read_model_folder(folder, "labels")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_a_damaged_weight_file_is_named(folder, damage):
    path = folder / WEIGHTS
    data = path.read_bytes()
    changed = {"truncated": data[:-1], "flipped": bytes([data[0] ^ 1]) + data[1:], "emptied": b""}
    path.write_bytes(changed[damage])
    with pytest.raises(StoreError, match=rf"{WEIGHTS}: damaged"):
        read_model_folder(folder, "labels")


def test_another_card_is_no_damage(folder):
    (folder / "card.md").write_text("# Words of mine\n")
    assert read_model_folder(folder, "labels").schema == BRAIN9


def test_a_model_of_another_kind_is_refused(folder):
    with pytest.raises(StoreError, match=r"synthgen.json: expected .* kind 'images', got .*labels"):
        read_model_folder(folder, "images")


@pytest.mark.parametrize("text", ["{", "", b"\xff\xfe"])
def test_a_record_that_is_no_json_is_refused(folder, text):
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "synthgen.json").write_bytes(data)
    with pytest.raises(StoreError, match=r"synthgen.json: not readable as JSON"):
        read_model_folder(folder, "labels")


@pytest.mark.parametrize("text", ["[]", "3", '{"kind": "labels"}'])
def test_a_record_of_another_format_is_refused(folder, text):
    (folder / "synthgen.json").write_text(text)
    with pytest.raises(StoreError, match=r"synthgen.json: expected format 'synthgen-model/1'"):
        read_model_folder(folder, "labels")


@pytest.mark.parametrize("files", [None, [], {"schema.json": "0"}])
def test_a_record_that_lists_no_files_is_refused(folder, files):
    record = json.loads((folder / "synthgen.json").read_text())
    (folder / "synthgen.json").write_text(json.dumps(sealed(record | {"files": files})))
    with pytest.raises(StoreError, match=r"synthgen.json: lists no file model_index.json"):
        read_model_folder(folder, "labels")


def test_a_folder_that_is_absent_or_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for name in ("absent", "file"):
        with pytest.raises(StoreError, match=rf"{name}/synthgen.json: no such file"):
            read_model_folder(tmp_path / name, "images")
