"""The latent cache: what is kept, and which of its rows each batch takes."""

import math
from collections import Counter

import pytest
import torch

from synthgen.core.errors import RequestError, StoreError
from synthgen.data.loaders import LabelBatches
from synthgen.labels.build import build_autoencoder
from synthgen.labels.latents import (
    LatentBatches,
    LatentCache,
    encode_slices,
    load_cache,
    save_cache,
)
from synthgen.labels.train import TrainPlan, label_batches
from synthgen.runtime import build_accelerator

FIELDS = ("mu", "logvar", "fractions", "position")


def cache_of(num_rows, *, with_lesion=(), size=2):
    """Return a cache whose row i has mu = i, so that a batch tells which rows it took."""
    mu = torch.arange(num_rows).view(-1, 1, 1, 1).expand(-1, 1, size, size).half()
    fractions = torch.zeros(num_rows, 2)
    fractions[list(with_lesion), 1] = 0.01
    return LatentCache(
        mu,
        torch.full_like(mu, -2),
        fractions,
        torch.linspace(0, 1, num_rows),
        torch.zeros(num_rows),
    )


def rows_of(batch):
    return [int(v) for v in batch.z[:, 0, 0, 0]]


def test_a_saved_cache_returns_bit_for_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    mu, logvar = (torch.randn(5, 2, 4, 6, generator=generator).half() for _ in range(2))
    cache = LatentCache(
        mu, logvar, torch.rand(5, 3, generator=generator), torch.linspace(0, 1, 5), torch.rand(5)
    )
    path = tmp_path / "run" / "latents.safetensors"
    save_cache(path, cache, "identity")
    loaded = load_cache(path, "identity")
    for name in FIELDS:
        assert getattr(loaded, name).dtype == getattr(cache, name).dtype
        assert torch.equal(getattr(loaded, name), getattr(cache, name))
    assert [p.name for p in path.parent.iterdir()] == ["latents.safetensors"]


def test_a_cache_of_other_data_is_not_taken(tmp_path):
    save_cache(tmp_path / "latents", cache_of(2), "one")
    assert load_cache(tmp_path / "latents", "two") is None
    save_cache(tmp_path / "latents", cache_of(3), "two")
    assert len(load_cache(tmp_path / "latents", "two").mu) == 3
    assert load_cache(tmp_path / "latents", "one") is None


@pytest.mark.parametrize("offset", [-1, -100])
def test_a_cache_with_a_changed_byte_is_not_taken(tmp_path, caplog, offset):
    save_cache(tmp_path / "latents", cache_of(40), "one")
    raw = bytearray((tmp_path / "latents").read_bytes())
    raw[offset] ^= 1
    (tmp_path / "latents").write_bytes(raw)
    assert load_cache(tmp_path / "latents", "one") is None
    assert "damaged" in caplog.text


def test_a_cache_that_cannot_be_written_names_its_file(tmp_path):
    (tmp_path / "run").touch()  # a file where the folder should be
    with pytest.raises(StoreError, match=r"latents: could not be written"):
        save_cache(tmp_path / "run" / "latents", cache_of(2), "one")


@pytest.mark.parametrize("latents", ["posterior", "mean"])
def test_a_batch_is_a_function_of_seed_and_step(latents, untouched_rng):
    cache = cache_of(7, with_lesion=(1, 4))
    make = {"latents": latents, "lesion_share": 0.5}
    forwards, backwards = (LatentBatches(cache, 4, 3, **make) for _ in range(2))
    first = [forwards.batch(step) for step in range(6)]
    again = [backwards.batch(step) for step in reversed(range(6))][::-1]
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.z, two.z)
        assert torch.equal(one.fractions, two.fractions)
        assert torch.equal(one.position, two.position)
    other = [LatentBatches(cache, 4, 4, **make).batch(step) for step in range(6)]
    assert not all(torch.equal(a.z, b.z) for a, b in zip(first, other, strict=True))


def test_conditions_stay_with_their_latents():
    cache = cache_of(7, with_lesion=(1, 4))
    for step in range(5):
        batch = LatentBatches(cache, 4, 0, latents="mean", lesion_share=0.25).batch(step)
        rows = rows_of(batch)
        assert torch.equal(batch.fractions, cache.fractions[rows])
        assert torch.equal(batch.position, cache.position[rows])


def test_means_are_taken_exactly():
    generator = torch.Generator().manual_seed(1)
    mu = torch.randn(3, 2, 4, 4, generator=generator).half()
    cache = LatentCache(
        mu, torch.full_like(mu, 3), torch.zeros(3, 1), torch.arange(3.0), torch.zeros(3)
    )
    batch = LatentBatches(cache, 3, 0, latents="mean").batch(2)
    assert batch.z.dtype == torch.float32
    assert torch.equal(batch.z, mu[batch.position.long()].float())


