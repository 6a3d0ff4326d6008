"""Reads and writes the reference's `.pt` files. Needs torch, which is imported when a file is touched."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_jax.errors import UserError
from vla_jax.optional_torch import import_torch
from vla_jax.reference.tensor_names import ENCODER, EXPERT
from vla_jax.storage.replacing import replace_file

# Left by DistributedDataParallel and torch.compile around a whole model or around one part.
_WRAPPERS = re.compile(r"(^|\.)((?:module|_orig_mod)\.)+")
_UNPREFIXED_EXPERT = (
    "time_embed.",
    "temporal_encoder.",
    "temporal_decoder.",
    "cond_proj.",
    "fusion_proj.",
    "output_head.",
    "action_embed.",
    "pos_embed",
)


@dataclass(frozen=True)
class ReferenceCheckpoint:
    """Tensors of a reference checkpoint under the names of its whole state dict.

    arrays: float32 (bfloat16 and float16 widened, which is exact) and int64, of the two parts. layout: how the file
    holds them. ignored: number of tensors that belong to neither part (the frozen backbone's). epoch: None where
    the file has none.
    """

    arrays: dict[str, np.ndarray]
    layout: str
    ignored: int
    epoch: int | None


def read_checkpoint(path: Path) -> ReferenceCheckpoint:
    """Reads a checkpoint: a dict with `model_state_dict`, one with a state dict per part, or a bare state dict.

    Nothing in the file is executed (`weights_only`), and tensors are mapped, not copied, until they are used.

    Raises:
        UserError: the file is missing, no torch file, holds objects other than tensors and plain values, or holds no
            state dict of the reference.
    """
    content = _load(path)
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path} holds a {type(content).__name__}, not a checkpoint; give a file that torch.save wrote"
        )
    tensors, layout = _state_dict(content)
    parts = {name: tensor for name, tensor in tensors.items() if name.split(".")[0] in (ENCODER, EXPERT)}
    if not parts:
        found = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise UserError(
            f"{path} holds no tensors of the reference ({ENCODER}.…, {EXPERT}.…); its keys are: {found}"
        )
    epoch = content.get("epoch")
    return ReferenceCheckpoint(
        arrays={name: _to_numpy(tensor) for name, tensor in parts.items()},
        layout=layout,
        ignored=len(tensors) - len(parts),
        epoch=epoch if isinstance(epoch, int) else None,
    )


def write_checkpoint(path: Path, arrays: Mapping[str, np.ndarray], *, epoch: int = 0) -> None:
    """Writes arrays in the reference's full layout, which holds each part twice."""
    import torch

    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    parts = {
        part: {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}
        for part in (ENCODER, EXPERT)
    }
    content = {"epoch": epoch, "model_state_dict": tensors}
    content |= {part: state or None for part, state in parts.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda handle: torch.save(content, handle))


def _load(path: Path) -> Any:
    torch = import_torch("reading PyTorch checkpoints")
    if not path.is_file():
        raise UserError(f"no such checkpoint file: {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # torch's own message advises loading it unsafely, which nobody should.
        raise UserError(
            f"{path} is not a readable PyTorch checkpoint: it is no torch file, or holds objects that are not "
            "loaded; save its state dicts alone"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a readable PyTorch checkpoint (damaged?): {reason}") from error


def _state_dict(content: Mapping[Any, Any]) -> tuple[dict[str, Any], str]:
    """All tensors under whole-model names, and the layout's name."""
    for key in ("model_state_dict", "state_dict"):
        if isinstance(content.get(key), Mapping):
            tensors = _named(content[key])
            if any(name.startswith((f"{ENCODER}.", f"{EXPERT}.")) for name in tensors):
                return tensors, "full"
    parts = [part for part in (ENCODER, EXPERT) if isinstance(content.get(part), Mapping)]
    if parts:
        named = ((part, name, tensor) for part in parts for name, tensor in _named(content[part]).items())
        # A part's keys may carry the part's own name already.
        return {f"{part}.{name.removeprefix(f'{part}.')}": tensor for part, name, tensor in named}, "per part"
    tensors = _named(content)
    if not any(name.startswith((f"{ENCODER}.", f"{EXPERT}.")) for name in tensors) and any(
        name.startswith(_UNPREFIXED_EXPERT) for name in tensors
    ):
        return {f"{EXPERT}.{name}": tensor for name, tensor in tensors.items()}, "bare expert"
    return tensors, "bare"


def _named(state: Mapping[Any, Any]) -> dict[str, Any]:
    """The tensors of a state dict, their names freed of what wrappers put before and between."""
    return {
        _WRAPPERS.sub(r"\1", name): value
        for name, value in state.items()
        if isinstance(name, str) and hasattr(value, "detach")
    }


def _to_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
