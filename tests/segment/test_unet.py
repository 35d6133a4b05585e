import json
import math

import pytest
import torch
from torch import nn

from synthgen.core.errors import RequestError
from synthgen.core.rng import SampleKey, Stream
from synthgen.core.schema import VESSEL
from synthgen.segment import unet
from synthgen.segment.crops import Augmentation, Crops, change_appearance, sampling_grids

TRAINING = unet.UNetTraining(steps=30, lr=0.02, weight_decay=0.01, clip_norm=1.0)
STRONG = Augmentation(
    mirror=0.5, rotate_deg=180.0, scale=0.2, gain=0.3, shift=0.1, gamma=0.3, blur_px=1.0, noise=0.05
)
KEY = SampleKey(0, 0)


def lines(count=6, size=48):
    """Dark lines on a bright ground, each row of pixels at its own place."""
    coverage = torch.zeros(count, size, size)
    places = torch.randint(4, size - 4, (count, 2), generator=SampleKey(0, 0).torch(Stream.TRAIN))
    for each, (x, y) in zip(coverage, places.tolist(), strict=True):
        each[x : x + 3] = 1
        each[:, y : y + 2] = 1
    return 0.7 - 0.4 * coverage, coverage


def crops(augmentation=STRONG, seed=0, **changed):
    settings = {"size": 32, "batch_size": 4, **changed}
    return Crops(*lines(), augmentation=augmentation, seed=seed, **settings)


def trained(folder, batches=None, training=TRAINING, seed=0, tile=None, identity=None):
    return unet.train(
        batches or crops(), (4, 4, 8), training, folder, schema=VESSEL, seed=seed, tile=tile,
        identity=identity or {"data": "lines"}, subjects=("one",),
    )  # fmt: skip


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]


# Loss


def test_the_loss_follows_its_formula():
    logits = torch.log(torch.tensor([[0.7, 0.3], [0.2, 0.8]]).T.reshape(1, 2, 2, 1))
    soft = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 2, 1)
    entropy = -(math.log(0.7) + math.log(0.8)) / 2
    dice = 2 * 0.8 / (1.1 + 1.0)  # of the second group; the first is background
    assert float(unet.soft_dice_ce(logits, soft)) == pytest.approx(entropy + 1 - dice, abs=1e-4)


def test_the_loss_is_least_at_the_partial_volumes_themselves():
    """A hard label cannot say 40 %: the cross-entropy is least at p = t."""
    soft = torch.full((1, 2, 4, 4), 0.4)
    soft[:, 0] = 0.6
    entropies = [
        float(torch.nn.functional.cross_entropy(torch.log(p), soft))
        for q in (0.3, 0.4, 0.5)
        for p in [torch.stack([torch.full((1, 4, 4), 1 - q), torch.full((1, 4, 4), q)], 1)]
    ]
    assert entropies[1] == min(entropies)


# Network


@pytest.mark.parametrize(("first_stride", "halvings"), [(1, 1), (2, 2)])
def test_images_of_any_size_pass(first_stride, halvings):
    network = unet.build_network((4, 8, 8), 3, first_stride=first_stride)
    logits = unet.forward(network, torch.zeros(1, 1, 13, 18), halvings)
    assert logits.shape == (1, 3, 13, 18)


def test_padding_leaves_no_trace_where_a_pixel_sees_itself_only():
    network = nn.Conv2d(1, 2, 1)
    image = torch.rand(2, 1, 13, 18, generator=KEY.torch(Stream.NOISE))
    assert torch.equal(unet.forward(network, image, 3), network(image))


# Crops


def test_crops_that_nothing_changes_are_pieces_of_the_images():
    images, coverage = lines()
    image, soft = crops(Augmentation()).batch(3)
    for one, label in zip(image[:, 0], soft[:, 1], strict=True):
        pieces = images.unfold(1, 32, 1).unfold(2, 32, 1).reshape(-1, 32, 32)
        near = (pieces - one).abs().amax((1, 2))
        assert near.min() < 1e-5
        places = coverage.unfold(1, 32, 1).unfold(2, 32, 1).reshape(-1, 32, 32)
        assert torch.allclose(places[near.argmin()], label, atol=1e-5)
    assert torch.allclose(soft.sum(1), torch.ones(4, 32, 32))


