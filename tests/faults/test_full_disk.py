"""Full and read-only disks: one clear line, finished work stays, and the same command completes."""

import shutil

import pytest

from faults import world
from faults.disks import small_disk

DISK = 64 << 20
FREE = (0.0, 0.3, 0.8)
"""Shares of what a command writes that are free when it starts."""
FAST = ("prepare", "labels", "train labels", "export nnunet")
SLOW = (
    "train images", "train imgx", "images", "vessels", "angiograms", "volumes", "export nifti",
    "export hf", "styles add", "preview", "segment", "evaluate overview", "evaluate segmentation",
    "redraw", "benchmark",
)  # fmt: skip


@pytest.fixture
def disk(tmp_path):
    try:
        with small_disk(tmp_path / "disk", DISK) as mounted:
            yield mounted
    except PermissionError as error:
        pytest.skip(str(error))


def quiet_run(driver, disk, argv):
    """Return the files of a run with room, those of a second one, and the bytes they take."""
    made = []
    for name in ("first", "second"):
        folder = disk.folder / name
        folder.mkdir()
        before = disk.free
        driver.complete(*argv, cwd=folder)
        made.append(world.files(folder))
        used = before - disk.free
        shutil.rmtree(folder)
    # Reports tell the time, logs the seconds.
    return {
        name: data if made[1].get(name) == data else None for name, data in made[0].items()
    }, used


def require_one_line(done):
    line = done.err.splitlines()[-1]
    assert done.code == 3, done.err
    assert line.startswith("synthgen: "), done.err
    assert "Traceback" not in done.err
    assert not done.timed_out
    return line


def require_recovery(driver, disk, argv):
    quiet, used = quiet_run(driver, disk, argv)
    for share in FREE:
        folder = disk.folder / f"free-{share}"
        folder.mkdir()
        disk.leave(share * used)
        line = require_one_line(driver.run(*argv, cwd=folder))
        assert "No space left on device" in line or "are free there" in line
        assert "free space" in line or "needs more space" in line, line
        finished = world.files(folder)
        assert all(
            quiet[name] in (data, None)
            for name, data in finished.items()
            if name.endswith((".h5", ".png", ".parquet", ".nii.gz"))
            and not world.is_passing(folder / name)
        )
        disk.empty()
        driver.complete(*argv, cwd=folder)
        found = world.files(folder)
        assert sorted(found) == sorted(quiet)
        assert [name for name, data in quiet.items() if data not in (found[name], None)] == []
        shutil.rmtree(folder)


@pytest.mark.parametrize("command", FAST)
def test_a_full_disk_is_one_line_and_the_command_can_be_repeated(driver, tiny, disk, command):
    require_recovery(driver, disk, world.writers(tiny)[command])


@pytest.mark.slow
@pytest.mark.parametrize("command", SLOW)
def test_no_command_is_harmed_by_a_full_disk(driver, whole, disk, command):
    require_recovery(driver, disk, world.writers(whole)[command])


@pytest.mark.parametrize("command", ["labels", "preview"])
def test_a_read_only_folder_is_one_line(driver, tiny, disk, command):
    argv = world.writers(tiny)[command]
    with disk.read_only():
        line = require_one_line(driver.run(*argv, cwd=disk.folder))
        assert "Read-only file system" in line
    assert world.files(disk.folder) == {}
    driver.complete(*argv, cwd=disk.folder)


@pytest.mark.slow
@pytest.mark.parametrize("command", [*FAST, *SLOW])
def test_no_command_is_harmed_by_a_read_only_folder(driver, whole, disk, command):
    with disk.read_only():
        line = require_one_line(driver.run(*world.writers(whole)[command], cwd=disk.folder))
        assert "Read-only file system" in line


@pytest.mark.parametrize("command", ["labels", "prepare"])
def test_a_limit_of_file_size_is_one_line(driver, tiny, tmp_path, command):
    """Where nothing can be mounted: what every write meets on a full disk, a shard meets here."""
    argv = world.writers(tiny)[command]
    line = require_one_line(driver.run(*argv, cwd=tmp_path, limit_bytes=4096))
    assert "File too large" in line
    driver.complete(*argv, cwd=tmp_path)
