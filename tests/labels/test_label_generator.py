import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import SHAPE, SUBJECTS, write_label_model

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.manifest import sealed
from synthgen.core.rng import SampleKey, Stream
from synthgen.core.schema import BRAIN9
from synthgen.labels import LabelCondition, load_label_generator
from synthgen.labels.diffusion import LabelDiffusionPipeline

KEYS = [SampleKey(0, i) for i in range(4)]
CONDITIONS = [LabelCondition({"wmh": 0.02 * i}, 0.2 * i) for i in range(4)]
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_label_model(tmp_path_factory.mktemp("model") / "labels")


@pytest.fixture(scope="module")
def generator(model):
    return load_label_generator(model)


@pytest.fixture(scope="module")
def maps(generator):
    return generator.sample(KEYS, CONDITIONS)


@pytest.fixture
def copy(model, tmp_path):
    return shutil.copytree(model, tmp_path / "copy")


def test_maps_are_partial_volumes(generator, maps):
    assert maps.shape == (4, 9, *SHAPE)
    assert maps.dtype == torch.float32
    assert maps.device.type == "cpu"
    assert maps.min() >= 0
    assert (maps.sum(dim=1) - 1).abs().max() < 1e-5
    assert generator.schema == BRAIN9
    assert generator.shape == SHAPE
    assert generator.subjects == SUBJECTS


def test_loading_again_gives_the_same_maps(model, maps, untouched_rng):
    again = load_label_generator(model)
    assert torch.equal(again.sample(KEYS, CONDITIONS), maps)
    assert torch.equal(again.sample(KEYS, CONDITIONS), maps)


def test_saved_pipeline_settings_return(model, maps):
    pipeline = LabelDiffusionPipeline.from_pretrained(model)
    assert tuple(pipeline.config.latent_size) == (SHAPE[0] // 4, SHAPE[1] // 4)
    assert (pipeline.config.sampler, pipeline.config.num_inference_steps) == ("dpm", 4)
    assert pipeline.config.head == "softmax"


def test_a_sample_does_not_depend_on_its_neighbours(generator, maps):
    """For one batch size, bit for bit (anchors.md, F2)."""
    order = [2, 0, 3, 1]
    permuted = generator.sample([KEYS[i] for i in order], [CONDITIONS[i] for i in order])
    assert torch.equal(permuted, maps[order])
    others = [SampleKey(9, 7), KEYS[1], SampleKey(9, 8), KEYS[3]]
    mixed = generator.sample(others, [CONDITIONS[0], CONDITIONS[1], CONDITIONS[0], CONDITIONS[3]])
    assert torch.equal(mixed[[1, 3]], maps[[1, 3]])


def test_another_batch_size_changes_the_last_bits_only(generator, maps):
    alone = generator.sample(KEYS[:1], CONDITIONS[:1])
    # Measured: 4e-7 relative after 8 steps on a CPU.
    torch.testing.assert_close(alone, maps[:1], atol=1e-4, rtol=0)


def test_key_attempt_and_condition_decide_the_map(generator, maps):
    redraw = [SampleKey(0, i, attempt=1) for i in range(4)]
    assert not torch.equal(generator.sample(redraw, CONDITIONS), maps)
    moved = [LabelCondition(c.lesions, 1 - c.position) for c in CONDITIONS]
    assert not torch.equal(generator.sample(KEYS, moved), maps)


@pytest.mark.parametrize(
    "settings", [{"sampler": "ddim"}, {"steps": 3}, {"guidance": 3.0}, {"dtype": "bf16"}]
)
def test_each_setting_belongs_to_the_identity_and_changes_the_maps(
    model, generator, maps, settings
):
    other = load_label_generator(model, **settings)
    assert other.identity != generator.identity
    assert other.identity["model"] == generator.identity["model"]
    changed = other.sample(KEYS, CONDITIONS)
    assert not torch.equal(changed, maps)
    assert (changed.sum(dim=1) - 1).abs().max() < 1e-5


def test_bfloat16_stays_close(model, maps):
    half = load_label_generator(model, dtype="bf16").sample(KEYS, CONDITIONS)
    # A network in bfloat16 is off by 1 to 2 %; four steps add up.
    assert (half - maps).abs().mean() < 0.02


def test_other_weights_give_another_model_hash(generator, tmp_path):
    other = load_label_generator(write_label_model(tmp_path / "other", seed=1))
    assert other.identity["model"] != generator.identity["model"]
    same = load_label_generator(write_label_model(tmp_path / "same"))
    assert same.identity == generator.identity


def test_guidance_of_one_ignores_the_null_token(copy, maps):
    # Guidance 1 must not depend on the null token; other guidance must.
    path = copy / "condition_embedding" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    values = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))

    def run(guidance):
        pipeline = LabelDiffusionPipeline.from_pretrained(copy)
        drawn = [key.torch(Stream.NOISE) for key in KEYS]
        return pipeline(values, drawn, guidance=guidance).pv

    before = run(1.0), run(2.0)
    save_file(tensors | {"null": tensors["null"] + 5}, path)
    assert torch.equal(run(1.0), before[0])
    assert not torch.equal(run(2.0), before[1])


