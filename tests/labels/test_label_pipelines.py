"""Label generators of every build: planes, targets, samplers and autoencoders, saved and loaded."""

import json

import pytest
import torch
from safetensors.torch import save_file

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.manifest import sealed
from synthgen.core.rng import SampleKey
from synthgen.labels import LabelCondition, load_label_generator
from synthgen.labels.folder import write_model
from synthgen.labels.generator import DiffusionLabelGenerator
from synthgen.models.condition import coordinate_planes, num_coordinate_planes
from synthgen.models.instance_norm import with_fast_norms

SHAPE = (32, 48)
KEYS = [SampleKey(5, i) for i in range(3)]
CONDITIONS = [LabelCondition({"wmh": 0.03 * i}, 0.1 + 0.4 * i) for i in range(3)]


WARP = (
    "{rotate_deg: 5, scale: 0.1, shear: 0.03, shift_px: 4, elastic_px: 2, elastic_grid: 4, "
    "flip_probability: 0.5}"
)
BUILDS = {
    "no planes": {"diffusion__condition__coordinates": 0, "diffusion__condition__templates": 0},
    "coordinates": {"diffusion__condition__coordinates": 1, "diffusion__condition__templates": 0},
    "many coordinates": {"diffusion__condition__coordinates": 3},
    "templates": {"diffusion__condition__coordinates": 0, "diffusion__condition__templates": 5},
    "concat": {"diffusion__condition__mode": "concat"},
    "no position": {
        "diffusion__condition__position": "false",
        "diffusion__condition__templates": 0,
    },
    "flow": {"diffusion__target": "flow", "sampling__sampler": "euler"},
    "epsilon": {"diffusion__target": "epsilon", "sampling__sampler": "unipc"},
    "linear head": {
        "autoencoder__head": "linear",
        "sampling__background_threshold": 0.075,
    },
    "warp": {"sampling__warp": WARP},
    "diffusers": {"autoencoder__kind": "diffusers", "autoencoder__patch_size": 1},
    "brainspade": {"autoencoder__kind": "brainspade", "autoencoder__patch_size": 1},
    "resnet": {"diffusion__resample": "resnet"},
}


@pytest.mark.parametrize("name", BUILDS)
def test_a_model_of_each_build_samples_the_same_after_loading(
    name, label_recipe, written, build_model
):
    overrides = {key.replace("__", "."): v for key, v in BUILDS[name].items()}
    pipeline, details = build_model(label_recipe(overrides))
    generator = load_label_generator(written(**BUILDS[name]))
    pv = generator.sample(KEYS, CONDITIONS)
    assert pv.shape == (3, 9, *SHAPE)
    assert pv.min() >= 0
    assert pv.max() <= 1
    assert (pv.sum(dim=1) - 1).abs().max() < 1e-5
    assert not torch.equal(pv[0], pv[1])
    for net in (pipeline.vae, pipeline.unet):
        with_fast_norms(net).eval().to(memory_format=torch.channels_last)
    assert torch.equal(DiffusionLabelGenerator(pipeline, details).sample(KEYS, CONDITIONS), pv)


@pytest.mark.parametrize("coordinates", [0, 1, 2, 5])
def test_as_many_coordinate_planes_as_announced(coordinates, label_recipe, build_model):
    if coordinates:
        planes = coordinate_planes(torch.zeros(2, 3, 4, 6), coordinates)
        assert planes.shape == (2, num_coordinate_planes(coordinates), 4, 6)
    overrides = {"diffusion.condition.coordinates": coordinates, "diffusion.condition.templates": 0}
    pipeline, _ = build_model(label_recipe(overrides))
    assert pipeline.unet.config.in_channels == 2 + num_coordinate_planes(coordinates)


def test_coordinate_planes_are_the_place_of_each_pixel():
    planes = coordinate_planes(torch.zeros(1, 1, 3, 5), 1)[0]
    x, y = torch.linspace(-1, 1, 3), torch.linspace(-1, 1, 5)
    assert torch.equal(planes[0], x[:, None].expand(3, 5))
    assert torch.equal(planes[1], y[None].expand(3, 5))
    torch.testing.assert_close(planes[2], torch.sin(torch.pi * x)[:, None].expand(3, 5))
    torch.testing.assert_close(planes[5], torch.cos(torch.pi * y)[None].expand(3, 5))


def test_a_template_depends_on_the_position_alone(label_recipe, build_model):
    pipeline, _ = build_model(label_recipe({"diffusion.condition.coordinates": 0}))
    embed, latent = pipeline.condition_embedding, torch.zeros(3, 2, 8, 12)
    values = torch.zeros(3, embed.config.num_values)
    values[:, -1] = torch.tensor([0.0, 0.25, 1.0])
    values[1, 0] = 0.7  # a lesion changes no template
    planes = embed(latent, values, torch.ones(3)).sample[:, 2:]
    table = embed.template
    expected = torch.stack([table[0], (table[0] + table[1]) / 2, table[2]])
    torch.testing.assert_close(planes, expected)
    dropped = embed(latent, values, torch.zeros(3)).sample[:, 2:]
    torch.testing.assert_close(dropped, table.mean(dim=0).expand(3, -1, -1, -1))


