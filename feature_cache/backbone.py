"""The frozen vision-language backbone: loading Qwen2.5-VL and turning batches of records into feature slots."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from feature_cache.adapter import adapter_files, merge_adapter
from feature_cache.content_digest import content_digest
from feature_cache.pooling import slot_weights
from feature_cache.processor import PreparedRecord, PromptImageProcessor
from vla_jax.contracts.provenance import DEFAULT_MAX_PIXELS, Pooling, Provenance, StorageDtype
from vla_jax.errors import UserError

logger = logging.getLogger(__name__)

_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
_PROCESSOR_FILES = ("*.json", "*.jinja", "merges.txt")
# Fastest first; what a machine or a model lacks is passed over with a message.
_ATTENTION = ("flash_attention_2", "sdpa", "eager")


@dataclasses.dataclass(frozen=True)
class BackboneFiles:
    """A backbone on disk, known by content but not loaded; `find_backbone` makes one."""

    folder: Path
    name: str
    config: Any
    """`Qwen2_5_VLConfig`"""
    processor: PromptImageProcessor
    digest: str
    """Of the configuration and the weights, by content."""
    adapter: Path | None
    adapter_digest: str | None

    def provenance(
        self, *, pooling: Pooling = "grid", grid: int = 2, layer: int = -1, dtype: StorageDtype = "float16"
    ) -> Provenance:
        """Returns the provenance of features of this backbone; checks that the layer exists."""
        num_layers = self.config.text_config.num_hidden_layers
        if not -num_layers - 1 <= layer <= num_layers:
            raise UserError(
                f"--layer {layer}: this backbone has hidden states 0 (embeddings) to {num_layers}, "
                f"or {-num_layers - 1} to -1 counted from the last"
            )
        return Provenance(
            backbone=self.digest,
            backbone_name=self.name,
            adapter=self.adapter_digest,
            processor=self.processor.settings(),
            chat_template=self.processor.template_digest(),
            pooling=pooling,
            grid=grid,
            # Counted from the last, so that one layer has one name.
            layer=layer if layer < 0 else layer - num_layers - 1,
            dtype=dtype,
        )


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A loaded backbone with its processor; `load_backbone` makes one."""

    model: Any
    """`Qwen2_5_VLForConditionalGeneration`, frozen, in evaluation mode"""
    processor: PromptImageProcessor

    @property
    def device(self):
        """The torch device of the weights."""
        return self.model.device

    def collate(self, records: list[PreparedRecord]) -> dict[str, Any]:
        """Returns the batch of these records on the host, ready to be copied to the device in the background."""
        inputs = collate(records)
        if self.device.type == "cuda":
            return {name: tensor.pin_memory() for name, tensor in inputs.items()}
        return inputs

    def encode(
        self,
        records: list[PreparedRecord],
        provenance: Provenance,
        inputs: dict[str, Any] | None = None,
    ) -> list[np.ndarray]:
        """Returns the float32 features (slots, V) of each record.

        inputs: the records' batch, where `collate` has made it already.

        Each record's features depend on that record alone, to rounding: padding is masked in the backbone's
        attention and has no weight in the pooling.
        """
        import torch

        with torch.inference_mode():
            if inputs is None:
                inputs = self.collate(records)
            hidden = self._hidden_states(inputs, provenance.layer).float()
            if provenance.pooling == "tokens":
                return [hidden[i, : len(record.tokens)].cpu().numpy() for i, record in enumerate(records)]
            weights = [
                slot_weights(provenance.pooling, record.is_image, list(record.image_grids), provenance.grid)
                for record in records
            ]
            padded = np.zeros((len(records), max(map(len, weights)), hidden.shape[1]), np.float32)
            for i, weight in enumerate(weights):
                padded[i, : weight.shape[0], : weight.shape[1]] = weight
            slots = torch.bmm(torch.from_numpy(padded).to(hidden.device), hidden).cpu().numpy()
            return [slots[i, : len(weight)] for i, weight in enumerate(weights)]

    def _hidden_states(self, inputs: dict[str, Any], layer: int):
        inputs = {name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        # The inner model has no language head, whose logits over the vocabulary nobody needs.
        if layer == -1:
            return self.model.model(**inputs, use_cache=False).last_hidden_state
        outputs = self.model.model(**inputs, use_cache=False, output_hidden_states=True)
        return outputs.hidden_states[layer]


def collate(records: list[PreparedRecord]) -> dict[str, Any]:
    """Returns the model's inputs for a batch: sequences padded at their end, patches one after another."""
    import torch

    length = max(len(record.tokens) for record in records)
    tokens = np.zeros((len(records), length), dtype=np.int64)
    attended = np.zeros_like(tokens)
    # Without these type ids the model silently gives image tokens the positions of text.
    token_types = np.zeros_like(tokens)
    for i, record in enumerate(records):
        tokens[i, : len(record.tokens)] = record.tokens
        attended[i, : len(record.tokens)] = 1
        token_types[i, : len(record.tokens)] = record.is_image
    inputs = {"input_ids": tokens, "attention_mask": attended, "mm_token_type_ids": token_types}
    with_images = [record for record in records if record.image_grids]
    if with_images:
        inputs["pixel_values"] = np.concatenate([record.patches for record in with_images])
        inputs["image_grid_thw"] = np.concatenate([record.patch_grids for record in with_images])
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


def find_backbone(
    path_or_id: str, *, max_pixels: int = DEFAULT_MAX_PIXELS, adapter: str | None = None
) -> BackboneFiles:
    """Finds a Qwen2.5-VL and its processor and identifies them by content, without loading the weights.

    path_or_id: a local directory or a model hub's `organisation/name`.
    max_pixels: see `PromptImageProcessor`.
    adapter: directory of a PEFT LoRA adapter, to be merged into the weights.

    Raises:
        UserError: backbone or adapter is missing, unreachable, incomplete, or of another kind.
    """
    import transformers

    folder = _local_folder(path_or_id)
    adapter_path = None if adapter is None else Path(adapter).expanduser()
    adapter_digest = None if adapter_path is None else content_digest(adapter_files(adapter_path))
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        if config.model_type != "qwen2_5_vl":
            raise ValueError(f"its model_type is {config.model_type!r}, not 'qwen2_5_vl'")
        if not _files(folder, ("*.safetensors",)):
            raise ValueError("it has no *.safetensors weights")
        processor = PromptImageProcessor(folder, max_pixels)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path_or_id}: cannot load a Qwen2.5-VL backbone from here ({error})") from error
    return BackboneFiles(
        folder=folder,
        name=str(folder.resolve()) if Path(path_or_id).expanduser().is_dir() else path_or_id,
        config=config,
        processor=processor,
        digest=content_digest([folder / "config.json", *_files(folder, _WEIGHT_FILES)]),
        adapter=adapter_path,
        adapter_digest=adapter_digest,
    )


