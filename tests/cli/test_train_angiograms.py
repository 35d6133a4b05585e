"""`synthgen train angiograms`: from folders of pictures to a model folder."""

import numpy as np
import pytest
from made_up_vessels import pictures
from PIL import Image

# Masks that need no numba, whose compilation takes seconds.
SHORT = ("train.steps=2", "train.sheet_every=2", "generator.base_channels=2", "data.masks=ssvs")


@pytest.fixture
def synthgen(command_line):
    """Run the command line in this process; returns (exit code, stdout, stderr)."""

    def call(*arguments):
        return command_line(*arguments)

    return call


def write(folder, images):
    """Write pictures as PNG."""
    folder.mkdir(parents=True)
    for path, image in zip(images.files, images.images, strict=True):
        Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(folder / path.name)
    return folder


@pytest.fixture
def folders(tmp_path):
    return (
        write(tmp_path / "a", pictures(3, (48, 48), vessels=True, name="a")),
        write(tmp_path / "b", pictures(2, (48, 48), vessels=False, seed=1, name="b")),
    )


def overrides(*pairs):
    return [word for pair in pairs for word in ("-o", f"angiograms.{pair}")]


def test_a_model_is_trained_from_two_folders(synthgen, folders, tmp_path):
    angiograms, backgrounds = folders
    out = tmp_path / "models" / "angiograms"
    code, stdout, stderr = synthgen(
        "train", "angiograms", "tiny_vessels", "--data", angiograms, "--backgrounds", backgrounds,
        "--exclude", "a1", "--out", out, *overrides(*SHORT),
    )  # fmt: skip
    assert code == 0, stderr
    assert stdout == f"model: {out}\n"
    card = (out / "card.md").read_text()
    assert "plain/a0" in card
    assert "plain/a1" not in card
    assert (tmp_path / "runs" / "angiograms" / "sheets" / "step_0000002.png").is_file()


def test_a_recipe_without_the_section_and_wrong_folders_are_one_line(synthgen, folders, tmp_path):
    code, _, stderr = synthgen("train", "angiograms", "tiny", "--data", folders[0])
    assert code == 2
    assert "has no section 'angiograms'" in stderr
    code, _, stderr = synthgen("train", "angiograms", "tiny_vessels", "--data", tmp_path / "no")
    assert code == 2
    assert stderr.count("\n") == 1
    assert "no such folder" in stderr
