"""Texture energy: golden values of white noise, what it is blind to, what it leaves out."""

import math

import pytest
import torch

from synthgen.losses.texture import band_energy

SIZE = 64


def noise(seed, scale=0.2):
    return scale * torch.randn(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def tissues(*shares):
    """PV of constant shares, background first."""
    return torch.tensor(shares).view(1, -1, 1, 1).expand(1, -1, SIZE, SIZE)


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0])
def test_scaled_noise_costs_the_log_of_the_scale(factor):
    value = band_energy(factor * noise(0), noise(0), tissues(0.0, 1.0))
    assert float(value) == pytest.approx(abs(math.log(factor)), rel=0.05)


def test_other_noise_of_the_same_strength_costs_little_and_none_costs_much():
    pv = tissues(0.0, 1.0)
    assert float(band_energy(noise(1), noise(0), pv)) < 0.05
    assert float(band_energy(torch.zeros(1, 1, SIZE, SIZE), noise(0), pv)) > 1.5


def test_tissues_are_compared_one_by_one():
    """Half the picture rough, half smooth: exchanging them keeps the mean energy."""
    left = torch.zeros(1, 1, SIZE, SIZE)
    left[..., : SIZE // 2] = 1
    pv = torch.cat([torch.zeros_like(left), left, 1 - left], dim=1)
    real, exchanged = noise(0) * left, noise(1) * (1 - left)
    assert float(band_energy(noise(1) * left, real, pv)) < 0.3
    assert float(band_energy(exchanged, real, pv)) > 1.0


def test_borders_and_specks_do_not_count():
    left = torch.zeros(1, 1, SIZE, SIZE)
    left[..., : SIZE // 2] = 1
    pv = torch.cat([torch.zeros_like(left), left, 1 - left], dim=1)
    edge = noise(0).clone()
    edge[..., SIZE // 2 - 1 : SIZE // 2 + 1] = 0
    assert float(band_energy(edge, noise(0), pv)) < 0.05
    speck = tissues(0.0, 1.0, 0.0).clone()
    speck[:, :, :5, :5] = torch.tensor([0.0, 0.0, 1.0])[None, :, None, None]
    quiet = noise(0).clone()
    quiet[:, :, :5, :5] = 0
    assert float(band_energy(quiet, noise(0), speck)) < 0.05


def test_a_picture_without_brain_costs_nothing_and_gradients_reach_the_fake_alone():
    fake, real = noise(1).requires_grad_(), noise(0).requires_grad_()
    assert float(band_energy(fake, real, tissues(1.0, 0.0)).detach()) == 0
    band_energy(fake / 2, real, tissues(0.0, 1.0)).backward()
    assert real.grad is None
    # More of the same texture brings the halved fake nearer.
    assert float((fake.grad * fake.detach()).sum()) < 0
