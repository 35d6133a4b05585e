"""The model folder of the image generator: checks, round trip, rendering."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from synthgen.core.errors import RequestError, SchemaError, StoreError
from synthgen.core.rng import SampleKey, Stream
from synthgen.core.schema import BRAIN9
from synthgen.images import Style, load_image_generator
from synthgen.images.spade import SpadePipeline, SpadeRecord, _of_style
from synthgen.models.spade import SPADEGenerator
from synthgen.models.style_bank import StyleBank
from synthgen.models.style_encoder import StyleEncoder

KEYS = [SampleKey(7, i) for i in range(3)]
STYLES = [
    {"name": f"a_{modality}", "dataset": "a", "modality": modality, "source": "fitted"}
    for modality in ("t1", "t2")
]


@pytest.fixture
def pipeline():
    generator = SPADEGenerator(
        9, (32, 64), base_channels=2, latent_dim=3, hidden=4, style_in_norm=True,
        spectral_norm=False,
    )  # fmt: skip
    codes = {
        style["name"]: torch.randn(8, 3, generator=torch.Generator().manual_seed(i)) + 3 * i
        for i, style in enumerate(STYLES)
    }
    encoder = StyleEncoder(base_channels=2, latent_dim=3)
    return SpadePipeline(generator.eval(), encoder.eval(), StyleBank.from_codes(STYLES, codes))


@pytest.fixture
def grainy(pipeline):
    """The same, painting grain."""
    generator = SPADEGenerator(
        9, (32, 64), base_channels=2, latent_dim=3, hidden=4, grain_bands=2, spectral_norm=False
    )
    return SpadePipeline(generator.eval(), pipeline.style_encoder, pipeline.style_bank)


@pytest.fixture
def folder(pipeline, tmp_path):
    record = SpadeRecord(BRAIN9, ("a/s1", "a/s2"), {"steps": 3}, "# Card\n")
    pipeline.save(tmp_path / "images", record)
    return tmp_path / "images"


@pytest.fixture
def pv():
    """Three maps: white matter in the middle, a little background elsewhere."""
    maps = torch.zeros(3, 9, 32, 64)
    maps[:, 0] = 1
    for i in range(3):
        maps[i, 0, 8:24, 10 + i : 50] = 0.4
        maps[i, 3, 8:24, 10 + i : 50] = 0.6
    return maps


def test_save_and_load_render_the_same(pipeline, folder, pv):
    loaded = SpadePipeline.load(folder)
    pipeline._record = loaded.record
    first = pipeline.render(pv, ["a_t1", "a_t2"], KEYS)
    assert torch.equal(first, loaded.render(pv, ["a_t1", "a_t2"], KEYS))
    assert first.shape == (3, 2, 32, 64)
    assert first.dtype == torch.float32
    assert loaded.schema == BRAIN9
    assert loaded.subjects == ("a/s1", "a/s2")
    assert loaded.styles == tuple(Style(**style) for style in STYLES)
    assert loaded.record.training == {"steps": 3}


def test_diffusers_loads_the_folder_too(folder, pipeline):
    loaded = SpadePipeline.from_pretrained(folder)
    for (name, mine), (_, theirs) in zip(
        pipeline.generator.state_dict().items(),
        loaded.generator.state_dict().items(),
        strict=True,
    ):
        assert torch.equal(mine, theirs), name
    with pytest.raises(RequestError, match=r"SpadePipeline\.load"):
        _ = loaded.schema


def test_saving_replaces_an_older_model_whole(folder, pipeline):
    (folder / "stray.txt").write_text("from an older version")
    pipeline.save(folder, SpadeRecord(BRAIN9, ("b/s9",)))
    assert not (folder / "stray.txt").exists()
    assert SpadePipeline.load(folder).subjects == ("b/s9",)
    assert [p.name for p in folder.parent.iterdir()] == ["images"]


@pytest.mark.parametrize("load", [SpadePipeline.load, SpadePipeline.from_pretrained])
def test_a_loaded_model_saves_as_the_same_files(folder, load):
    before = SpadePipeline.load(folder)
    load(folder).save(folder.parent / "again", before.record)
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "synthgen.json":
            again = folder.parent / "again" / path.relative_to(folder)
            assert again.read_bytes() == path.read_bytes(), path.name
    assert SpadePipeline.load(folder.parent / "again").identity == before.identity


def test_weights_that_cannot_be_written_leave_the_older_model(pipeline, folder, monkeypatch):
    """A full disk is a SafetensorError to safetensors, no OSError."""

    def save_nowhere(target):
        save_file({"weight": torch.zeros(1)}, target / "absent" / "weights.safetensors")

    before = (folder / "synthgen.json").read_bytes()
    monkeypatch.setattr(pipeline, "save_pretrained", save_nowhere)
    with pytest.raises(StoreError, match="could not be written"):
        pipeline.save(folder, SpadeRecord(BRAIN9, ("b/s1",), {}, "# Card\n"))
    assert (folder / "synthgen.json").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["images"]


def test_identity_names_weights_precision_and_schema(folder):
    first = load_image_generator(folder).identity
    assert first == load_image_generator(folder).identity
    assert set(first) == {"model", "dtype", "schema"}
    assert load_image_generator(folder, dtype="bfloat16").identity["dtype"] == "bfloat16"


def test_bfloat16_is_close_to_float32(folder, pv):
    exact = SpadePipeline.load(folder).render(pv, ["a_t1"], KEYS)
    fast = SpadePipeline.load(folder, dtype="bfloat16").render(pv, ["a_t1"], KEYS)
    assert fast.dtype == torch.float32
    # bfloat16 keeps 8 bits: 0.4 % a rounding, a few dozen roundings deep.
    assert (fast - exact).abs().max() < 0.1


def test_images_are_zero_outside_the_brain_and_in_range(folder, pv):
    images = SpadePipeline.load(folder).render(pv, ["a_t1", "a_t2"], KEYS)
    outside = (pv[:, :1] > 0.5).expand_as(images)
    assert (images[outside] == 0).all()
    assert images[~outside].min() >= 0
    assert images.max() <= 1
    assert images[~outside].mean() > 0


def test_a_sample_does_not_depend_on_its_neighbours(folder, pv):
    loaded = SpadePipeline.load(folder)
    order = [2, 0, 1]
    first = loaded.render(pv, ["a_t1"], KEYS)
    second = loaded.render(pv[order], ["a_t1"], [KEYS[i] for i in order])
    assert torch.equal(first[order], second)
    # Another map and key beside it, at the same batch size, changes nothing.
    other = torch.cat([pv[:1], pv[2:].roll(3, dims=-1), pv[1:2]])
    third = loaded.render(other, ["a_t1"], [KEYS[0], SampleKey(1, 99), SampleKey(1, 98)])
    assert torch.equal(first[0], third[0])


def test_a_style_does_not_depend_on_the_others_asked_for(folder, pv):
    loaded = SpadePipeline.load(folder)
    both = loaded.render(pv, ["a_t2", "a_t1"], KEYS)
    assert torch.equal(both[:, 1:], loaded.render(pv, ["a_t1"], KEYS))
    assert not torch.equal(both[:, 0], both[:, 1])


def test_keys_decide_the_style_draw(folder, pv):
    loaded = SpadePipeline.load(folder)
    same = pv[:1].expand(2, -1, -1, -1)
    images = loaded.render(same, ["a_t1"], KEYS[:2])
    assert not torch.equal(images[0], images[1])


def test_rendering_leaves_global_generators_alone(folder, pv, untouched_rng):
    SpadePipeline.load(folder).render(pv, ["a_t1"], KEYS)


def test_bad_requests_name_what_was_asked(folder, pv):
    loaded = SpadePipeline.load(folder)
    with pytest.raises(RequestError, match=r"'oasis_flair'.*a_t1, a_t2"):
        loaded.render(pv, ["oasis_flair"], KEYS)
    with pytest.raises(RequestError, match="no style"):
        loaded.render(pv, [], KEYS)
    with pytest.raises(SchemaError, match=r"\(B, 9, 32, 64\).*\(3, 7, 32, 64\)"):
        loaded.render(pv[:, :7], ["a_t1"], KEYS)
    with pytest.raises(RequestError, match="2 for 3"):
        loaded.render(pv, ["a_t1"], KEYS[:2])


@pytest.mark.parametrize("part", ["generator", "style_encoder", "style_bank"])
def test_a_missing_weight_file_is_named(folder, part):
    weights = folder / part / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    with pytest.raises(StoreError, match=rf"{part}/diffusion_pytorch_model.*missing"):
        SpadePipeline.load(folder)


@pytest.mark.parametrize("offset", [0, 400, -1])
def test_a_changed_byte_in_a_weight_file_is_named(folder, offset):
    weights = folder / "generator" / "diffusion_pytorch_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[offset] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(StoreError, match=r"generator/diffusion_pytorch_model.*damaged"):
        SpadePipeline.load(folder)


def test_a_truncated_weight_file_is_named(folder):
    weights = folder / "style_bank" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(StoreError, match=r"style_bank/diffusion_pytorch_model.*damaged"):
        SpadePipeline.load(folder)


def test_foreign_and_broken_folders_are_refused(folder, tmp_path):
    with pytest.raises(StoreError, match=r"nothing/synthgen.json.*train images"):
        SpadePipeline.load(tmp_path / "nothing")
    record = json.loads((folder / "synthgen.json").read_text())
    (folder / "synthgen.json").write_text(json.dumps(record | {"kind": "labels"}))
    with pytest.raises(StoreError, match="kind 'images'"):
        SpadePipeline.load(folder)
    (folder / "synthgen.json").write_text("{")
    with pytest.raises(StoreError, match="JSON"):
        SpadePipeline.load(folder)


def test_grain_belongs_to_key_and_style_whatever_else_is_asked_for(grainy, pv, tmp_path):
    grainy.save(tmp_path / "grainy", SpadeRecord(BRAIN9))
    loaded = SpadePipeline.load(tmp_path / "grainy")
    both = loaded.render(pv, ["a_t1", "a_t2"], KEYS)
    torch.testing.assert_close(loaded.render(pv[1:2], ["a_t2"], KEYS[1:2]), both[1:2, 1:2])
    assert torch.equal(both, loaded.render(pv, ["a_t1", "a_t2"], KEYS))
    noise = [_of_style(KEYS[0], style).torch(Stream.TEXTURE) for style in ("a_t1", "a_t2")]
    assert not torch.equal(*(torch.randn(9, generator=draw) for draw in noise))
    others = [SampleKey(7, 9), *KEYS[1:]]
    assert not torch.equal(loaded.render(pv, ["a_t1"], others)[0], both[0, :1])
