"""Live beside a torchvision that does not match the installed torch.

nnU-Net brings torchvision along. A CUDA build of it cannot load beside a CPU build of torch
(`operator torchvision::nms does not exist`), and then every `from diffusers import ...` fails,
though nothing here uses torchvision. An absent torchvision does no harm, so a broken one is
made to look absent.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

_NAME = "torchvision"
_reason: list[str] = []


def hide_broken_torchvision() -> str | None:
    """Make a torchvision that cannot be imported look absent, for this process.

    Call it before the first import of diffusers. A torchvision that works, or that is not
    installed, is left alone. Calling it again is free.

    Returns:
        Why torchvision is hidden (one line), or None if it works or is not installed.
    """
    if _NAME in sys.modules:
        return _reason[0] if _reason and sys.modules[_NAME] is None else None
    if find_spec(_NAME) is None:
        return None
    before = set(sys.modules)
    try:
        import_module(_NAME)
    except Exception as error:  # noqa: BLE001 - whatever breaks it, the answer is the same
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == _NAME:
                del sys.modules[name]
        # `None` makes `import torchvision` raise ModuleNotFoundError, and find_spec raise or
        # return nothing, exactly as if it were not installed.
        sys.modules[_NAME] = None  # type: ignore[assignment]
        text = str(error).strip()
        _reason[:] = [f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"]
        return _reason[0]
    return None
