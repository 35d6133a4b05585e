"""Images larger than a network's window, and smaller ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

_TOGETHER = 4
"""Windows that a network sees at once."""


def at_least(images: Tensor, window: Sequence[int]) -> Tensor:
    """Pad images `(B, C, *S)` with zeros at the end of each axis that is shorter than a window."""
    missing = [max(0, w - s) for w, s in zip(window, images.shape[2:], strict=True)]
    return functional.pad(images, [pad for m in reversed(missing) for pad in (0, m)])


def sliding(
    inputs: Tensor,
    window: Sequence[int],
    overlap: float,
    predictor: Callable[[Tensor], Tensor],
    *,
    together: int = _TOGETHER,
) -> Tensor:
    """Ask a network about one image, window by window.

    What windows say is averaged with Gaussian weights. Noise that stands among the input channels
    is cut like the image, so that all windows see one field of it, and whoever calls this once per
    step of a diffusion has the windows agree at every step.

    Args:
        inputs: `(1, C, *S)`, all channels that the network sees, at least as large as a window.
        window: its size.
        overlap: of neighbours, a share; the last window of an axis ends with the image.
        predictor: `(n, C, *window) -> (n, G, *window)`, float32.
        together: windows in one call, at most.

    Returns:
        `(1, G, *S)`.
    """
    if tuple(inputs.shape[2:]) == tuple(window):
        return predictor(inputs)
    from monai.inferers import sliding_window_inference  # noqa: PLC0415

    fused: Tensor = sliding_window_inference(
        inputs, tuple(window), together, predictor, overlap=overlap, mode="gaussian"
    )
    return fused
