"""A history of generated images for discriminators (Shrivastava et al. 2017, arXiv:1612.07828)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ImagePool(nn.Module):
    """The fakes that a discriminator sees: half current ones, half older ones from a pool.

    Until the pool is full, every image is kept and returned. Then each image is, with odds 1/2,
    returned, or swapped for one of the pool, which is returned instead. The pool is made of
    buffers, so a checkpoint holds it.

    Args:
        shape: size (X, Y) of the images.
        size: images in the pool (50 in DARL and CycleGAN).

    Examples:
        >>> pool = ImagePool((8, 8), size=2)
        >>> pool.exchange(torch.zeros(4, 1, 8, 8), torch.Generator()).shape
        torch.Size([4, 1, 8, 8])
    """

    images: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, int], size: int = 50) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, 1, *shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def exchange(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return as many images as came, without gradient, and keep some of those that came.

        Args:
            images: `(B, 1, X, Y)`, current fakes.
            generator: CPU generator; two draws an image, whether the pool is full or not.
        """
        size, count = len(self.images), int(self.count)
        current = torch.rand(len(images), generator=generator) < 0.5
        places = torch.randint(size, (len(images),), generator=generator)
        shown = images.detach().to(self.images.dtype).clone()
        for number, place in enumerate(places.tolist()):
            if count < size:
                self.images[count] = shown[number]
                count += 1
            elif not current[number]:
                old = self.images[place].clone()
                self.images[place] = shown[number]
                shown[number] = old
        self.count.fill_(count)
        return shown
