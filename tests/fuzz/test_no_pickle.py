"""No pickle is loaded, and none is even opened, whatever lies in a folder."""

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_readers import READERS
from tiny_models import write_image_model, write_label_model

from synthgen.core.errors import StoreError
from synthgen.images.spade import SpadePipeline
from synthgen.labels import load_label_generator

PACKAGE = Path(__file__).parents[2] / "synthgen"
NAMES = ["diffusion_pytorch_model.bin", "model.pt", "x.pth", "x.ckpt", "x.pkl", "x.npy", "unet.py"]

READING = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import fuzz_readers
from fuzz_readers import READERS

folders = {{name: Path({folder!r}) / str(number) / "in" for number, name in enumerate(READERS)}}
for name, reader in READERS.items():  # once before, so that imports are done
    files = [p for t in reader.targets for p in folders[name].glob(t) if p.is_file()]
    reader.read(folders[name], files)

def hook(event, arguments):
    if event == "pickle.find_class":
        print("pickle:", arguments, flush=True)
    if event == "open" and str(arguments[0]).endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")):
        print("opened:", arguments, flush=True)

sys.addaudithook(hook)
for name, reader in READERS.items():
    files = [p for t in reader.targets for p in folders[name].glob(t) if p.is_file()]
    reader.read(folders[name], files)
print("done", len(READERS))
"""


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["", "generator"])
def test_a_model_with_a_pickle_or_code_is_refused_unopened(tmp_path, name, place):
    model = write_image_model(tmp_path / "model")
    (model / place / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(StoreError, match=rf"{name}: a model of synthgen is safetensors and JSON"):
        SpadePipeline.load(model)
    assert not (tmp_path / "sprung").exists()


def test_weights_are_not_looked_for_in_a_pickle(tmp_path):
    model = write_label_model(tmp_path / "model")
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(StoreError):
        load_label_generator(model)


def test_reading_everything_unpickles_nothing(tmp_path):
    for number, reader in enumerate(READERS.values()):
        folder = tmp_path / str(number) / "in"
        folder.mkdir(parents=True)
        reader.make(folder)
    code = READING.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path))
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"done {len(READERS)}"]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.name)
def test_the_package_unpickles_nowhere(path):
    modules = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            named = named or [alias.name for alias in node.names]
            assert not modules & {name.split(".")[0] for name in named}, f"{path}:{node.lineno}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"torch.load", "eval", "exec"}, f"{path}:{node.lineno}: {called}"
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert options.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
            if called == "np.load":
                assert "allow_pickle" in options, f"{path}:{node.lineno}"
            if called.endswith(".from_pretrained") and "segment" not in path.parts:
                safe = {"use_safetensors", None} & {*options}
                scheduler = called.endswith("Scheduler.from_pretrained")
                assert safe or scheduler, f"{path}:{node.lineno}: {called}"