def load_backbone(
    files: BackboneFiles, *, device: str | None = None, compute_dtype: str | None = None
) -> Backbone:
    """Loads the weights by `from_pretrained` and merges the adapter, if there is one.

    device: a torch device; None takes `default_device`.
    compute_dtype: `float32` or `bfloat16`; None takes bfloat16 on a GPU that computes in it, else float32.

    Raises:
        UserError: weights are missing or unreadable, or the adapter does not fit.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    device = device or default_device()
    if compute_dtype is None:
        compute_dtype = _default_compute_dtype(device)
    try:
        model = _load_model(files.folder, device, getattr(torch, compute_dtype))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{files.name}: cannot load the weights ({error})") from error
    if files.adapter is not None:
        model = merge_adapter(model, files.adapter)
    model.eval().requires_grad_(False)
    logger.info(
        "%s: %s on %s, attention %s", files.name, compute_dtype, device, model.config._attn_implementation
    )
    return Backbone(model, files.processor)


def check_device(device: str | None) -> None:
    """Refuses a torch device that is not there, before anything is read. None: `default_device`, which always is.

    Raises:
        UserError: there is no such device.
    """
    if device is None:
        return
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        gpus = torch.cuda.device_count()
        there = f"cpu and cuda:0 to cuda:{gpus - 1}" if gpus else "cpu; torch sees no GPU"
        raise UserError(f"--device {device} is not there: there is {there}") from error


def default_device() -> str:
    """Returns this process's GPU (LOCAL_RANK under torchrun), or the CPU where there is none."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def _default_compute_dtype(device: str) -> str:
    import torch

    if not device.startswith("cuda"):
        return "float32"
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        logger.warning("%s does not compute in bfloat16; using float32, which takes twice the memory", device)
        return "float32"
    return "bfloat16"


def _load_model(folder: Path, device: str, dtype):
    import transformers

    for attention in _ATTENTION:
        if attention == "flash_attention_2" and not _flash_attention_usable(device, dtype):
            continue
        try:
            # A pair, which only `output_loading_info` makes of it.
            loaded: Any = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
                folder, dtype=dtype, attn_implementation=attention, output_loading_info=True
            )
        except (ImportError, NotImplementedError) as error:
            logger.warning("attention %s is not available (%s); trying the next", attention, error)
            continue
        model, report = loaded
        absent = sorted(report["missing_keys"])
        if absent:
            # transformers would go on with random values in their place.
            raise ValueError(f"{len(absent)} weights are missing, the first is {absent[0]}")
        return model.to(device)
    raise ValueError(f"none of the attention implementations {', '.join(_ATTENTION)} is available")


def _flash_attention_usable(device: str, dtype) -> bool:
    from transformers.utils import is_flash_attn_2_available

    # Asked for where it is not installed, transformers would try to download a kernel.
    if not device.startswith("cuda"):
        return False
    usable = str(dtype) in ("torch.bfloat16", "torch.float16") and is_flash_attn_2_available()
    if not usable:
        logger.info("flash_attention_2 is not available for %s here; using sdpa", dtype)
    return usable


def _local_folder(path_or_id: str) -> Path:
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{path_or_id}: no backbone here (config.json is missing)")
        return folder
    if path_or_id.startswith(("/", ".", "~")) or path_or_id.count("/") != 1:
        raise UserError(
            f"{path_or_id}: no such directory; give a backbone's directory or a hub name such as "
            "Qwen/Qwen2.5-VL-3B-Instruct"
        )
    import huggingface_hub

    try:
        patterns = [*_WEIGHT_FILES, *_PROCESSOR_FILES]
        return Path(huggingface_hub.snapshot_download(path_or_id, allow_patterns=patterns))
    except Exception as error:
        # The hub's client raises errors of several libraries for "not found", "not allowed" and "no network".
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{path_or_id}: no such directory, and the model hub did not give it "
            f"({type(error).__name__}: {reason[0] if reason else 'no reason given'}); "
            "check the name and the network, or give a local directory"
        ) from error


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted(path for pattern in patterns for path in folder.glob(pattern))
