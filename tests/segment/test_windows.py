"""Windows: weights that sum to 1, one field of noise, and nothing that depends on their number."""

from __future__ import annotations

import pytest
import torch

from synthgen.segment.windows import at_least, sliding


@pytest.mark.parametrize("shape", [(20, 33), (9, 12, 14)])
def test_what_windows_say_of_each_place_is_averaged(shape):
    inputs = torch.rand(1, 2, *shape, generator=torch.Generator().manual_seed(0))
    window = (8,) * len(shape)
    shapes = set()

    def same(x):
        shapes.add(tuple(x.shape[1:]))
        assert len(x) <= 3
        return x

    found = sliding(inputs, window, 0.5, same, together=3)
    torch.testing.assert_close(found, inputs)
    assert shapes == {(2, *window)}


def test_ones_stay_exactly_one():
    """A perfect denoiser must give the mask exactly, through windows too."""
    mask = (torch.rand(1, 1, 30, 21, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    assert torch.equal(sliding(mask, (16, 16), 0.5, lambda x: x), mask)


def test_an_image_of_the_windows_size_is_one_window():
    inputs = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    calls = []
    sliding(inputs, (8, 8), 0.5, lambda x: calls.append(x) or x)
    assert len(calls) == 1
    assert torch.equal(calls[0], inputs)


def test_smaller_images_are_padded_at_the_end():
    image = torch.ones(1, 2, 5, 9)
    padded = at_least(image, (8, 8))
    assert padded.shape == (1, 2, 8, 9)
    assert torch.equal(padded[:, :, :5], image)
    assert not padded[:, :, 5:].any()
    assert at_least(torch.ones(1, 1, 3, 4, 9), (4, 4, 4)).shape == (1, 1, 4, 4, 9)
