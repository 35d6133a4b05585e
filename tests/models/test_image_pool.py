"""The history of fakes: half current, half older, and exact after a kill."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from synthgen.models.image_pool import ImagePool


def images(first, count):
    """Images of 2 x 2 that hold their own number."""
    return (
        torch.arange(first, first + count, dtype=torch.float32)
        .view(-1, 1, 1, 1)
        .expand(-1, 1, 2, 2)
    )


def numbers(batch):
    return batch[:, 0, 0, 0].int().tolist()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.usefixtures("untouched_rng")
def test_a_pool_that_is_not_full_keeps_and_returns_what_came():
    pool = ImagePool((2, 2), size=4)
    assert numbers(pool.exchange(images(1, 3), seeded())) == [1, 2, 3]
    assert int(pool.count) == 3
    assert numbers(pool.images)[:3] == [1, 2, 3]


def test_half_of_the_images_are_current_and_half_older():
    pool, generator = ImagePool((2, 2), size=50), seeded()
    pool.exchange(images(0, 50), generator)
    current, seen = 0, []
    for step in range(1, 101):
        batch = images(50 * step, 4)
        shown = numbers(pool.exchange(batch, generator))
        current += sum(a == b for a, b in zip(shown, numbers(batch), strict=True))
        seen += shown
    # 400 draws of odds 1/2: standard deviation 10.
    assert 160 < current < 240
    assert len(seen) == len(set(seen)), "an old image leaves the pool when it is shown"


def test_nothing_is_lost_but_what_left():
    pool, generator = ImagePool((2, 2), size=3), seeded()
    shown = [n for step in range(6) for n in numbers(pool.exchange(images(3 * step, 3), generator))]
    assert sorted({*shown, *numbers(pool.images)}) == list(range(18))


def test_gradients_stop_and_the_input_stays():
    pool = ImagePool((2, 2), size=1)
    batch = images(1, 4).clone().requires_grad_()
    shown = pool.exchange(batch, seeded())
    assert not shown.requires_grad
    assert numbers(batch) == [1, 2, 3, 4]


def test_a_checkpoint_resumes_it_exactly(tmp_path):
    pool, again = ImagePool((2, 2), size=4), ImagePool((2, 2), size=4)
    for step in range(3):
        pool.exchange(images(4 * step, 3), seeded(step))
    save_file(pool.state_dict(), tmp_path / "pool.safetensors")
    again.load_state_dict(load_file(tmp_path / "pool.safetensors"))
    for step in range(3, 8):
        batch = images(4 * step, 3)
        shown = pool.exchange(batch, seeded(step))
        assert torch.equal(shown, again.exchange(batch, seeded(step)))
    assert torch.equal(pool.images, again.images)


def test_draws_do_not_depend_on_how_full_it_is():
    first, second = seeded(), seeded()
    ImagePool((2, 2), size=8).exchange(images(0, 5), first)
    full = ImagePool((2, 2), size=8)
    full.exchange(images(0, 8), seeded(1))
    full.exchange(images(0, 5), second)
    assert torch.equal(first.get_state(), second.get_state())