@pytest.mark.parametrize("number", range(5))
def test_mirrored_and_turned_labels_stay_with_their_images(number):
    augmentation = Augmentation(mirror=0.5, rotate_deg=180.0, scale=0.3)
    _, coverage = lines()
    pairs = Crops(
        0.5 * coverage, coverage, size=24, batch_size=4, augmentation=augmentation, seed=0
    )
    image, soft = pairs.batch(number)
    assert torch.allclose(image, 0.5 * soft[:, 1:], atol=1e-5)
    assert soft[:, 1].sum() > 24


def test_mirroring_turns_each_axis_by_itself():
    grids = [
        sampling_grids((20, 30), 8, 64, Augmentation(mirror=m), KEY.torch(Stream.AUGMENT))
        for m in (0.0, 0.5, 1.0)
    ]
    still, some, both = grids
    assert torch.allclose(both, still.flip(1).flip(2), atol=1e-6)
    kinds = {(bool(g[1, 0, 1] > g[0, 0, 1]), bool(g[0, 1, 0] > g[0, 0, 0])) for g in some}
    assert len(kinds) == 4


def test_turning_keeps_distances_in_images_that_are_not_square():
    augmentation = Augmentation(rotate_deg=180.0)
    grid = sampling_grids((20, 40), 8, 16, augmentation, KEY.torch(Stream.AUGMENT))
    pixels = (grid + 1) * torch.tensor([40, 20]) / 2
    for axis in (1, 2):
        length = pixels.diff(dim=axis).norm(dim=-1)
        assert torch.allclose(length, torch.ones_like(length), atol=1e-4)


def test_appearance_without_changes_is_the_identity():
    image = torch.rand(2, 1, 8, 8, generator=KEY.torch(Stream.NOISE))
    same = change_appearance(image, Augmentation(), KEY.torch(Stream.AUGMENT))
    assert torch.allclose(same, image, atol=1e-6)


@pytest.mark.parametrize("name", ["gain", "shift", "gamma", "blur_px", "noise"])
def test_every_change_of_appearance_changes_each_image_by_itself(name):
    one = torch.rand(1, 1, 16, 16, generator=KEY.torch(Stream.NOISE))
    image = one.expand(3, 1, 16, 16)
    limit = Augmentation(**{name: 0.8})
    changed = change_appearance(image, limit, KEY.torch(Stream.AUGMENT))
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not torch.allclose(changed[0], changed[1], atol=1e-3)
    assert not torch.allclose(changed, image, atol=1e-2)


def test_blur_keeps_a_flat_image_and_lowers_the_contrast_of_others():
    flat = torch.full((2, 1, 16, 16), 0.3)
    blur = Augmentation(blur_px=2.0)
    draws = [KEY.torch(Stream.AUGMENT) for _ in range(2)]
    assert torch.allclose(change_appearance(flat, blur, draws[0]), flat, atol=1e-5)
    image = torch.rand(2, 1, 16, 16, generator=KEY.torch(Stream.NOISE))
    assert change_appearance(image, blur, draws[1]).std() < 0.7 * image.std()


def test_a_batch_is_a_function_of_seed_and_number():
    first, again = crops().batch(7), crops().batch(7)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (crops().batch(8), crops(seed=1).batch(7)):
        assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(
    ("images", "size", "message"),
    [
        (torch.zeros(0, 8, 8), 8, r"n > 0, got \(0, 8, 8\)"),
        (torch.zeros(2, 8, 9), 8, r"\(2, 8, 9\)"),
        (torch.zeros(2, 8, 8), 16, r"16 px do not fit into images of \(8, 8\)"),
    ],
)
def test_bad_pools_are_refused(images, size, message):
    coverage = torch.zeros(len(images), 8, 8)
    with pytest.raises(RequestError, match=message):
        Crops(images, coverage, size=size, batch_size=1, augmentation=Augmentation(), seed=0)


