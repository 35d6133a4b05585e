"""Exact checkpoints without pickle: tensors in safetensors, numbers in JSON, atomic."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from synthgen.core.errors import RequestError, StoreError
from synthgen.core.input_files import read_json, unusable
from synthgen.core.manifest import (
    file_digest,
    require_digest,
    sealed,
    temporary_of,
    unsealed,
)
from synthgen.runtime import tensor_files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from accelerate import Accelerator

    from synthgen.training.loop import TrainStep

FORMAT = "synthgen-checkpoint/1"
_STATE = "state.json"
_REMEDY = "delete that step's folder and resume again"


class CheckpointFolder:
    """The checkpoints of one run: `step_0000500/` and so on, the last `keep` of them.

    Each holds `model.*.safetensors`, `optimizer.*.safetensors`, `ema.*.safetensors` and
    `state.json`. A checkpoint is written beside its place, synced and renamed.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self._folder = folder
        self._keep = max(1, keep)

    def latest(self) -> int | None:
        """Return the step of the newest checkpoint, None if there is none."""
        return max(self._steps(), default=None)

    def save(
        self, step: int, train_step: TrainStep, accelerator: Accelerator, identity: str
    ) -> None:
        """Write the checkpoint of `step` and drop the oldest ones.

        Raises:
            StoreError: it could not be written; earlier checkpoints stay.
        """
        if not accelerator.is_main_process:
            accelerator.wait_for_everyone()
            return
        target = self._path(step)
        temporary = temporary_of(target)
        try:
            temporary.mkdir(parents=True)
            with tensor_files():
                _write(temporary, step, train_step, accelerator, identity)
            temporary.replace(target)
            _sync(self._folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise StoreError(
                f"{target}: checkpoint could not be written ({error}); "
                "free space, then run again with --resume"
            ) from error
        for old in sorted(self._steps())[: -self._keep]:
            self._delete(self._path(old))
        accelerator.wait_for_everyone()

    def sweep(self) -> None:
        """Delete what a killed run left half written or half deleted."""
        for leftover in self._folder.glob(".step_*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)

    def load(
        self, step: int, train_step: TrainStep, accelerator: Accelerator, identity: str
    ) -> int:
        """Restore everything from the checkpoint of `step` and return that step.

        Raises:
            RequestError: it belongs to a run of another recipe or data.
            StoreError: it is damaged.
        """
        folder = self._path(step)
        with unusable(folder / _STATE, _REMEDY):
            state = _read_state(folder)
            if state["identity"] != identity:
                raise RequestError(
                    f"{folder} belongs to a run of another recipe or other data "
                    f"({state['identity']} there, {identity} asked); choose another run folder"
                )
            if state["step"] != step:
                raise StoreError(f"{folder / _STATE}: says step {state['step']!r:.40}; {_REMEDY}")
            _read(folder, state, train_step, accelerator)
        return step

    def _path(self, step: int) -> Path:
        return self._folder / f"step_{step:07d}"

    def _delete(self, folder: Path) -> None:
        """Delete a checkpoint under another name: half of one would be taken for damaged."""
        leftover = temporary_of(folder)
        with suppress(OSError):
            folder.rename(leftover)
        shutil.rmtree(leftover, ignore_errors=True)

    def _steps(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        names = (p.name.removeprefix("step_") for p in self._folder.glob("step_*"))
        return [int(name) for name in names if name.isdecimal()]


def _write(
    folder: Path, step: int, train_step: TrainStep, accelerator: Accelerator, identity: str
) -> None:
    state: dict[str, Any] = {
        "format": FORMAT,
        "step": step,
        "identity": identity,
        "optimizers": {},
        "schedulers": {},
        "ema": {},
        "extra": train_step.state(),
    }
    for name, model in train_step.models.items():
        weights = accelerator.unwrap_model(model).state_dict()
        _save_tensors(folder / f"model.{name}.safetensors", weights)
    for name, optimizer in train_step.optimizers.items():
        tensors, scalars = _split_optimizer(optimizer.state_dict())
        _save_tensors(folder / f"optimizer.{name}.safetensors", tensors)
        state["optimizers"][name] = scalars
    for name, ema in train_step.ema.items():
        raw = dict(ema.state_dict())
        shadow = raw.pop("shadow_params")
        tensors = {f"{i:05d}": tensor for i, tensor in enumerate(shadow)}
        _save_tensors(folder / f"ema.{name}.safetensors", tensors)
        state["ema"][name] = raw
    for name, scheduler in train_step.schedulers.items():
        state["schedulers"][name] = scheduler.state_dict()
    if accelerator.scaler is not None:
        state["scaler"] = accelerator.scaler.state_dict()
    state["files"] = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
    (folder / _STATE).write_text(json.dumps(sealed(state), indent=1))
    for written in folder.iterdir():
        _sync(written)


def _read_state(folder: Path) -> dict[str, Any]:
    """Return the content of `state.json`, after checking it and every file that it lists."""
    path = folder / _STATE
    try:
        state = unsealed(_formatted(read_json(path)))
    except (OSError, ValueError) as error:
        raise StoreError(_damaged(path, error)) from error
    for name, expected in state.get("files", {}).items():
        require_digest(folder / name, expected, _REMEDY)
    return state


def _formatted(raw: object) -> dict[str, Any]:
    found = raw.get("format") if isinstance(raw, dict) else raw
    if not isinstance(raw, dict) or found != FORMAT:
        raise ValueError(f"expected format '{FORMAT}', got {found!r:.60}")
    return raw


def _read(
    folder: Path, state: Mapping[str, Any], train_step: TrainStep, accelerator: Accelerator
) -> None:
    for name, model in train_step.models.items():
        weights = _load_tensors(folder / f"model.{name}.safetensors")
        accelerator.unwrap_model(model).load_state_dict(weights)
    for name, optimizer in train_step.optimizers.items():
        tensors = _load_tensors(folder / f"optimizer.{name}.safetensors")
        optimizer.load_state_dict(_join_optimizer(tensors, state["optimizers"][name]))
    for name, ema in train_step.ema.items():
        path = folder / f"ema.{name}.safetensors"
        tensors = _load_tensors(path)
        ema.load_state_dict({**state["ema"][name], "shadow_params": ema.shadow_params})
        if len(tensors) != len(ema.shadow_params):
            raise StoreError(_damaged(path, "another number of tensors"))
        for i, shadow in enumerate(ema.shadow_params):
            shadow.copy_(tensors[f"{i:05d}"])
    for name, scheduler in train_step.schedulers.items():
        scheduler.load_state_dict(dict(state["schedulers"][name]))
    if accelerator.scaler is not None and "scaler" in state:
        accelerator.scaler.load_state_dict(state["scaler"])
    train_step.load_state(state["extra"])


def _split_optimizer(
    state: Mapping[str, Any],
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split an optimiser's state into tensors `"<parameter>.<name>"` and JSON-able scalars."""
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                scalars.setdefault(str(index), {})[key] = value
    return tensors, {"groups": state["param_groups"], "state": scalars}


def _join_optimizer(
    tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Any]
) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in scalars["state"].items()}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    groups = [
        {k: tuple(v) if k == "betas" else v for k, v in group.items()}
        for group in scalars["groups"]
    ]
    return {"state": state, "param_groups": groups}


def _save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    # safetensors wants contiguous tensors that share no memory.
    save_file({k: v.detach().contiguous().cpu().clone() for k, v in tensors.items()}, path)


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with tensor_files():
            return load_file(path)
    except OSError as error:
        raise StoreError(_damaged(path, error)) from error


def _damaged(path: Path, error: object) -> str:
    return f"{path}: damaged checkpoint ({error}); {_REMEDY}"


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
