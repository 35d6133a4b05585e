"""Style bank: a Gaussian of style codes per named style, so that generating needs no real image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from synthgen.core.errors import RequestError
from synthgen.core.model_settings import MAX_ELEMENTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STYLE_FIELDS = ("name", "dataset", "modality", "source")
"""Fields of one style's record; `source` is `fitted` or `simulated`."""

_VARIANCE_FLOOR = 1e-6


class StyleBank(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Mean and covariance of the style codes of each style.

    Args:
        styles: one record per style with `name`, `dataset`, `modality` and `source`.
        latent_dim: length Z of a code.

    Examples:
        >>> record = {"name": "a_t1", "dataset": "a", "modality": "t1", "source": "fitted"}
        >>> bank = StyleBank.from_codes([record], {"a_t1": torch.ones(5, 2)})
        >>> bank.names, bank.draw("a_t1", [torch.Generator()]).shape
        (('a_t1',), torch.Size([1, 2]))
    """

    mean: Tensor
    factor: Tensor

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, styles: Sequence[Mapping[str, str]], latent_dim: int) -> None:
        super().__init__()
        _check_records(styles)
        self.names = tuple(record["name"] for record in styles)
        """Style names in the order of the buffers."""
        count = len(styles)
        if count * latent_dim**2 > MAX_ELEMENTS:
            raise RequestError(f"style bank: {count} styles of {latent_dim} numbers are too many")
        self.register_buffer("mean", torch.zeros(count, latent_dim))
        self.register_buffer("factor", torch.zeros(count, latent_dim, latent_dim))

    @classmethod
    def from_codes(
        cls,
        styles: Sequence[Mapping[str, str]],
        codes: Mapping[str, Tensor],
        *,
        shrinkage: float | None = None,
    ) -> StyleBank:
        """Fit one Gaussian per style.

        Args:
            styles: records as in the constructor.
            codes: per style name, the codes `(n, Z)` of its images, n >= 1.
            shrinkage: share in [0, 1] of the covariance that is replaced by its mean variance
                times the identity; None takes Ledoit and Wolf's estimate (2004,
                doi:10.1016/S0047-259X(03)00096-4).

        Raises:
            RequestError: no styles, codes missing for one, of unequal width, empty or not finite.
        """
        _check_records(styles)
        missing = [record["name"] for record in styles if record["name"] not in codes]
        if missing or not styles:
            raise RequestError(f"style bank: no codes for {', '.join(missing) or 'any style'}")
        latent_dim = int(codes[styles[0]["name"]].shape[-1])
        bank: StyleBank = cls(styles=[dict(record) for record in styles], latent_dim=latent_dim)
        for row, name in enumerate(bank.names):
            mean, factor = fit_gaussian(codes[name], name, latent_dim, shrinkage)
            bank.mean[row] = mean
            bank.factor[row] = factor
        return bank

    def records(self) -> tuple[dict[str, str], ...]:
        """Return a copy of each style's record, in the order of `names`."""
        return tuple({str(k): str(v) for k, v in style.items()} for style in self.config["styles"])

    def index(self, style: str) -> int:
        """Return the row of a style.

        Raises:
            RequestError: the bank has no style of that name; the message lists the known ones.
        """
        if style not in self.names:
            known = ", ".join(self.names) or "none"
            raise RequestError(f"unknown style '{style}'; this model knows: {known}")
        return self.names.index(style)

    def draw(self, style: str, generators: Sequence[torch.Generator]) -> Tensor:
        """Return one code per generator, `(B, Z)` on the bank's device.

        Code i depends on `generators[i]` (CPU) alone, not on the batch nor on the device.
        """
        row = self.index(style)
        mean, factor = self.mean[row].cpu().float(), self.factor[row].cpu().float()
        codes = [
            mean + torch.mv(factor, torch.randn(mean.shape[0], generator=generator))
            for generator in generators
        ]
        return torch.stack(codes).to(self.mean)

    def add_style(
        self, style: Mapping[str, str], codes: Tensor, *, shrinkage: float | None = None
    ) -> StyleBank:
        """Return a new bank with one more style, fitted on `codes` `(n, Z)`.

        Raises:
            RequestError: the name is taken, or as in `from_codes`.
        """
        _check_records([*self.records(), style])
        fitted = fit_gaussian(codes, style["name"], int(self.mean.shape[1]), shrinkage)
        return self.with_gaussian(style, *fitted)

    def with_gaussian(self, style: Mapping[str, str], mean: Tensor, factor: Tensor) -> StyleBank:
        """Return a new bank with a style's Gaussian; it replaces a style of the same name.

        Args:
            style: record as in the constructor.
            mean: `(Z,)`.
            factor: `(Z, Z)`, lower Cholesky factor of the covariance.

        Raises:
            RequestError: another Z than the bank's.
        """
        latent_dim = int(self.mean.shape[1])
        if mean.shape != (latent_dim,) or factor.shape != (latent_dim, latent_dim):
            raise RequestError(
                f"style '{style['name']}': expected a mean of {latent_dim} values and a factor of "
                f"{latent_dim} x {latent_dim}, got {tuple(mean.shape)} and {tuple(factor.shape)}"
            )
        records = {record["name"]: record for record in self.records()}
        records[style["name"]] = dict(style)
        bank: StyleBank = StyleBank(styles=list(records.values()), latent_dim=latent_dim)
        count, row = len(self.names), bank.index(style["name"])
        bank.mean[:count], bank.factor[:count] = self.mean, self.factor
        bank.mean[row], bank.factor[row] = mean, factor
        bank.to(self.mean.device)
        return bank


