"""Archives of encoders: what an ordinary one may hold, and that nothing in one is run."""

import io
import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch
from torch import nn
from torch.nn import functional

from synthgen.core.errors import StoreError
from synthgen.evaluate.exported import load_exported

PROGRAM = "models/model.json"
SAMPLES = "data/sample_inputs/model.pt"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


class Encoder(nn.Module):
    """Convolutions, norms, attention, a buffer, a constant, text arguments and sizes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.GELU("tanh"))
        self.query = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)
        self.register_buffer("mean", torch.full((1, 1, 1, 1), 0.3))

    def forward(self, image):
        x = functional.pad(image - self.mean, (1, 1, 1, 1), mode="reflect")
        x = functional.interpolate(self.first(x), scale_factor=0.5, mode="bilinear")
        x = x.reshape(x.shape[0], 8, x.shape[2] * x.shape[3]).transpose(1, 2)
        x = self.norm(x + functional.scaled_dot_product_attention(self.query(x), x, x))
        pooled = torch.einsum("bnc,n->bc", x, torch.ones(x.shape[1])) / x.shape[1]
        return self.head(pooled) * torch.tensor([1.0, 2.0, 3.0, 4.0])


def save(module, path, inputs=None, **kwargs):
    inputs = inputs or (torch.zeros(2, 1, 16, 24),)
    torch.export.save(torch.export.export(module.eval(), inputs, **kwargs), path)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    dims = torch.export.Dim.DYNAMIC
    shapes = ({0: dims, 2: dims, 3: dims},)
    path = tmp_path_factory.mktemp("encoder") / "encoder.pt2"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module = Encoder().eval()
    return module, save(module, path, dynamic_shapes=shapes)


def rewritten(path, target, changes):
    """Copy an archive; `changes` maps a record to a function of its content, or to new bytes."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as out:
        root = source.namelist()[0].partition("/")[0]
        records = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
        for name, change in changes.items():
            if isinstance(change, bytes):
                records[name] = change
            else:
                tree = json.loads(records[name])
                change(tree)
                records[name] = json.dumps(tree).encode()
        for name, content in records.items():
            out.writestr(f"{root}/{name}", content)
    return target


def first_node(tree):
    return tree["graph_module"]["graph"]["nodes"][0]


def size(tree):
    sizes = tree["graph_module"]["graph"]["tensor_values"]["image"]["sizes"]
    return next(s["as_expr"] for s in sizes if "as_expr" in s)


def signature(tree):
    return tree["graph_module"]["module_call_graph"][0]["signature"]


def first_tensor(tree):
    return next(iter(tree["config"].values()))


