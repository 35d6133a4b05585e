"""A wheel, installed elsewhere, works without the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command, cwd, **environment):
    done = subprocess.run(  # noqa: S603 - our own interpreter
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(source, folder):
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    run(sys.executable, "-c", build, str(folder), cwd=source)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build a wheel offline and install it into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(ROOT, folder)
    site = folder / "site"
    install = ["install", "-q", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    run(sys.executable, "-m", "pip", *install, cwd=folder)
    return wheel, site


def test_wheel_holds_package_recipes_and_nothing_else(installed):
    names = zipfile.ZipFile(installed[0]).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"synthgen", "synthgen-0.1.0.dist-info"}
    assert {"synthgen/py.typed", "synthgen/recipes/tiny.yaml", "synthgen/cli/train.py"} <= set(
        names
    )
    here = {str(p.relative_to(ROOT)) for p in (ROOT / "synthgen").rglob("*.py")}
    assert here <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_holds_the_starter_models(tmp_path):
    """Built from a copy with a model in the starter's place."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("synthgen", "recipes"):
        shutil.copytree(ROOT / name, tmp_path / "source" / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path / "source")
    files = ["model_index.json", "synthgen.json", "card.md", "unet/weights.safetensors"]
    for name in files:
        path = tmp_path / "source/synthgen/starter/labels" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    names = zipfile.ZipFile(build_wheel(tmp_path / "source", tmp_path)).namelist()
    assert {f"synthgen/starter/labels/{name}" for name in files} <= set(names)


def test_installed_wheel_runs_outside_the_checkout(installed, tmp_path):
    # -P keeps the working folder off sys.path; PYTHONPATH goes before an editable install.
    site = str(installed[1])
    where = "import synthgen; print(synthgen.__file__)"
    out = run(sys.executable, "-P", "-c", where, cwd=tmp_path, PYTHONPATH=site)
    assert out.startswith(site)
    out = run(sys.executable, "-P", "-m", "synthgen", "--help", cwd=tmp_path, PYTHONPATH=site)
    assert "label maps first" in out
    load = "from synthgen.recipe import load_recipe; r = load_recipe('tiny'); print(r.name)"
    out = run(sys.executable, "-P", "-c", load, cwd=tmp_path, PYTHONPATH=site)
    assert out == "tiny\n"
    out = run(
        sys.executable, "-P", "-m", "synthgen", "info", "recipes", cwd=tmp_path, PYTHONPATH=site
    )
    assert site in out


def test_console_script_is_installed(installed):
    script = installed[1] / "bin" / "synthgen"
    if os.name == "nt":
        script = script.with_suffix(".exe")
    assert script.is_file()
