"""`synthgen doctor`: what this machine has, what is broken, how to mend it."""

import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import typer

from synthgen.cli.generation import JsonOption, WorkspaceOption

State = Literal["ok", "note", "broken"]
_MARKS: dict[State, str] = {"ok": "ok  ", "note": "note", "broken": "FAIL"}
_PACKAGES = ("accelerate", "monai", "nibabel", "h5py", "datasets", "nnunetv2")
_BAD_MACHINE = 3
_LOW_DISK_GIB = 2.0


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` says what to do, and is empty when all is well."""

    name: str
    state: State
    detail: str
    remedy: str = ""


def command(
    *,
    workspace: WorkspaceOption = Path("work"),
    as_json: JsonOption = False,
) -> None:
    """Report what this machine has, what is broken, and how to mend it."""
    findings = [
        Finding("python", "ok", f"{platform.python_version()} ({sys.executable})"),
        *_torch(),
        *[_package(name) for name in _PACKAGES],
        _nilearn(),
        _disk(workspace),
        _memory(),
        _recipes(),
    ]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            print(f"{_MARKS[finding.state]}  {finding.name:<12} {finding.detail}")
            if finding.remedy:
                print(f"      {'':<12} -> {finding.remedy}")
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(_BAD_MACHINE)


def _torch() -> list[Finding]:
    """Report torch, torchvision and diffusers, in the order in which one breaks the next."""
    try:
        import torch
    except ImportError as error:
        return [Finding("torch", "broken", _line(error), "pip install torch")]
    cuda = "no CUDA device"
    if torch.cuda.is_available():
        cuda = ", ".join(
            torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())
        )
    native = native_bf16("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = "native" if native else "emulated, slow: --precision fp32 is faster here"
    found = Finding(
        "torch",
        "ok",
        f"{torch.__version__}, {torch.get_num_threads()} threads, {cuda}, bf16 {bf16}",
    )
    return [found, _torchvision(), _diffusers()]


def native_bf16(device: str) -> bool:
    """Tell whether a device computes bfloat16 in hardware; torch has private functions only."""
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if supported is None or not supported():
        return False
    # torch says yes of any AVX-512, where oneDNN may emulate.
    return bool(
        not torch.cpu._is_avx512_supported()
        or torch.cpu._is_avx512_bf16_supported()
        or torch.cpu._is_amx_tile_supported()
    )


def _torchvision() -> Finding:
    from synthgen.torchvision_guard import hide_broken_torchvision

    try:
        version = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return Finding("torchvision", "ok", "not installed (not needed)")
    reason = hide_broken_torchvision()
    if reason is None:
        return Finding("torchvision", "ok", f"{version} works (not needed)")
    return Finding(
        "torchvision",
        "note",
        f"{version} is broken and hidden from synthgen: {reason}",
        "harmless here; to mend it, install torch and torchvision from one index in one pip "
        "command, or `pip uninstall torchvision`",
    )


def _diffusers() -> Finding:
    try:
        from diffusers import AutoencoderKL, UNet2DModel  # noqa: F401 - the import is the test
    except Exception as error:  # noqa: BLE001 - it re-raises whatever broke below as RuntimeError
        return Finding("diffusers", "broken", _line(error), "pip install 'diffusers>=0.36'")
    return Finding("diffusers", "ok", metadata.version("diffusers"))


def _package(name: str) -> Finding:
    try:
        return Finding(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, "broken", "not installed", f"pip install {name}")


def _nilearn() -> Finding:
    try:
        return Finding("nilearn", "ok", metadata.version("nilearn"))
    except metadata.PackageNotFoundError:
        remedy = "pip install nilearn, or prepare your own images"
        return Finding("nilearn", "note", "not installed: no built-in source `mni152`", remedy)


def _disk(workspace: Path) -> Finding:
    folder = workspace.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    if not os.access(folder, os.W_OK):
        remedy = "choose a folder that you may write with --out"
        return Finding("disk", "note", f"{folder} is not writable", remedy)
    if free < _LOW_DISK_GIB:
        remedy = "free some space: a generated slice takes about 0.1 MB"
        return Finding("disk", "note", f"{free:.1f} GiB free at {folder}", remedy)
    return Finding("disk", "ok", f"{free:.1f} GiB free at {folder}")


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return Finding("memory", "ok", "unknown on this platform")
    cores = os.cpu_count() or 1
    return Finding("memory", "ok", f"{total:.1f} GiB, {cores} cores")


def _recipes() -> Finding:
    from synthgen.core.errors import RecipeError
    from synthgen.recipe import list_recipes, load_recipe

    known = list_recipes()
    if not known:
        return Finding("recipes", "broken", "none found", "install synthgen again")
    for path in known.values():
        try:
            load_recipe(path)
        except RecipeError as error:
            return Finding("recipes", "broken", _line(error), "install synthgen again")
    return Finding("recipes", "ok", ", ".join(known))


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
