"""Small real generators for tests of the generation engine: convolutions on seeded noise."""

import torch

from synthgen.core.errors import RequestError
from synthgen.core.rng import Stream
from synthgen.core.schema import BRAIN9
from synthgen.images import Style
from synthgen.labels import ConditionRange

SHAPE = (24, 32)


def seeded_conv(in_channels, out_channels, seed):
    """Return a convolution whose weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return torch.nn.Conv2d(in_channels, out_channels, 3, padding=1).requires_grad_(False)


class TinyLabels:
    """Draws label maps: noise and condition through two convolutions and a softmax."""

    def __init__(self, weights=0, schema=BRAIN9, broken_at=None):
        self.schema, self.shape = schema, SHAPE
        self.identity = {"model": f"tiny-{weights}", "steps": 2}
        self.subjects = ("a/sub-01", "a/sub-02")
        self.conditions = ConditionRange({"wmh": (0.0, 0.1)}, (0.2, 0.8))
        self.batches = []
        self._broken_at = broken_at
        self._first = seeded_conv(2, 8, weights)
        self._last = seeded_conv(8, schema.channels, weights + 1)

    def sample(self, keys, conditions):
        self.batches.append([key.index for key in keys])
        noise = torch.stack(
            [torch.randn(1, *SHAPE, generator=key.torch(Stream.NOISE)) for key in keys]
        )
        place = torch.tensor([c.position for c in conditions]).reshape(-1, 1, 1, 1)
        logits = self._last(torch.relu(self._first(torch.cat([noise, place + 0 * noise], 1))))
        pv = torch.softmax(8 * logits, 1)
        if self._broken_at in [key.index for key in keys]:
            pv[0, 0, 0, 0] = float("nan")
        return pv


class TinyImages:
    """Paints label maps: a convolution of the map, noise from the key."""

    def __init__(self, weights=0, schema=BRAIN9, offset=0.0):
        self.schema = schema
        self.styles = tuple(Style(f"a_{m}", "a", m, "fitted") for m in ("t1", "t2", "flair"))
        self.identity = {"model": f"tiny-images-{weights}"}
        self.subjects = ("b/sub-07", "a/sub-01")
        self._offset = offset
        self._conv = seeded_conv(schema.channels + 1, len(self.styles), weights)

    def render(self, pv, styles, keys):
        names = [style.name for style in self.styles]
        if any(style not in names for style in styles):
            raise RequestError(f"unknown style in {styles}")
        noise = torch.stack(
            [torch.randn(1, *pv.shape[2:], generator=key.torch(Stream.RENDER)) for key in keys]
        )
        images = torch.sigmoid(self._conv(torch.cat([pv, noise], 1)))
        images = images[:, [names.index(style) for style in styles]]
        return images.masked_fill(pv[:, :1] > 0.5, 0.0) + self._offset
