"""Prompt and images → the token sequence and image patches that Qwen2.5-VL reads; numpy and PIL only at run time.

The pieces are the backbone's own, from `from_pretrained`: tokenizer, chat template and image processor. The image
processor is always the PIL one, with torchvision installed or not, so that a cache can be filled on machines of
both kinds (the two resize slightly differently).
"""

import dataclasses
import hashlib
import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vla_jax.errors import UserError

_TOKEN_PIXELS = 28 * 28

# Settings of the image processor that change its output, with the names of `preprocessor_config.json`.
_SETTINGS = (
    "do_resize",
    "size",
    "resample",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_convert_rgb",
    "patch_size",
    "temporal_patch_size",
    "merge_size",
)


@dataclasses.dataclass(frozen=True)
class PreparedRecord:
    """One record, ready for the backbone."""

    tokens: np.ndarray
    """int64 (tokens,)"""
    is_image: np.ndarray
    """bool (tokens,)"""
    patches: np.ndarray
    """float32 (patches, values): all images, one after another"""
    patch_grids: np.ndarray
    """int64 (images, 3): time, rows, columns of patches of each image"""
    image_grids: tuple[tuple[int, int], ...]
    """(rows, columns) of tokens of each image"""


class PromptImageProcessor:
    """The processor of one backbone with a fixed image size; safe to use from several threads.

    folder: a backbone as `save_pretrained` or the model hub lays it out.
    max_pixels: images of more pixels are shrunk to that many, keeping their shape; none is enlarged. Either side
        then becomes a multiple of 28 pixels, one token's extent.
    """

    def __init__(self, folder: str | Path, max_pixels: int):
        from transformers import AutoTokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer is not None, "None is for models without one"
        self.tokenizer = tokenizer
        # Despite their names these are areas, in the image processors of this family.
        self.image_processor = Qwen2VLImageProcessorPil.from_pretrained(
            folder, size={"shortest_edge": _TOKEN_PIXELS, "longest_edge": max_pixels}
        )
        self.chat_template = _chat_template(self.tokenizer, Path(folder))
        self.image_token_id = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        # Taken now: a later call with padding changes what the tokenizer says of itself.
        description = tokenizer.backend_tokenizer.to_str()
        self._template_digest = hashlib.sha256(
            json.dumps([self.chat_template, description]).encode()
        ).hexdigest()
        self._prompt_tokens = lru_cache(maxsize=4096)(self._tokenize)

    def settings(self) -> dict[str, Any]:
        """Returns what decides the patches of an image, as JSON values."""
        values = self.image_processor.to_dict()
        settings = json.loads(json.dumps({name: values[name] for name in _SETTINGS}))
        return {**settings, "resample": int(values["resample"]), "backend": "pil"}

    def template_digest(self) -> str:
        """Returns the hex digest of the chat template and of the tokenizer, which together make the tokens."""
        return self._template_digest

    def messages(self, prompt: str, num_images: int) -> list[dict]:
        """Returns the conversation that is encoded: one user turn, the images before the prompt."""
        images = [{"type": "image"} for _ in range(num_images)]
        return [{"role": "user", "content": [*images, {"type": "text", "text": prompt}]}]

    def _tokenize(self, prompt: str, num_images: int) -> np.ndarray:
        text = self.tokenizer.apply_chat_template(
            self.messages(prompt, num_images),
            chat_template=self.chat_template,
            tokenize=False,
            add_generation_prompt=True,
        )
        tokens = np.array(self.tokenizer(text)["input_ids"], dtype=np.int64)
        if int((tokens == self.image_token_id).sum()) != num_images:
            raise UserError(f"prompt {prompt!r}: must not contain the image token <|image_pad|>")
        return tokens

    def num_tokens(self, prompt: str, image_sizes: list[tuple[int, int]]) -> int:
        """Returns the length of the token sequence of a prompt with images of (height, width) pixels."""
        merged = self.image_processor.merge_size**2
        image_tokens = sum(
            self.image_processor.get_number_of_image_patches(height, width) // merged
            for height, width in image_sizes
        )
        return len(self._prompt_tokens(prompt, len(image_sizes))) - len(image_sizes) + image_tokens

    def prepare(self, prompt: str, images: list[Image.Image]) -> PreparedRecord:
        """Returns the tokens and patches of one record, equal to those of the stock processor's call."""
        tokens = self._prompt_tokens(prompt, len(images))
        if images:
            inputs = self.image_processor(images=images, return_tensors="np")
            patches, patch_grids = inputs["pixel_values"], np.asarray(inputs["image_grid_thw"], np.int64)
        else:
            patches, patch_grids = np.empty((0, 0), np.float32), np.empty((0, 3), np.int64)
        merge = self.image_processor.merge_size
        image_grids = tuple((int(rows) // merge, int(columns) // merge) for _, rows, columns in patch_grids)
        # Special tokens split the text before byte-pair merging, so repeating their ids afterwards gives the
        # same sequence as tokenizing the text with them repeated.
        repeats = np.ones(len(tokens), dtype=np.int64)
        repeats[tokens == self.image_token_id] = [rows * columns for rows, columns in image_grids]
        tokens = np.repeat(tokens, repeats)
        return PreparedRecord(tokens, tokens == self.image_token_id, patches, patch_grids, image_grids)


def parse_image_size(text: str) -> int:
    """Returns the number of pixels that `HEIGHTxWIDTH`, or a plain number of pixels, allows."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise UserError(
            f"--image-size {text!r}: write HEIGHTxWIDTH in pixels, such as 360x640, or one number"
        )
    pixels = math.prod(int(side) for side in sides)
    if pixels < _TOKEN_PIXELS:
        raise UserError(f"--image-size {text!r}: an image needs at least 28x28 pixels, one token's extent")
    return pixels


def _chat_template(tokenizer, folder: Path) -> str:
    if isinstance(tokenizer.chat_template, str):
        return tokenizer.chat_template
    # The layout of the hub before transformers 4.51: a template beside the tokenizer.
    old = folder / "chat_template.json"
    if old.is_file():
        return json.loads(old.read_text(encoding="utf-8"))["chat_template"]
    raise UserError(f"{folder}: no chat template (chat_template.jinja) beside the tokenizer")