@pytest.mark.parametrize(
    ("sampler", "target"),
    [
        ("dpm", "v"),
        ("ddim", "v"),
        ("unipc", "v"),
        ("ddpm", "v"),
        ("euler", "flow"),
        ("dpm", "flow"),
    ],
)
def test_neighbours_change_no_sample_whatever_the_sampler(sampler, target, written, untouched_rng):
    folder = written(
        diffusion__target=target, sampling__sampler=sampler, sampling__eta=1.0, sampling__steps=3
    )
    generator = load_label_generator(folder)
    pv = generator.sample(KEYS, CONDITIONS)
    order = [2, 0, 1]
    permuted = generator.sample([KEYS[i] for i in order], [CONDITIONS[i] for i in order])
    assert torch.equal(permuted, pv[order])
    others = [SampleKey(77, 1), KEYS[1], SampleKey(77, 2)]
    assert torch.equal(generator.sample(others, CONDITIONS)[1], pv[1])


@pytest.mark.parametrize("guidance", [0.0, -1.0, float("nan"), float("inf")])
def test_guidance_that_cannot_guide_is_refused(written, guidance):
    with pytest.raises(RequestError, match=rf"guidance must be above 0 .*, got {guidance:g}"):
        load_label_generator(written(), guidance=guidance)


@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_steps_out_of_range_are_refused(written, steps):
    with pytest.raises(RequestError, match=rf"1 \.\. 1000, got {steps}"):
        load_label_generator(written(), steps=steps)


@pytest.mark.parametrize("sampler", ["ddim", "unipc", "ddpm"])
def test_a_sampler_of_another_target_is_refused(written, sampler):
    folder = written(diffusion__target="flow", sampling__sampler="euler")
    with pytest.raises(RequestError, match=f"'{sampler}' does not fit .*choose dpm, euler"):
        load_label_generator(folder, sampler=sampler)


def test_stochasticity_belongs_to_the_identity_of_ddim_alone(written):
    folder = written(sampling__eta=0.5)
    assert load_label_generator(folder, sampler="ddim").identity["eta"] == 0.5
    assert load_label_generator(folder, sampler="unipc").identity["eta"] == 0


@pytest.mark.parametrize("position", [-0.1, 1.5, float("nan")])
def test_a_position_outside_the_brain_is_refused(written, position):
    generator = load_label_generator(written())
    with pytest.raises(RequestError, match=rf"position: expected .* got {position:g}"):
        generator.sample(KEYS[:1], [LabelCondition({}, position)])


def test_unseen_lesions_are_no_part_of_the_conditions(written):
    folder = written()
    record = json.loads((folder / "synthgen.json").read_text())
    record["condition"]["maxima"][1] = 0.0
    record["position"] = [0.25, 0.75]
    (folder / "synthgen.json").write_text(json.dumps(sealed(record)))
    conditions = load_label_generator(folder).conditions
    names = record["condition"]["names"]
    assert conditions.lesions == dict.fromkeys((names[0], names[2]), (0.0, 0.1))
    assert conditions.position == (0.25, 0.75)


def test_weights_that_cannot_be_written_leave_the_older_model(
    written, label_recipe, monkeypatch, build_model
):
    """A full disk is a SafetensorError to safetensors, no OSError."""
    folder = written()
    before = (folder / "synthgen.json").read_bytes()
    pipeline, details = build_model(label_recipe())

    def save_nowhere(target):
        save_file({"weight": torch.zeros(1)}, target / "absent" / "weights.safetensors")

    monkeypatch.setattr(pipeline, "save_pretrained", save_nowhere)
    with pytest.raises(StoreError, match="could not be written"):
        write_model(pipeline, folder, details, training={})
    assert (folder / "synthgen.json").read_bytes() == before
    assert [p.name for p in folder.parent.iterdir()] == ["labels"]


def test_the_warp_belongs_to_the_key_and_leaves_the_rest_of_the_sample(written):
    plain, warped = written(), written(sampling__warp=WARP)
    maps, moved, again, alone = (
        load_label_generator(folder).sample(keys, conditions)
        for folder, keys, conditions in (
            (plain, KEYS, CONDITIONS),
            (warped, KEYS, CONDITIONS),
            (warped, KEYS, CONDITIONS),
            (warped, KEYS[1:2], CONDITIONS[1:2]),
        )
    )
    assert torch.equal(moved, again)
    torch.testing.assert_close(moved[1:2], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(maps, moved)
    still = written(sampling__warp=WARP.replace("5,", "0,").replace("0.1", "0").replace("0.03", "0")
                    .replace("shift_px: 4", "shift_px: 0").replace("elastic_px: 2", "elastic_px: 0")
                    .replace("0.5}", "0}"))  # fmt: skip
    assert torch.equal(load_label_generator(still).sample(KEYS, CONDITIONS), maps)
