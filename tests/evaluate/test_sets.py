"""Sets of slices: the same table and pixels, wherever they come from."""

import numpy as np
import pytest
from tiny_generators import TinyImages, TinyLabels

from synthgen.core.errors import RequestError, SchemaError
from synthgen.core.rng import SampleKey
from synthgen.core.schema import BRAIN9
from synthgen.data.shards import Shards
from synthgen.data.store import StoreWriter, TrainingStore
from synthgen.evaluate.sets import (
    from_arrays,
    from_shards,
    from_store,
)
from synthgen.generate import GenerationSettings, generate_images, generate_labels
from synthgen.labels import ConditionRange

SHAPE = (8, 10)


def maps(count):
    """Hard maps, of which pixel (0, 0) tells the slice."""
    pv = np.zeros((count, 9, *SHAPE), np.float32)
    pv[:, 3] = 1
    for i in range(count):
        pv[i, :, 0, 0] = np.eye(9)[i % 9]
    return pv


@pytest.fixture
def numbered():
    images = np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1) / 10 + np.zeros((6, 1, *SHAPE))
    return from_arrays(
        maps(4),
        BRAIN9,
        images=images.astype(np.float32),
        image_slices=[0, 0, 1, 2, 3, 3],
        subject=["a/1", "a/1", "b/2", "b/3"],
        position=[0.1, 0.2, 0.3, 0.4],
        modality=["t1", "flair", "t1", "t1", "t1", "flair"],
        dataset=["a", "a", "a", "b", "b", "b"],
    )


def test_tables_and_pixels(numbered):
    assert (len(numbered), numbered.shape) == (4, SHAPE)
    assert numbered.subjects == ("a/1", "b/2", "b/3")
    assert numbered.modalities == ("flair", "t1")
    assert numbered.styles == ("a_flair", "a_t1", "b_flair", "b_t1")
    assert numbered.image_rows(modality="t1").tolist() == [0, 2, 3, 4]
    assert numbered.image_rows(style="b_flair").tolist() == [5]
    assert numbered.image_subjects() == ("a/1", "a/1", "a/1", "b/2", "b/3", "b/3")
    np.testing.assert_array_equal(numbered.pv([2, 0]), maps(4)[[2, 0]])
    np.testing.assert_allclose(numbered.image([5])[:, 0, 0, 0], [0.5])


def test_a_part_keeps_its_images_in_order(numbered):
    part = numbered.take([3, 0])
    assert part.table.subject == ("b/3", "a/1")
    np.testing.assert_array_equal(part.pv([0, 1]), maps(4)[[3, 0]])
    assert part.images.slices.tolist() == [1, 1, 0, 0]
    np.testing.assert_allclose(part.image(range(4))[:, 0, 0, 0], [0.0, 0.1, 0.4, 0.5], atol=1e-6)
    again = part.take([1])
    np.testing.assert_array_equal(again.pv([0]), maps(4)[[0]])
    assert numbered.of_subjects(["b/2", "b/3"]).table.position.tolist() == [0.3, 0.4]


def test_a_draw_follows_its_key_and_repeats_no_slice(numbered):
    drawn = numbered.sample(3, SampleKey(0, 1))
    assert len({*drawn.table.position.tolist()}) == 3
    assert (
        drawn.table.position.tolist() == numbered.sample(3, SampleKey(0, 1)).table.position.tolist()
    )
    assert numbered.sample(9, SampleKey(0, 1)) is numbered


def test_columns_that_do_not_fit_are_refused():
    with pytest.raises(SchemaError, match=r"expected PV maps \(P, 9, X, Y\), got \(2, 5, 8, 10\)"):
        from_arrays(maps(2)[:, :5], BRAIN9)
    with pytest.raises(RequestError, match="expected 2 subjects"):
        from_arrays(maps(2), BRAIN9, subject=["a/1"])


def test_a_store_gives_the_slices_of_its_splits(tmp_path):
    pv = np.rint(255 * maps(3)).astype(np.uint8)
    image = np.full((3, 1, *SHAPE), 0.5, np.float16)
    with StoreWriter(tmp_path / "store.h5", BRAIN9, SHAPE) as writer:
        for subject, split in (("a/1", "train"), ("a/2", "val")):
            first = writer.add_slices(
                subject, dataset="a", split=split, z=range(3), position=[0.2, 0.5, 0.8], pv=pv
            )
            writer.add_image(first, "t1", image)
        writer.commit()
    with TrainingStore.open(tmp_path) as store:
        held = from_store(store, ["val"])
        assert held.subjects == ("a/2",)
        assert held.styles == ("a_t1",)
        assert held.ancestors == {"a/2"}
        np.testing.assert_array_equal(held.pv([1]), maps(3)[[1]])
        np.testing.assert_allclose(held.image([0]), 0.5)
        assert len(from_store(store, ["train", "val"])) == 6
        with pytest.raises(RequestError, match="no slices in split test"):
            from_store(store, ["test"])


def test_a_generated_dataset_has_one_image_of_each_style(tmp_path):
    settings = GenerationSettings(batch_size=2, shard_size=4)
    ranges = ConditionRange({"wmh": (0.01, 0.05)}, (0.3, 0.7))
    generate_labels(TinyLabels(), ranges, 5, tmp_path / "labels", settings)
    styles = ("a_flair", "a_t1")
    generate_images(
        TinyImages(), Shards(tmp_path / "labels"), styles, tmp_path / "images", settings
    )
    shards = Shards(tmp_path / "images")
    made = from_shards(shards, ["t1", "flair"])
    assert (len(made), made.styles, made.modalities) == (5, styles, ("flair", "t1"))
    assert made.subjects == ()
    assert made.ancestors == {*shards.manifest.subjects}
    np.testing.assert_array_equal(made.pv([3])[0], shards[3].pv)
    np.testing.assert_array_equal(made.image([7])[0, 0], shards[3].images[1])
    np.testing.assert_allclose(made.table.requested[3, 0], shards[3].condition["wmh"])
    labels_only = from_shards(Shards(tmp_path / "labels"))
    assert not len(labels_only.images.slices)