def fit_gaussian(
    codes: Tensor, name: str, latent_dim: int, shrinkage: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return mean `(Z,)` and lower Cholesky factor `(Z, Z)` of the shrunk covariance, float32.

    Args:
        codes: `(n, Z)`, n >= 1; a single code gives the variance floor.
        name: style name for the messages.
        latent_dim: expected Z.
        shrinkage: see `StyleBank.from_codes`.
    """
    if codes.ndim != 2 or codes.shape[0] < 1 or codes.shape[1] != latent_dim:
        raise RequestError(
            f"style '{name}': expected codes of shape (n, {latent_dim}) with n >= 1, "
            f"got {tuple(codes.shape)}"
        )
    if not bool(torch.isfinite(codes).all()):
        raise RequestError(f"style '{name}': its codes are not finite")
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise RequestError(f"style '{name}': shrinkage must lie in [0, 1], got {shrinkage}")
    x = codes.detach().cpu().double()
    mean = x.mean(dim=0)
    centred = x - mean
    covariance = centred.T @ centred / x.shape[0]
    target = covariance.diagonal().mean() * torch.eye(latent_dim, dtype=torch.float64)
    share = _ledoit_wolf(centred, covariance) if shrinkage is None else shrinkage
    shrunk = (1 - share) * covariance + share * target
    shrunk += _VARIANCE_FLOOR * torch.eye(latent_dim, dtype=torch.float64)
    return mean.float(), torch.linalg.cholesky(shrunk).float()


def _ledoit_wolf(centred: Tensor, covariance: Tensor) -> float:
    """Return Ledoit and Wolf's shrinkage: min(1, mean ||x x' - S||^2 / n / ||S - mI||^2)."""
    n, width = centred.shape
    identity = torch.eye(width, dtype=centred.dtype)
    distance = (covariance - covariance.diagonal().mean() * identity).square().sum()
    # ||x x' - S||^2 summed over samples = sum ||x||^4 - n ||S||^2.
    noise = centred.square().sum(dim=1).square().sum() - n * covariance.square().sum()
    if float(distance) <= 0:
        return 1.0
    return float((noise / n**2 / distance).clamp(0.0, 1.0))


def _check_records(styles: Sequence[Mapping[str, str]]) -> None:
    for record in styles:
        if sorted(record) != sorted(STYLE_FIELDS):
            raise RequestError(
                f"style bank: a style needs exactly {', '.join(STYLE_FIELDS)}, "
                f"got {', '.join(sorted(record))}"
            )
    names = [record["name"] for record in styles]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RequestError(f"style bank: style name used twice: {', '.join(twice)}")
