"""Styles fitted on own images: written, bound to their model, painted, part of the identity."""

import json

import numpy as np
import phantoms
import pytest
import torch
from safetensors.torch import save
from tiny_models import SHAPE, write_image_model

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.manifest import Manifest
from synthgen.core.rng import SampleKey
from synthgen.core.schema import BRAIN9
from synthgen.generate import GenerationSettings, ImageJob
from synthgen.images import Style, load_image_generator
from synthgen.images.spade import SpadePipeline
from synthgen.images.workspace_styles import FORMAT, add_style, read_style

KEYS = [SampleKey(3, index) for index in range(2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_image_model(tmp_path_factory.mktemp("model") / "images")


@pytest.fixture
def pipeline(model):
    return SpadePipeline.load(model)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return [
        phantoms.save(folder / f"sub-0{i}_FLAIR.nii.gz", phantoms.image(levels=(0.1, 0.2 * i, 0.5)))
        for i in (1, 2)
    ]


@pytest.fixture
def added(pipeline, images, tmp_path):
    return add_style(tmp_path / "styles", pipeline, "mine_flair", images)


@pytest.fixture
def pv():
    maps = torch.zeros(2, 9, *SHAPE)
    maps[:, 0] = 1
    maps[:, 0, 10:50, 20:80], maps[:, 3, 10:50, 20:80] = 0.2, 0.8
    return maps


def path_of(tmp_path, name="mine_flair"):
    return tmp_path / "styles" / f"{name}.safetensors"


def job(generator, *styles):
    settings = GenerationSettings(batch_size=2, shard_size=2)
    return ImageJob(generator, styles, 2, lambda _: {}, "digest", ("position",), settings=settings)


def test_a_style_is_the_gaussian_of_its_images_codes(added, pipeline, images, tmp_path):
    assert added.style.name == "mine_flair"
    assert added.style.source == "fitted"
    assert added.style.subjects == ("mine/sub-01", "mine/sub-02")
    assert added.num_images == 2
    assert added.num_slices == 2 * 14  # of 20: the three at either end show less than half
    assert added.model == pipeline.digest
    alone = [
        add_style(tmp_path / "alone", pipeline, f"m{i}_flair", [path]).mean
        for i, path in enumerate(images)
    ]
    assert not torch.equal(*alone)
    torch.testing.assert_close(added.mean, (alone[0] + alone[1]) / 2)
    spread = added.factor @ added.factor.T
    assert torch.linalg.eigvalsh(spread).min() > 0


def test_the_same_images_give_the_same_bytes_in_any_order(added, pipeline, images, tmp_path):
    before = path_of(tmp_path).read_bytes()
    add_style(tmp_path / "styles", pipeline, "mine_flair", images[::-1], force=True)
    assert path_of(tmp_path).read_bytes() == before
    assert len(before) < 4096
    again = read_style(path_of(tmp_path))
    assert again.style == added.style
    assert torch.equal(again.mean, added.mean)
    assert torch.equal(again.factor, added.factor)


def test_a_style_that_is_there_is_replaced_only_by_force(added, pipeline, images, tmp_path):
    before = path_of(tmp_path).read_bytes()
    with pytest.raises(RequestError, match=r"mine_flair.safetensors: there is .*--force"):
        add_style(tmp_path / "styles", pipeline, "mine_flair", images[:1])
    assert path_of(tmp_path).read_bytes() == before
    other = add_style(tmp_path / "styles", pipeline, "mine_flair", images[:1], force=True)
    assert other.style.digest != added.style.digest
    assert [path.name for path in path_of(tmp_path).parent.iterdir()] == ["mine_flair.safetensors"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine_pd", "knows no modality 'pd'; there are flair, t1$"),
        ("flair", "expected a style name DATASET_MODALITY.*got 'flair'"),
        ("Mine_flair", "got 'Mine_flair'"),
        ("../x_flair", "got '../x_flair'"),
        ("a_flair", "'a_flair' was fitted in the training of the model itself"),
    ],
)
def test_wrong_names_are_refused(pipeline, images, tmp_path, name, message):
    with pytest.raises(RequestError, match=message):
        add_style(tmp_path / "styles", pipeline, name, images)
    assert not (tmp_path / "styles").exists()


def test_painting_in_a_workspace_style(model, added, pv, tmp_path):
    generator = load_image_generator(model, styles=[path_of(tmp_path)])
    assert [style.name for style in generator.styles] == [
        "a_t1",
        "a_flair",
        "b_flair",
        "mine_flair",
    ]
    assert generator.styles[-1] == added.style
    plain = load_image_generator(model)
    assert generator.identity == plain.identity
    both = generator.render(pv, ["mine_flair", "a_t1"], KEYS)
    assert torch.equal(both[:, 1:], plain.render(pv, ["a_t1"], KEYS))
    assert not torch.equal(both[:, 0], both[:, 1])
    with pytest.raises(RequestError, match="unknown style 'mine_flair'"):
        plain.render(pv, ["mine_flair"], KEYS)


def test_a_workspace_style_replaces_the_simulated_one(model, pipeline, images, pv, tmp_path):
    add_style(tmp_path / "styles", pipeline, "b_flair", images)
    generator = load_image_generator(model, styles=[path_of(tmp_path, "b_flair")])
    assert [style.name for style in generator.styles] == ["a_t1", "a_flair", "b_flair"]
    assert generator.styles[2].source == "fitted"
    assert pipeline.styles[2].source == "simulated"
    changed = generator.render(pv, ["b_flair"], KEYS)
    assert not torch.equal(changed, pipeline.render(pv, ["b_flair"], KEYS))
    # It stays replaceable: what is fitted in the bank is another matter.
    add_style(tmp_path / "styles", generator, "b_flair", images[:1], force=True)


def test_a_style_of_another_model_is_refused(added, images, tmp_path):
    other = write_image_model(tmp_path / "other", seed=1)
    with pytest.raises(RequestError, match=r"'mine_flair' was encoded by another.*encode it again"):
        load_image_generator(other, styles=[path_of(tmp_path)])


def test_styles_asked_for_belong_to_identity_and_subjects(model, added, tmp_path):
    generator = load_image_generator(model, styles=[path_of(tmp_path)])
    plain = load_image_generator(model)
    assert job(generator, "a_t1").identity == job(plain, "a_t1").identity
    assert job(generator, "a_t1").subjects == list(plain.subjects)
    identity = job(generator, "a_t1", "mine_flair").identity
    assert identity["workspace_styles"] == {"mine_flair": added.style.digest}
    assert {"mine/sub-01", "a/sub-02"} <= set(job(generator, "mine_flair").subjects)
    Manifest("images", identity, 2, BRAIN9.to_json()).write(tmp_path)
    assert Manifest.read(tmp_path).identity == identity


def test_damaged_and_foreign_style_files_are_named(added, tmp_path):
    path = path_of(tmp_path)
    raw = path.read_bytes()
    header = json.dumps({"name": "mine_flair"})
    nothing = {"mean": torch.full((4,), np.nan), "factor": torch.zeros(4, 4)}
    for content in (
        b"",
        raw[:-1],
        raw[:40],
        b"{}" * 40,
        save(nothing),
        save(nothing, {FORMAT: header}),
    ):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"mine_flair.safetensors: not a style.*add it again"):
            read_style(path)
    path.write_bytes(raw)
    renamed = path.rename(path.with_name("yours_flair.safetensors"))
    with pytest.raises(StoreError, match="it holds the style 'mine_flair'"):
        read_style(renamed)
    with pytest.raises(StoreError, match=r"absent.safetensors"):
        read_style(tmp_path / "absent.safetensors")


def test_a_style_without_a_file_has_no_digest():
    assert Style("a_t1", "a", "t1", "fitted").digest == ""