def test_draws_have_the_mean_and_variance_of_each_posterior():
    mu = torch.tensor([-1.0, 0.0, 2.0]).view(3, 1, 1, 1).expand(3, 1, 64, 64).half()
    logvar = torch.tensor([-4.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 64, 64).half()
    cache = LatentCache(mu, logvar, torch.zeros(3, 1), torch.arange(3.0), torch.zeros(3))
    steps, batches = 20, LatentBatches(cache, 3, 0, latents="posterior")
    drawn = [batches.batch(step) for step in range(steps)]
    count = steps * 64 * 64
    for row, (mean, log_variance) in enumerate([(-1.0, -4.0), (0.0, 0.0), (2.0, 1.0)]):
        z = torch.cat([batch.z[batch.position == row] for batch in drawn]).double()
        assert z.numel() == count
        sigma = math.exp(0.5 * log_variance)
        # Five standard errors of a mean and of a variance of `count` normal draws.
        assert abs(float(z.mean()) - mean) < 5 * sigma / math.sqrt(count)
        assert abs(float(z.var()) / sigma**2 - 1) < 5 * math.sqrt(2 / count)


@pytest.mark.parametrize("num_rows", [3, 300])
def test_measured_scale_is_one_over_the_standard_deviation(num_rows):
    """Var(mu + sigma eps) = Var(mu) + E[sigma^2]; 300 rows are more than one chunk."""
    generator = torch.Generator().manual_seed(0)
    mu = (3 + 2 * torch.randn(num_rows, 2, 3, 4, generator=generator)).half()
    logvar = torch.randn(num_rows, 2, 3, 4, generator=generator).half()
    cache = LatentCache(
        mu, logvar, torch.zeros(num_rows, 1), torch.zeros(num_rows), torch.zeros(num_rows)
    )
    variance = float(mu.double().var(correction=0))
    noise = float(logvar.double().exp().mean())
    assert cache.measured_scale("mean") == pytest.approx(variance**-0.5, rel=1e-9)
    assert cache.measured_scale("posterior") == pytest.approx((variance + noise) ** -0.5, rel=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, 3.0, math.nan])
def test_collapsed_latents_have_no_scale(value):
    mu = torch.full((300, 2, 4, 4), value).half()
    cache = LatentCache(mu, mu, torch.zeros(300, 1), torch.zeros(300), torch.zeros(300))
    with pytest.raises(RequestError, match=r"positive standard deviation.*losses\.kl"):
        cache.measured_scale("mean")


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_lesion_share_fills_part_of_each_batch(share, expected):
    cache = cache_of(10, with_lesion=(2, 5, 7))
    batches = LatentBatches(cache, 8, 0, latents="mean", lesion_share=share)
    counts = Counter()
    for step in range(15):
        rows = rows_of(batches.batch(step))
        assert len(rows) == 8
        assert set(rows[8 - expected :]) <= {2, 5, 7}
        counts.update(rows[: 8 - expected])
    # The other places go through all rows alike: whole epochs of 10.
    assert max(counts.values(), default=0) - min(counts.values(), default=0) <= 1
    assert len(counts) == (0 if share == 1 else 10)


def test_lesion_share_without_lesions_takes_any_row():
    batches = LatentBatches(cache_of(4), 4, 0, latents="mean", lesion_share=0.5)
    assert sorted(rows_of(batches.batch(0))) == [0, 1, 2, 3]


def test_each_slice_is_encoded_as_often_as_asked_and_the_same_again(store, label_recipe):
    recipe = label_recipe()
    accelerator = build_accelerator("fp32")
    vae = build_autoencoder(recipe.labels.autoencoder, 9, 0).eval()
    plan = TrainPlan(recipe.labels, store, None, False, None)
    batches = label_batches(plan, recipe.labels.diffusion.train)
    indices = [int(i) for i in store.slice_indices("train")]
    one, two = (encode_slices(vae, batches, indices, 3, 0, accelerator) for _ in range(2))
    assert one.mu.shape == (3 * len(indices), 2, 8, 12)
    assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in FIELDS)
    copies = one.mu.unflatten(0, (3, len(indices)))
    assert not torch.equal(copies[0], copies[1])  # each copy is augmented on its own
    position = torch.as_tensor(store.slices.position[indices], dtype=torch.float32)
    assert torch.equal(one.position, position.repeat(3))


def test_unaugmented_slices_are_encoded_as_the_autoencoder_does(store, label_recipe):
    accelerator = build_accelerator("fp32")
    vae = build_autoencoder(label_recipe().labels.autoencoder, 9, 0).eval()
    batches = LabelBatches(store, "train", 2, 0, None)
    cache = encode_slices(vae, batches, [1, 3], 1, 0, accelerator)
    pv = torch.stack([torch.as_tensor(store.pv(i)) for i in (1, 3)])
    with torch.no_grad():
        posterior = vae.encode(pv).latent_dist
    # float16 keeps 11 bits.
    torch.testing.assert_close(cache.mu.float(), posterior.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(cache.logvar.float(), posterior.logvar, rtol=1e-3, atol=1e-3)
    assert (cache.fractions[:, 0] > 0).all()
