import json
from dataclasses import replace

import pytest
from discs import tiny_recipe, write_disc_dataset
from exporting import write_store

from synthgen.benchmark.spec import Spec
from synthgen.core.errors import GeometryError, LeakageError, RequestError, StoreError


def test_held_out_subjects_and_shared_modalities_are_the_default(plan):
    spec, sources = plan("synthetic")
    assert spec.test == ("a/sub-3", "b/sub-1")
    assert spec.modalities == ("flair", "t1")
    assert spec.tissues == ("background", "csf", "gm", "wm")
    assert sources.synthetic.ancestors == ("a/sub-1",)
    assert spec.sources["synthetic"]["ancestors"] == ["a/sub-1"]


@pytest.mark.parametrize(
    ("test", "found"),
    [
        (("val",), ("a/sub-3",)),
        (("b/sub-1",), ("b/sub-1",)),
        (("sub-3", "test"), ("a/sub-3", "b/sub-1")),
    ],
)
def test_test_subjects_are_named_by_id_last_part_or_split(plan, test, found):
    assert plan("real", test=test)[0].test == found


def test_an_ambiguous_or_unknown_subject_is_refused(plan):
    with pytest.raises(RequestError, match=r"'sub-1' is ambiguous: one of .* a/sub-1, b/sub-1"):
        plan("real", test=("sub-1",))
    with pytest.raises(RequestError, match=r"'sub-9' is not a subject .* there are a/sub-1"):
        plan("real", test=("sub-9",))


def test_a_test_subject_that_an_ancestor_saw_is_refused(plan):
    with pytest.raises(LeakageError, match="made from the test subjects a/sub-1;"):
        plan("synthetic", test=("a/sub-1",))
    # The label maps carry their ancestors to the training-free renderer as well.
    with pytest.raises(LeakageError, match="a/sub-1"):
        plan("contrast", test=("a/sub-1", "test"))
    assert plan("real", test=("a/sub-1",))[0].test == ("a/sub-1",)


def test_a_modality_that_is_not_shared_is_refused(plan, tmp_path):
    with pytest.raises(RequestError, match="no subject with t2 images in split val or test"):
        plan("real", modalities=("t2",))
    only_t1 = write_disc_dataset(tmp_path, n=2, styles=("a_t1",))
    assert plan("synthetic", synthetic=only_t1)[0].modalities == ("t1",)
    with pytest.raises(
        RequestError, match=r"--modality flair: .* synthetic images.* they share t1"
    ):
        plan("synthetic", synthetic=only_t1, modalities=("t1", "flair"))
    assert plan("contrast", synthetic=only_t1)[0].modalities == ("flair", "t1")


def test_a_dataset_of_another_size_is_refused(plan, tmp_path):
    with pytest.raises(GeometryError, match=r"\(12, 16\) pixels"):
        plan("synthetic", real=write_store(tmp_path))


def test_a_spec_is_read_back_equal(plan, tmp_path):
    spec, _ = plan("synthetic", "hybrid", "few", "contrast", "pretrain", ratios=(0.5, 2))
    spec.write(tmp_path)
    assert Spec.read(tmp_path).to_json() == spec.to_json()
    raw = json.loads((tmp_path / "spec.json").read_text())
    assert raw["ratio"] == pytest.approx({"hybrid-0.5": 0.5, "hybrid-2": 2.0})


def test_a_damaged_spec_is_one_line(tmp_path):
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(StoreError, match=r"spec\.json: not a readable benchmark"):
        Spec.read(tmp_path)


def test_more_arms_seeds_or_another_margin_continue_a_folder(plan, tmp_path):
    first, _ = plan("real", repeats=1)
    more, _ = plan("real", "synthetic", repeats=3, margin=0.05)
    first.require_same(more, tmp_path)
    assert first.run_hash(first.arms[0], 0) == more.run_hash(more.arms[0], 0)


def test_another_benchmark_is_refused_by_name(plan, tmp_path):
    first, _ = plan("synthetic")
    for other, what in (
        (plan("real", test=("val",))[0], "test: there"),
        (plan("real", trainer="proxy")[0], "trainer: there nnunet, asked proxy"),
        (plan("real", recipe=tiny_recipe(epochs=9))[0], "the budget's numbers"),
    ):
        with pytest.raises(RequestError, match=what):
            first.require_same(other, tmp_path)
    changed = {"synthetic": {**first.sources["synthetic"], "digest": "0"}}
    with pytest.raises(RequestError, match="the synthetic data"):
        first.require_same(replace(first, sources=first.sources | changed), tmp_path)


def test_the_hash_of_a_training_follows_what_decides_it(plan):
    spec, _ = plan("synthetic")
    real, synthetic = spec.arms
    changed = {"synthetic": {**spec.sources["synthetic"], "digest": "0"}}
    other = replace(spec, sources=spec.sources | changed)
    assert spec.run_hash(real, 0) == other.run_hash(real, 0)
    assert spec.run_hash(synthetic, 0) != other.run_hash(synthetic, 0)
    assert spec.run_hash(real, 0) != spec.run_hash(real, 1)
