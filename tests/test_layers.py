"""The dependency direction of the package, imports inside functions included."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "synthgen"

STAGES = {"labels", "images", "segment", "evaluate", "export"}
DRIVERS = {"generate", "benchmark"}
LEAVES = {"models", "diffusion", "losses"}
GROUND = {"core", "torchvision_guard"}

# What each layer may import, itself excepted. Stages never import one another.
ALLOWED = {
    "core": set(),
    "torchvision_guard": set(),
    "recipe": {"core"},
    "models": GROUND | {"diffusion"},
    "diffusion": GROUND | {"models"},
    "losses": {"core"},
    "data": {"core"},
    "runtime": GROUND,
    "training": GROUND | LEAVES | {"data", "recipe", "runtime"},
    **{s: GROUND | LEAVES | {"data", "recipe", "runtime", "training"} for s in STAGES},
    **{d: GROUND | STAGES | {"data", "recipe", "runtime", "training"} for d in DRIVERS},
    "starter": {"core", "runtime"},
    "cli": GROUND | STAGES | DRIVERS | {"data", "recipe", "runtime", "starter", "training", ""},
    "__main__": {"cli"},
    # The package's own lazy public names.
    "": {"core", "recipe", "data", "labels", "images"},
}

GLOBAL_RNG = {
    "torch": {"manual_seed", "seed"},
    "numpy.random": {
        "seed", "rand", "randn", "randint", "random", "normal", "uniform", "choice", "shuffle",
        "permutation", "standard_normal", "get_state", "set_state",
    },
    "random": None,
}  # fmt: skip


def modules():
    """Yield (dotted name, tree) of every module of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield name, ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


MODULES = dict(modules())


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree, *, type_checking=True, inside_functions=True):
    """Yield the dotted names that a module imports."""
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            for alias in node.names:
                dotted = f"{node.module}.{alias.name}"
                yield dotted if dotted in MODULES else node.module
        if is_type_checking(node) and not type_checking:
            stack.extend(node.orelse)
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not inside_functions:
            continue
        stack.extend(ast.iter_child_nodes(node))


def layer(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("name", MODULES)
def test_imports_follow_the_dependency_direction(name):
    here = layer(name)
    assert here in ALLOWED, f"{name}: a new layer needs a place in ALLOWED"
    # An annotation may name anything below; a stage's type in another stage is no import either.
    for imported in imports(MODULES[name]):
        if imported.split(".")[0] != "synthgen":
            continue
        there = layer(imported)
        allowed = there == here or there in ALLOWED[here]
        assert allowed, f"{name} imports {imported}: '{here}' may not import '{there}'"


def test_no_import_cycles():
    """Cycles count at module level; package initialisers are edges of their own."""
    graph = {
        name: {
            imported
            for imported in imports(tree, type_checking=False, inside_functions=False)
            if imported in MODULES and imported != name
        }
        for name, tree in MODULES.items()
    }
    done, path = set(), []

    def visit(name):
        if name in done:
            return
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        path.append(name)
        for imported in sorted(graph[name]):
            visit(imported)
        path.pop()
        done.add(name)

    for name in graph:
        visit(name)


@pytest.mark.parametrize("name", [n for n in MODULES if layer(n) == "core"])
def test_core_needs_only_numpy_and_the_standard_library(name):
    for imported in imports(MODULES[name], type_checking=False, inside_functions=False):
        top = imported.split(".")[0]
        assert top in sys.stdlib_module_names | {"numpy", "synthgen"}, f"{name} imports {imported}"


@pytest.mark.parametrize("name", [n for n in MODULES if layer(n) in {"recipe", "cli", ""}])
def test_light_modules_import_no_torch_at_module_level(name):
    heavy = {"torch", "diffusers", "monai", "accelerate", "h5py", "scipy", "matplotlib", "nibabel"}
    found = set(imports(MODULES[name], type_checking=False, inside_functions=False))
    assert not {i.split(".")[0] for i in found} & heavy, f"{name} imports {sorted(found)}"


@pytest.mark.parametrize("name", MODULES)
def test_monai_is_imported_where_it_is_used(name):
    """It takes two seconds, and few recipes need it."""
    found = imports(MODULES[name], type_checking=False, inside_functions=False)
    assert not any(i.split(".")[0] == "monai" for i in found)


def test_core_and_recipe_import_without_torch():
    code = (
        "import sys, synthgen, synthgen.recipe, synthgen.core.rng, synthgen.core.manifest;"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - our own interpreter


@pytest.mark.parametrize("name", MODULES)
def test_global_random_functions_are_not_used(name):
    tree = MODULES[name]
    names = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert "random" not in names.values(), f"{name} imports random"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, _, rest = ast.unparse(node.func.value).partition(".")
            owner = names.get(owner, owner) + (f".{rest}" if rest else "")
            banned = node.func.attr in (GLOBAL_RNG.get(owner) or set())
            assert not banned, f"{name}:{node.lineno}: {ast.unparse(node.func)} is global"


@pytest.mark.parametrize("name", MODULES)
def test_no_asserts_and_no_prints_outside_the_command_line(name):
    for node in ast.walk(MODULES[name]):
        assert not isinstance(node, ast.Assert), f"{name}:{node.lineno}: assert"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            assert layer(name) == "cli", f"{name}:{node.lineno}: print"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.name)
def test_files_stay_readable(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
