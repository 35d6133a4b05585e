"""What a user must install: the declared packages, and no other, are what the package imports."""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

ALLOWED = {
    *("accelerate", "datasets", "diffusers", "h5py", "jinja2", "matplotlib", "monai", "nibabel"),
    *("nnunetv2", "numpy", "packaging", "pydantic", "pyyaml", "rich", "safetensors"),
    *("scikit-image", "scikit-learn", "scipy", "torch", "typer"),
}
"""The libraries that synthgen stands on, and what they bring along and synthgen uses itself."""

EXTRAS = {"mni152": {"nilearn"}, "numba": {"numba"}}
MODULES = {"pyyaml": "yaml", "scikit-image": "skimage", "scikit-learn": "sklearn"}
BROUGHT = {"PIL", "pyarrow", "llvmlite", "pydantic_core", "_typeshed"}
"""Modules that come with matplotlib, datasets, numba and pydantic; and one for type checkers."""


def names(requirements):
    return {re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower() for requirement in requirements}


def test_the_declared_dependencies_are_the_allowed_ones():
    assert names(PROJECT["dependencies"]) == ALLOWED
    extras = PROJECT["optional-dependencies"]
    assert {name: names(extras[name]) for name in EXTRAS} == EXTRAS
    assert {*extras} == {*EXTRAS, "dev"}


def test_every_dependency_has_a_lower_bound_and_no_cap():
    for requirement in PROJECT["dependencies"]:
        assert re.fullmatch(r"[a-z0-9_-]+>=[0-9.]+", requirement), requirement


def test_the_package_imports_only_what_is_declared():
    declared = {MODULES.get(name, name) for name in ALLOWED.union(*EXTRAS.values())}
    for path in sorted((ROOT / "synthgen").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in (full.split(".")[0] for full in found):
                known = name in sys.stdlib_module_names or name in declared | {"synthgen"}
                assert known or name in BROUGHT, f"{path}:{node.lineno} imports {name}"
