"""Names in the data become names of files, and never leave the folder that was asked for."""

import json

import pytest
from fuzz_readers import IDENTITY, make_dataset, mend_model, random_pv
from tiny_models import write_image_model, write_label_model

from synthgen.core.errors import RequestError, StoreError, SynthgenError
from synthgen.core.manifest import Manifest
from synthgen.core.schema import BRAIN9
from synthgen.core.workspace import Workspace
from synthgen.data.nnunet_raw import open_nnunet_raw
from synthgen.data.rows import open_source
from synthgen.data.shards import Shards
from synthgen.data.store import StoreWriter
from synthgen.export import export
from synthgen.export.options import ExportOptions
from synthgen.export.tree import Tree
from synthgen.images.spade import SpadePipeline
from synthgen.labels import load_label_generator

OUTSIDE = [
    "../out",
    "a/../../out",
    "/out",
    "a/b",
    "..",
    "a\0b",
    "a\\b",
    ".hidden",
    "",
    "x" * 300,
]


@pytest.mark.parametrize("style", OUTSIDE)
def test_a_dataset_whose_style_is_no_plain_name_is_refused(tmp_path, style):
    make_dataset(tmp_path)
    identity = {**IDENTITY, "styles": [style]}
    Manifest("images", identity, 6, BRAIN9.to_json()).write(tmp_path)
    with pytest.raises(StoreError, match=r"manifest\.json: .*not a usable name"):
        Shards(tmp_path)


@pytest.mark.parametrize("name", ["../a", "/a", "x/../../a", "a\0", "..\\a", ".."])
def test_an_export_writes_nothing_beside_its_folder(tmp_path, name):
    tree = Tree(tmp_path / "out", {})
    tree.claim()
    before = set(tmp_path.rglob("*"))
    for write in (tree.put, tree.renew):
        with pytest.raises(StoreError, match="would lie elsewhere"):
            write(name, b"content")
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("modality", ["t1/../../../escape", "/escape"])
def test_a_store_whose_modality_is_a_path_is_not_exported(tmp_path, modality):
    shape = (12, 16)
    with StoreWriter(tmp_path / "in" / "store.h5", BRAIN9, shape) as writer:
        rows = writer.add_slices(
            "a/sub-1", dataset="a", split="train", z=[4], position=[0.5], pv=random_pv(1)
        )
        image = (random_pv(1)[:, :1] < 255) * 0.5
        writer.add_image(rows, modality, image)
        writer.commit()
    with pytest.raises(StoreError, match=r"store\.h5: .*not a usable name"):
        export(open_source(tmp_path / "in"), "nnunet", tmp_path / "out", ExportOptions())
    assert not list(tmp_path.rglob("*escape*"))


@pytest.mark.parametrize("name", OUTSIDE)
def test_folders_of_models_and_runs_are_plain_names(name):
    for place in (Workspace().model, Workspace().run, Workspace().images, Workspace().benchmark):
        with pytest.raises(RequestError, match="not a usable name"):
            place(name)


@pytest.mark.parametrize(
    "name",
    ["../../secret.json", "/etc/secret.json", "a//b.json", "./a.json", ".a.json", "weights.bin",
     "model.pt", "net/unet.py", "w.safetensors.index.json", "a\\b.json", "a\0.json"],
)  # fmt: skip
def test_a_model_lists_only_files_of_its_own(tmp_path, name):
    model = write_image_model(tmp_path / "model")
    record = json.loads((model / "synthgen.json").read_bytes())
    del record["sha256"]  # as a stranger writes it
    record["files"][name] = "0" * 64
    (model / "synthgen.json").write_text(json.dumps(record))
    with pytest.raises(StoreError, match=r"synthgen\.json: lists the file"):
        SpadePipeline.load(model)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("unet", ["os", "system"]),
        ("unet", ["subprocess", "Popen"]),
        ("unet", ["unet/own", "Net"]),
        ("unet", ["synthgen", "load_pipeline"]),
        ("unet", ["diffusers", "a.b"]),
        ("../vae", ["diffusers", "UNet2DModel"]),
        ("_class_name", ["pipeline", "Own"]),
    ],
)
def test_a_model_index_names_no_foreign_code(tmp_path, key, value):
    write_label_model(tmp_path / "model")
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_bytes()), key: value}))
    mend_model(tmp_path)
    with pytest.raises(StoreError, match=r"model_index\.json: "):
        load_label_generator(tmp_path / "model")


def test_a_file_ending_is_none_of_a_path(tmp_path):
    about = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "csf": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps({**about, "file_ending": "/../../x.png"}))
    with pytest.raises(SynthgenError, match=r"dataset\.json: file_ending"):
        open_nnunet_raw(tmp_path, tissues=("csf",), split="train", modalities=(), exclude=())