# Training and prediction


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unet")
    return folder, trained(folder)


def test_a_toy_is_learnt_in_thirty_steps(run):
    folder, segmenter = run
    assert losses(folder)[-1] < 0.6 * losses(folder)[0]
    images, coverage = lines()
    p = segmenter.predict(images[:, None])
    found = p[:, 1] > 0.5
    dice = 2 * (found * coverage).sum() / (found.sum() + coverage.sum())
    assert dice > 0.8
    assert torch.allclose(p.sum(1), torch.ones(p.shape[0], *p.shape[2:]), atol=1e-5)
    assert segmenter.subjects == ("one",)


def test_gradients_reach_every_parameter():
    network = unet.build_network((4, 4, 8), 2, first_stride=1)
    image, soft = crops().batch(0)
    unet.soft_dice_ce(unet.forward(network, image, 1), soft).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_training_that_was_killed_goes_on_exactly(run, tmp_path, monkeypatch):
    class Dying:
        def batch(self, number):
            if number == 12:
                raise MemoryError
            return crops().batch(number)

    monkeypatch.setattr(unet, "_CHECKPOINT_EVERY", 5)
    with pytest.raises(MemoryError):
        trained(tmp_path, Dying())
    resumed = trained(tmp_path)
    folder, whole = run
    assert losses(tmp_path) == losses(folder)
    image = lines()[0][:1, None]
    assert torch.equal(resumed.predict(image), whole.predict(image))
    assert resumed.identity == whole.identity


def test_a_folder_of_another_training_is_refused(run):
    folder, _ = run
    for changed in ({"seed": 1}, {"identity": {"data": "other"}}):
        with pytest.raises(RequestError, match="another"):
            trained(folder, **changed)


def test_other_seeds_give_other_networks(run, tmp_path):
    short = unet.UNetTraining(steps=2, lr=0.02, weight_decay=0.01, clip_norm=1.0)
    one, other = (trained(tmp_path / str(seed), training=short, seed=seed) for seed in (0, 1))
    assert one.identity != other.identity
    image = lines()[0][:1, None]
    assert not torch.equal(one.predict(image), other.predict(image))


def segmenter(network, halvings=1, tile=None):
    return unet.UNetSegmenter(network, halvings, VESSEL, identity={"unet": "x"}, tile=tile)


@pytest.mark.parametrize("shape", [(40, 52), (13, 70), (16, 16)])
def test_tiles_and_whole_images_agree_where_a_pixel_sees_itself_only(shape):
    network = nn.Conv2d(1, 2, 1)
    image = torch.rand(2, 1, *shape, generator=KEY.torch(Stream.NOISE))
    whole, tiled = (segmenter(network, tile=t).predict(image) for t in (None, 16))
    assert whole.shape == (2, 2, *shape)
    assert torch.allclose(whole, tiled, atol=1e-5)


def test_an_image_does_not_depend_on_its_neighbours(run):
    _, whole = run
    images = lines()[0][:3, None]
    alone = whole.predict(images[1:2])
    assert torch.equal(whole.predict(images)[1:2], alone)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 16, 16), r"shape \(1, 3, 16, 16\)"),
        (torch.zeros(16, 16), r"shape \(16, 16\)"),
        (torch.full((1, 1, 16, 16), 200.0), r"\[200, 200\].*divide 8-bit"),
    ],
)
def test_other_images_are_refused(run, images, message):
    with pytest.raises(RequestError, match=message):
        run[1].predict(images)


def test_tiles_that_cannot_be_halved_are_refused():
    with pytest.raises(RequestError, match=r"multiple of 8.*got 20"):
        segmenter(nn.Conv2d(1, 2, 1), halvings=3, tile=20)
