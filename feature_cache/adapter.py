"""Merging a PEFT LoRA adapter into a backbone, with nothing of it left out."""

import warnings
from pathlib import Path
from typing import Any

from vla_jax.errors import UserError

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"


def adapter_files(adapter: Path) -> list[Path]:
    """Returns the files whose content decides what an adapter does.

    Raises:
        UserError: the directory is no PEFT adapter with safetensors weights.
    """
    files = [adapter / _CONFIG, adapter / _WEIGHTS]
    for path in files:
        if not path.is_file():
            raise UserError(f"{adapter}: no LoRA adapter here ({path.name} is missing)")
    return files


def merge_adapter(model: Any, adapter: Path) -> Any:
    """Returns the model with a LoRA adapter merged into its weights.

    Raises:
        UserError: `peft` is missing, or a tensor of the adapter has no place in this model. PEFT itself only
            warns then and leaves the tensor out, so that the backbone would silently stay as it was.
    """
    from safetensors import safe_open

    try:
        import peft
    except ImportError as error:
        raise UserError("--adapter needs the package peft: pip install 'vla-jax[export]'") from error
    config_path, weights_path = adapter_files(adapter)
    try:
        with safe_open(weights_path, framework="np") as file:
            stored = set(file.keys())
        with warnings.catch_warnings():
            # Missing and surplus tensors are judged below, all of them.
            warnings.simplefilter("ignore")
            adapted = peft.PeftModel.from_pretrained(model, str(adapter))
    except Exception as error:
        # PEFT and safetensors raise a dozen kinds of errors for a file that does not fit.
        raise UserError(
            f"{adapter}: cannot load this LoRA adapter ({type(error).__name__}: {error})"
        ) from error
    placed = set(peft.get_peft_model_state_dict(adapted))
    homeless, unfilled = sorted(stored - placed), sorted(placed - stored)
    if homeless or unfilled:
        tensor = (homeless or unfilled)[0]
        problem = "has no place in this backbone" if homeless else "is missing from the adapter"
        raise UserError(
            f"{config_path.parent}: {len(homeless) or len(unfilled)} tensors do not fit, the first, {tensor}, "
            f"{problem}; adapters of transformers before 4.52 name layers `model.layers` "
            "instead of `model.language_model.layers`: rename them"
        )
    return adapted.merge_and_unload()
