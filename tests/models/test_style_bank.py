import pytest
import torch

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.models.style_bank import StyleBank, fit_gaussian

LATENT = 3


def record(name):
    dataset, modality = name.split("_")
    return {"name": name, "dataset": dataset, "modality": modality, "source": "fitted"}


def codes(n, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.3, 1.0]])
    return torch.randn(n, LATENT, generator=generator) @ mixing.T + shift


def bank():
    return StyleBank.from_codes(
        [record("oasis_t1"), record("oasis_flair")],
        {"oasis_t1": codes(50), "oasis_flair": codes(40, seed=1, shift=4.0)},
    )


def keys(n, seed=0):
    return [SampleKey(seed, index).torch(Stream.STYLE) for index in range(n)]


def slow_ledoit_wolf(x):
    """Ledoit and Wolf 2004, equations for b^2 and d^2, sample by sample."""
    n, width = x.shape
    x = x - x.mean(dim=0)
    covariance = sum(torch.outer(row, row) for row in x) / n
    target = covariance.trace() / width * torch.eye(width, dtype=x.dtype)
    distance = ((covariance - target) ** 2).sum()
    noise = sum(((torch.outer(row, row) - covariance) ** 2).sum() for row in x) / n**2
    share = min(float(noise / distance), 1.0)
    return (1 - share) * covariance + share * target


@pytest.mark.parametrize("n", [2, 5, 50])
def test_automatic_shrinkage_equals_the_slow_formula(n):
    _, factor = fit_gaussian(codes(n), "s", LATENT)
    expected = slow_ledoit_wolf(codes(n).double()) + 1e-6 * torch.eye(LATENT)
    torch.testing.assert_close(factor.double() @ factor.double().T, expected, rtol=1e-5, atol=1e-6)


def test_no_shrinkage_gives_mean_and_covariance_of_the_codes():
    mean, factor = fit_gaussian(codes(50), "s", LATENT, shrinkage=0.0)
    torch.testing.assert_close(mean, codes(50).mean(dim=0), rtol=1e-5, atol=1e-6)
    # atol: the variance floor of 1e-6 on the diagonal.
    torch.testing.assert_close(
        factor @ factor.T, torch.cov(codes(50).T, correction=0), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(factor, factor.tril())


def test_full_shrinkage_gives_independent_components_of_the_mean_variance():
    _, factor = fit_gaussian(codes(50), "s", LATENT, shrinkage=1.0)
    variance = codes(50).var(dim=0, correction=0).mean()
    torch.testing.assert_close(factor, variance.sqrt() * torch.eye(LATENT), rtol=1e-4, atol=1e-5)


def test_one_code_draws_almost_itself():
    single = StyleBank.from_codes([record("a_t1")], {"a_t1": codes(1)})
    torch.testing.assert_close(
        single.draw("a_t1", keys(4)), codes(1).expand(4, -1), rtol=0, atol=0.01
    )


def test_draws_follow_the_fitted_gaussian():
    drawn = bank().draw("oasis_flair", keys(4000))
    mean, factor = fit_gaussian(codes(40, seed=1, shift=4.0), "s", LATENT)
    # Standard error of a mean over 4000 draws of deviation 2.3 is 0.04.
    torch.testing.assert_close(drawn.mean(dim=0), mean, rtol=0, atol=0.15)
    torch.testing.assert_close(torch.cov(drawn.T), factor @ factor.T, rtol=0.1, atol=0.2)


@pytest.mark.usefixtures("untouched_rng")
def test_a_draw_depends_on_its_key_alone():
    fitted = bank()
    many = fitted.draw("oasis_t1", keys(5))
    assert many.dtype == torch.float32
    assert torch.equal(fitted.draw("oasis_t1", keys(5)), many)
    assert torch.equal(fitted.draw("oasis_t1", keys(5)[3:4]), many[3:4])
    assert not torch.equal(many[0], many[1])


def test_unknown_style_names_the_known_ones():
    with pytest.raises(RequestError, match=r"'oasis_t2'.*knows: oasis_t1, oasis_flair"):
        bank().draw("oasis_t2", keys(1))


def test_save_and_load_keep_names_and_draws(tmp_path):
    fitted = bank()
    fitted.save_pretrained(tmp_path)
    loaded = StyleBank.from_pretrained(tmp_path)
    assert loaded.names == fitted.names == ("oasis_t1", "oasis_flair")
    assert loaded.records() == (record("oasis_t1"), record("oasis_flair"))
    assert torch.equal(loaded.draw("oasis_flair", keys(3)), fitted.draw("oasis_flair", keys(3)))


def test_add_style_returns_a_new_bank():
    fitted = bank()
    larger = fitted.add_style(record("ixi_pd"), codes(20, seed=2))
    assert fitted.names == ("oasis_t1", "oasis_flair")
    assert larger.names == ("oasis_t1", "oasis_flair", "ixi_pd")
    assert torch.equal(larger.draw("oasis_t1", keys(3)), fitted.draw("oasis_t1", keys(3)))
    torch.testing.assert_close(larger.mean[2], codes(20, seed=2).mean(dim=0))


def test_records_do_not_expose_the_config():
    fitted = bank()
    fitted.records()[0]["name"] = "changed"
    assert fitted.records()[0]["name"] == "oasis_t1"


@pytest.mark.parametrize(
    ("styles", "given", "message"),
    [
        ([], {}, "no codes for any style"),
        ([record("a_t1")], {}, "no codes for a_t1"),
        ([record("a_t1"), record("a_t1")], {"a_t1": codes(3)}, "used twice: a_t1"),
        ([{"name": "a_t1"}], {"a_t1": codes(3)}, "needs exactly name, dataset"),
        ([record("a_t1")], {"a_t1": codes(3)[:0]}, r"'a_t1'.*n >= 1, got \(0, 3\)"),
        ([record("a_t1")], {"a_t1": codes(3) / 0}, "'a_t1'.*not finite"),
        (
            [record("a_t1"), record("b_t1")],
            {"a_t1": codes(3), "b_t1": torch.zeros(3, 5)},
            r"'b_t1'.*\(n, 3\).*got \(3, 5\)",
        ),
    ],
)
def test_bad_codes_are_refused(styles, given, message):
    with pytest.raises(RequestError, match=message):
        StyleBank.from_codes(styles, given)


def test_style_name_that_is_taken_is_refused():
    with pytest.raises(RequestError, match="used twice: oasis_t1"):
        bank().add_style(record("oasis_t1"), codes(3))


def test_shrinkage_outside_its_range_is_refused():
    with pytest.raises(RequestError, match=r"got 1\.5"):
        fit_gaussian(codes(3), "s", LATENT, shrinkage=1.5)