@pytest.mark.parametrize(
    "name",
    [
        WEIGHTS,
        "vae/config.json",
        "model_index.json",
        "schema.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(StoreError, match=rf"{name}: missing"):
        load_label_generator(copy)


@pytest.mark.parametrize("name", [WEIGHTS, "vae/config.json", "schema.json"])
def test_a_flipped_bit_is_named(copy, name):
    path = copy / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=rf"{name}: damaged"):
        load_label_generator(copy)


def test_truncated_weights_are_named(copy):
    path = copy / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StoreError, match=rf"{WEIGHTS}: damaged"):
        load_label_generator(copy)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"synthgen.json: no such file.*`synthgen train labels`"):
        load_label_generator(tmp_path)
    with pytest.raises(StoreError, match="no such file"):
        load_label_generator(tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", "expected format"),
        ('{"format": "other/9"}', "expected format 'synthgen-model/1' of kind 'labels'.*other/9"),
    ],
)
def test_foreign_details_are_refused(copy, text, message):
    (copy / "synthgen.json").write_text(text)
    with pytest.raises(StoreError, match=rf"synthgen.json.*{message}"):
        load_label_generator(copy)


def test_details_that_lack_an_entry_are_refused(copy):
    details = json.loads((copy / "synthgen.json").read_text())
    del details["condition"]["maxima"]
    (copy / "synthgen.json").write_text(json.dumps(sealed(details)))
    with pytest.raises(StoreError, match=r"synthgen.json: damaged or foreign .KeyError: 'maxima'"):
        load_label_generator(copy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "euler"}, "'euler' does not fit"),
        ({"steps": 0}, r"1 \.\. 1000, got 0"),
        ({"guidance": 0.0}, "guidance must be above 0"),
        ({"device": "cuda:77"}, "device 'cuda:77'"),
    ],
)
def test_unusable_settings_are_refused(model, settings, message):
    with pytest.raises(RequestError, match=message):
        load_label_generator(model, **settings)


def test_a_lesion_that_the_model_never_saw_is_refused(generator):
    with pytest.raises(RequestError, match="saw no 'oedema'"):
        generator.sample(KEYS[:1], [LabelCondition({"oedema": 0.1}, 0.5)])
    with pytest.raises(RequestError, match="4 keys but 1 conditions"):
        generator.sample(KEYS, CONDITIONS[:1])


def test_a_model_that_cannot_be_written_leaves_the_older_one(model, tmp_path, monkeypatch):
    folder = shutil.copytree(model, tmp_path / "labels")
    before = (folder / "synthgen.json").read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("synthgen.core.model_folder.file_digest", full)
    with pytest.raises(StoreError, match="No space left"):
        write_label_model(folder, seed=1)
    assert (folder / "synthgen.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["labels"]


def test_the_model_folder_holds_no_pickle(model):
    files = {p.suffix for p in model.rglob("*") if p.is_file()}
    assert files == {".json", ".safetensors", ".md"}
    details = json.loads((model / "synthgen.json").read_text())
    assert WEIGHTS in details["files"]
