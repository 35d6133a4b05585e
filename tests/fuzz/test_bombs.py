"""Absurd headers, decompression bombs, links out of a file, pipes: refused before believed."""

import sys

import numpy as np
import pytest
from fuzz_bombs import BOMBS, nifti, nifti_header
from fuzz_readers import outcome
from PIL import Image

from synthgen.data.nifti import read_image, read_labels, read_maps
from synthgen.data.picture_files import LARGEST_SIDE, read_picture

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")


@pytest.mark.parametrize("name", BOMBS)
def test_what_claims_too_much_is_refused_in_one_line(name, tmp_path, bounded):
    folder = tmp_path / "in"
    folder.mkdir()
    assert outcome(lambda: BOMBS[name](folder), folder).endswith("Error")


@pytest.mark.slow
@pytest.mark.parametrize("colour", [0, 1])
def test_the_largest_picture_fits_into_the_memory(tmp_path, colour, bounded):
    side = LARGEST_SIDE
    Image.new("RGB", (side, side), (colour, 0, 0)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png", colour=True).grey.shape == (side, side)


@pytest.mark.slow
@pytest.mark.parametrize("read", [read_maps, read_labels, read_image])
@pytest.mark.parametrize("flipped", [1, -1])
def test_the_largest_volume_that_packs_well_fits_into_the_memory(tmp_path, read, flipped, bounded):
    head = nifti_header((512, 512, 256), srow_x=np.array([flipped, 0, 0, 0]))
    folder = tmp_path / "in"
    folder.mkdir()
    # One value everywhere is no image, and no label map unless one says so.
    expected = "read" if read is read_maps else "StoreError"
    assert outcome(lambda: nifti(head, 2**26, read)(folder), folder) == expected
