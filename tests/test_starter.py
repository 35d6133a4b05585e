"""Shipped models: found, or absent; packed in bfloat16, loaded in float32."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import SHAPE, SUBJECTS, write_image_model, write_label_model

from synthgen import starter
from synthgen.core.errors import RequestError, StoreError
from synthgen.core.model_folder import read_model_folder
from synthgen.core.rng import SampleKey
from synthgen.images.spade import SpadePipeline
from synthgen.labels import LabelCondition, load_label_generator
from synthgen.labels.generator import DiffusionLabelGenerator
from synthgen.starter import pack
from synthgen.starter.__main__ import main
from synthgen.starter.pack import MAX_BYTES, pack_model

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_label_model(root / "labels")
    write_image_model(root / "images")
    (root / "about.md").write_text("## Licences\nCC BY.\n")
    for kind in ("labels", "images"):
        pack_model(root / kind, root / "packed" / kind, root / "about.md")
    return root


def test_what_ships_is_found_and_absence_is_none(monkeypatch, models, tmp_path):
    monkeypatch.setattr(starter, "FOLDER", models / "packed")
    assert starter.starter_folder("labels") == models / "packed" / "labels"
    assert starter.starter_folder("angiograms") is None
    assert starter.starter_names() == ["images", "labels"]
    monkeypatch.setattr(starter, "FOLDER", tmp_path)
    assert starter.starter_folder("labels") is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [("labels", "labels"), ("labels_fast", "labels"), ("images", "images"), ("angiograms",) * 2],
)
def test_what_ships_here_is_whole_and_small(name, kind):
    """Of this checkout: nothing, or a model that passes every check."""
    folder = starter.starter_folder(name)
    if folder is not None:
        model = read_model_folder(folder, kind)
        assert model.record["subjects"]
        assert max((folder / name).stat().st_size for name in model.files) <= MAX_BYTES


@pytest.mark.parametrize(("name", "calls"), [("labels", 20), ("labels_fast", 4)])
def test_what_ships_here_asks_its_network_once_a_step(name, calls):
    folder = starter.starter_folder(name)
    if folder is not None:
        assert DiffusionLabelGenerator.load(folder).network_calls == calls


@pytest.mark.parametrize("kind", ["labels", "images"])
def test_packing_keeps_all_but_the_precision_of_the_weights(models, kind):
    before, after = (read_model_folder(root / kind, kind) for root in (models, models / "packed"))
    changed = {name for name in after.files if after.files[name] != before.files[name]}
    assert changed == {n for n in after.files if n.endswith(".safetensors") and "bank" not in n}
    assert set(after.files) == set(before.files)
    same = ("subjects", "training", "kind", "format")
    assert {k: after.record[k] for k in same} == {k: before.record[k] for k in same}
    cards = [(root / kind / "card.md").read_text() for root in (models, models / "packed")]
    assert cards[1] == cards[0].rstrip() + "\n\n## Licences\nCC BY.\n"
    for name in changed:
        old = load_file(models / kind / name)
        for key, tensor in load_file(models / "packed" / kind / name).items():
            assert tensor.dtype == torch.bfloat16
            assert torch.equal(tensor, old[key].bfloat16())


def test_the_style_bank_and_the_template_table_stay_exact(models, tmp_path):
    bank = load_file(models / "packed" / "images" / "style_bank" / WEIGHTS)
    assert {tensor.dtype for tensor in bank.values()} == {torch.float32}
    pack._pack_tensors(_table(tmp_path / "table.safetensors"), tmp_path / "packed.safetensors")
    packed = load_file(tmp_path / "packed.safetensors")
    dtypes = {name: tensor.dtype for name, tensor in packed.items()}
    assert dtypes == {"template": torch.float32, "w": torch.bfloat16, "count": torch.int64}


def _table(path):
    tensors = {"template": torch.rand(3), "w": torch.rand(3), "count": torch.arange(3)}
    pack.save_file(tensors, path)
    return path


def test_packed_models_load_in_float32_and_work(models):
    pipeline = SpadePipeline.load(models / "packed" / "images")
    networks = (pipeline.generator, pipeline.style_encoder, pipeline.style_bank)
    assert {t.dtype for net in networks for t in net.state_dict().values()} == {torch.float32}
    pv = torch.zeros(1, 9, *SHAPE)
    pv[:, 3] = 1
    plain = SpadePipeline.load(models / "images")
    images = [p.render(pv, ["a_t1"], [SampleKey(0, 0)]) for p in (plain, pipeline)]
    # Weights keep 8 bits: 0.4 % a rounding.
    assert 0 < (images[0] - images[1]).abs().max() < 0.05
    generator = load_label_generator(models / "packed" / "labels")
    networks = (generator._pipeline.unet, generator._pipeline.vae)
    assert {t.dtype for net in networks for t in net.state_dict().values()} == {torch.float32}
    maps = generator.sample([SampleKey(0, 0)], [LabelCondition({}, 0.5)])
    assert maps.shape == (1, 9, *SHAPE)
    assert generator.subjects == SUBJECTS


def test_packing_twice_gives_the_same_files(models, tmp_path):
    pack_model(models / "images", tmp_path / "again", models / "about.md")
    files = [read_model_folder(f).files for f in (tmp_path / "again", models / "packed/images")]
    assert files[0] == files[1]


def test_a_file_that_is_too_large_is_named_and_nothing_is_written(models, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "MAX_BYTES", 2**14)
    with pytest.raises(RequestError, match=r"unet/.* MiB in bfloat16, at most 0\.015625 MiB can"):
        pack_model(models / "labels", tmp_path / "out", models / "about.md")
    assert not list(tmp_path.iterdir())


def test_a_damaged_model_is_not_packed(models, tmp_path):
    shutil.copytree(models / "images", tmp_path / "images")
    (tmp_path / "images" / "generator" / WEIGHTS).write_bytes(b"")
    with pytest.raises(StoreError, match=r"generator.*damaged"):
        pack_model(tmp_path / "images", tmp_path / "out", models / "about.md")
    with pytest.raises(StoreError, match=r"nothing.md: cannot be read \(No such file"):
        pack_model(models / "images", tmp_path / "out", tmp_path / "nothing.md")


def test_the_one_liner(models, tmp_path):
    about = str(models / "about.md")
    main([str(models / "images"), str(tmp_path / "out"), about])
    record = json.loads((tmp_path / "out" / "synthgen.json").read_text())
    assert record["kind"] == "images"
    with pytest.raises(SystemExit, match="usage: python -m"):
        main(["one"])
    with pytest.raises(SystemExit, match=r"synthgen: .*nothing.*no such file"):
        main([str(tmp_path / "nothing"), str(tmp_path / "out"), about])


def test_finding_it_needs_no_torch():
    code = "import sys, synthgen.starter; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - our own interpreter