def pickled(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_loaded_encoder_computes_the_same(whole):
    module, path = whole
    loaded = load_exported(path)
    with torch.inference_mode():
        for shape in ((2, 1, 16, 24), (5, 1, 20, 32)):
            images = torch.rand(shape, generator=torch.Generator().manual_seed(1))
            torch.testing.assert_close(loaded(images), module(images))


def test_pickled_samples_are_never_read(whole, tmp_path):
    trap = pickled(((Trap(tmp_path / "ran"),), {}))
    load_exported(rewritten(whole[1], tmp_path / "trap.pt2", {SAMPLES: trap}))
    assert not (tmp_path / "ran").exists()
    torch.load(io.BytesIO(trap), weights_only=False)
    assert (tmp_path / "ran").exists(), "the trap works"


@pytest.mark.parametrize("kind", [WEIGHTS, CONSTANTS])
@pytest.mark.parametrize(
    "entry",
    [
        {"use_pickle": True},
        {"path_name": "opaque_obj_0", "use_pickle": False},
        {"path_name": "custom_obj_0", "use_pickle": False},
        {"path_name": "model.pt", "use_pickle": False},
    ],
)
def test_pickled_tensors_and_objects_are_refused(whole, tmp_path, kind, entry):
    path = rewritten(
        whole[1],
        tmp_path / "trap.pt2",
        {
            kind: lambda tree: first_tensor(tree).update(entry),
            "data/constants/opaque_obj_0": pickle.dumps(Trap(tmp_path / "ran")),
        },
    )
    with pytest.raises(StoreError, match=r"trap\.pt2: holds tensors or objects that only pickle"):
        load_exported(path)
    assert not (tmp_path / "ran").exists()


def test_legacy_weights_and_compiled_code_are_not_read(whole, tmp_path):
    trap = pickled({"head.weight": Trap(tmp_path / "ran")})
    names = ("data/weights/model.pt", "data/constants/model.pt", "data/aotinductor/model/run.so")
    path = rewritten(whole[1], tmp_path / "trap.pt2", dict.fromkeys(names, trap))
    load_exported(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: first_node(t).update(target="torch.os.system"),
            "holds target 'torch.os.system'",
        ),
        (
            lambda t: first_node(t).update(target="torch.ops.aten.from_file.default"),
            "holds target 'torch.ops.aten.from_file",
        ),
        (lambda t: first_node(t).update(target="#ns:op"), "holds target '#ns:op'"),
        (lambda t: first_node(t).update(name="x = print()\ny"), "holds name"),
        (lambda t: size(t).update(expr_str="exec('import os')"), "holds expr_str"),
        (lambda t: size(t).update(expr_str="Symbol('__import__(1)')"), "holds expr_str"),
        (lambda t: size(t).update(expr_str="sympify('s0')"), "holds expr_str"),
        (lambda t: size(t).update(expr_str="(1).__class__"), "holds expr_str"),
        (lambda t: size(t).update(expr_str="Max(1, *[2])"), "holds expr_str"),
        (lambda t: size(t).update(expr_str="Symbol('s0')('s1')"), "holds expr_str"),
        (lambda t: size(t).update(expr_str="1 +"), "holds expr_str"),
        (lambda t: signature(t).update(forward_arg_names=["a=print()"]), "holds forward_arg_names"),
        (lambda t: t["range_constraints"].update({"s0)": {}}), "holds the name 's0\\)'"),
        (lambda t: signature(t).update(in_spec="[1, {}]"), "something else than one tensor"),
        (lambda t: t.pop("graph_module"), "lacks 'graph_module'"),
        (lambda t: t["graph_module"].update(module_call_graph=[]), "lacks list index"),
        (lambda t: t["graph_module"].update(graph=3), "not subscriptable"),
        (lambda t: t["schema_version"].update(major=99), "ran into an error when deserializing"),
    ],
)
def test_programs_that_are_more_than_tensor_operators_are_refused(whole, tmp_path, change, message):
    path = rewritten(whole[1], tmp_path / "bad.pt2", {PROGRAM: change})
    with pytest.raises(StoreError, match=f"bad.pt2: .*{message}") as caught:
        load_exported(path)
    assert "\n" not in str(caught.value)


def test_notes_and_guards_are_dropped(whole, tmp_path):
    """torch would write guards into code and import what tree specifications in notes name."""

    def annotate(tree):
        tree["guards_code"] = ["exec('import os')"]
        first_node(tree)["metadata"] = {"custom": "{", "stack_trace": "a\nb"}

    load_exported(rewritten(whole[1], tmp_path / "noted.pt2", {PROGRAM: annotate}))


class Pair(nn.Module):
    def forward(self, image, other):
        return image + other


class Two(nn.Module):
    def forward(self, image):
        return image, image


def test_modules_of_other_inputs_or_outputs_are_refused(tmp_path):
    zeros = torch.zeros(2, 1, 16, 24)
    for module, inputs in ((Pair(), (zeros, zeros)), (Two(), (zeros,))):
        path = save(module, tmp_path / "pair.pt2", inputs)
        with pytest.raises(StoreError, match="something else than one tensor"):
            load_exported(path)


def test_files_that_are_no_archives_are_named(whole, tmp_path):
    with pytest.raises(StoreError, match=r"absent\.pt2: cannot be read \(No such file"):
        load_exported(tmp_path / "absent.pt2")
    with pytest.raises(StoreError, match="cannot be read"):
        load_exported(tmp_path)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "state.pt")
    with pytest.raises(StoreError, match=r"lacks 'models/model\.json'; expected an encoder"):
        load_exported(tmp_path / "state.pt")
    (tmp_path / "text.pt2").write_text("no archive")
    with pytest.raises(StoreError, match=r"text\.pt2: File is not a zip file; expected an encoder"):
        load_exported(tmp_path / "text.pt2")
    cut = shutil.copy(whole[1], tmp_path / "cut.pt2")
    content = cut.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match=r"cut\.pt2: File is not a zip file"):
        load_exported(cut)
