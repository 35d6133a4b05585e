"""Read a `torch.export` archive without running what its author may have hidden in it.

`torch.export.load` trusts its file (read in torch 2.13). It unpickles sample inputs, tensor
subclasses and custom objects (`weights_only=False` once `weights_only=True` fails, or
`pickle.loads`); takes any dotted name below `torch` for an operator, `torch.os.system` too;
evaluates symbolic sizes with sympy's `sympify`, which is `eval`; writes names into Python code that
it runs; imports modules that tree specifications name; and loads compiled libraries. So only what
an encoder needs is copied into an archive in memory: tensors stored as plain bytes, and a graph of
ATen operators whose strings are plain words and whose sizes are arithmetic. That copy is loaded.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import torch

from synthgen.core.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, ValueError, TypeError),
    *(AttributeError, AssertionError, RuntimeError),
)
_PLAIN = ("archive_format", "archive_version", "byteorder", ".data/version")
_PROGRAM, _SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
_REMEDY = (
    "expected an encoder that `torch.export.save` wrote on a CPU with torch "
    f"{torch.__version__.partition('+')[0]} or alike, with one input and one output tensor"
)

_TENSOR_FILE = re.compile(r"(weight|tensor)_[0-9]+")
_WORD = re.compile(r"[\w.+-]*", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w*|", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?")
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!from_file)[a-z_]\w*\.[A-Za-z_]\w*"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|getitem)"
    r"|torch\.sym_(int|float|max|min|not)|math\.(ceil|floor|trunc)",
    re.ASCII,
)
_EXPRESSION = re.compile(r"[\w (),'=+*/%<>!&|~.-]*", re.ASCII)
_FUNCTIONS = re.compile(
    "Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|"
    "ModularIndexing|IntTrueDiv|FloatTrueDiv|ToFloat|FloorToInt|CeilToInt|TruncToInt|RoundToInt|"
    "PowByNatural|Identity|Eq|Ne|Lt|Le|Gt|Ge"
)
_ARITHMETIC = (
    *(ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Constant, ast.Load),
    *(ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop),
)

_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
_ARGUMENTS = {"type": "builtins.tuple", "context": "null", "children_spec": [_LEAF]}
_KEYWORDS = {"type": "builtins.dict", "context": "[]", "children_spec": []}
_TENSOR_IN = [1, {**_ARGUMENTS, "children_spec": [_ARGUMENTS, _KEYWORDS]}]
_TENSOR_OUT = [1, _LEAF]


def load_exported(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Load a module of one input and one output tensor.

    A graph is still a program, if only one of tensor operators: it can use up memory and time.
    A `torch.no_grad()` inside `forward` is no ATen operator; leave it out before exporting.

    Args:
        path: the archive.

    Raises:
        StoreError: no such file; damaged; an older format; it needs pickle, operators other than
            ATen's, or anything else that is not copied.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            copy = _plain_copy(archive)
        return torch.export.load(copy).module()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error})") from error
    except LookupError as error:
        raise StoreError(f"{path}: lacks {error}; {_REMEDY}") from error
    except _DAMAGE as error:
        raise StoreError(f"{path}: {one_line(error)}; {_REMEDY}") from error


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _plain_copy(archive: zipfile.ZipFile) -> io.BytesIO:
    """Return an archive of the records that are needed, none of them pickled."""
    places = {name.partition("/")[2]: name for name in archive.namelist()}
    program = _plain_program(json.loads(archive.read(places[_PROGRAM])))
    records = {_PROGRAM: json.dumps(program).encode(), _SAMPLES: b""}
    records |= {name: archive.read(places[name]) for name in _PLAIN}
    for kind in ("weights", "constants"):
        name = f"data/{kind}/model_{kind}_config.json"
        config = json.loads(archive.read(places[name]))
        _require_plain(config)
        records[name] = json.dumps(config).encode()
        for tensor in config["config"].values():
            # The name decides, too: a file `custom_obj_0` is unpickled whatever the flag says.
            if tensor["use_pickle"] or not _TENSOR_FILE.fullmatch(tensor["path_name"]):
                raise ValueError("holds tensors or objects that only pickle can read")
            file = f"data/{kind}/{tensor['path_name']}"
            records[file] = archive.read(places[file])
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w") as out:
        for name, content in records.items():
            out.writestr(f"encoder/{name}", content)
    copy.seek(0)
    return copy


def _plain_program(program: dict[str, Any]) -> dict[str, Any]:
    """Return a program without notes and guards, refused if it is more than tensor operators."""
    module = program["graph_module"]
    call = module["module_call_graph"][0]
    signature = call["signature"]
    if [json.loads(signature[key]) for key in ("in_spec", "out_spec")] != [_TENSOR_IN, _TENSOR_OUT]:
        raise ValueError("takes or returns something else than one tensor")
    nodes = [{**node, "metadata": {}} for node in module["graph"]["nodes"]]
    bare = {
        "graph": {**module["graph"], "nodes": nodes},
        "signature": module["signature"],
        "module_call_graph": [{**call, "signature": {**signature, "in_spec": "", "out_spec": ""}}],
        "metadata": {},
        "treespec_namedtuple_fields": {},
    }
    program = {**program, "guards_code": [], "graph_module": bare}
    _require_plain(program)
    specs = {"in_spec": json.dumps(_TENSOR_IN), "out_spec": json.dumps(_TENSOR_OUT)}
    whole = {**call, "signature": {**signature, **specs}}
    return {**program, "graph_module": {**bare, "module_call_graph": [whole]}}


def _require_plain(tree: object) -> None:
    """Refuse strings that torch could take for more than a name, a word or arithmetic."""
    for key, text in _strings(tree, ""):
        match key:
            case "expr_str":
                fine = _is_arithmetic(text)
            case "target" | "as_operator":
                fine = _OPERATOR.fullmatch(text) is not None
            case "name" | "as_name" | "forward_arg_names":
                fine = _NAME.fullmatch(text) is not None
            case "as_string" | "as_strings":  # an argument, written into code by its repr
                fine = True
            case _:
                fine = _WORD.fullmatch(text) is not None
        if not fine:
            raise ValueError(f"holds {key or 'the name'} {text[:80]!r}, which is refused")


def _strings(tree: object, key: str) -> Iterator[tuple[str, str]]:
    """Yield every string with the key that it stands under, and every key with none."""
    if isinstance(tree, str):
        yield key, tree
    elif isinstance(tree, list):
        for item in tree:
            yield from _strings(item, key)
    elif isinstance(tree, dict):
        for name, item in tree.items():
            yield "", name
            yield from _strings(item, name)


def _is_arithmetic(text: str) -> bool:
    """Whether an expression has nothing but numbers, symbols, operators and sympy's functions."""
    if not _EXPRESSION.fullmatch(text):
        return False
    try:
        return all(map(_is_arithmetic_node, ast.walk(ast.parse(text, mode="eval"))))
    except SyntaxError:
        return False


def _is_arithmetic_node(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return _FUNCTIONS.fullmatch(name) is not None
        case ast.Call():
            return False
        case ast.Constant(value=str() as text):
            return _NAME.fullmatch(text) is not None or _NUMBER.fullmatch(text) is not None
        case ast.Constant(value=value):
            return isinstance(value, int | float)
        case _:
            return isinstance(node, _ARITHMETIC)
