"""A tiny, randomly initialised Qwen2.5-VL on disk, for tests and demos where no model hub is at hand.

It is written by the real `transformers` classes and loads by `from_pretrained` like `Qwen/Qwen2.5-VL-3B-Instruct`:
configuration, safetensors weights, byte-level BPE tokenizer, chat template and image processor. The same seed
gives the same files.
"""

import json
import os
from pathlib import Path

from vla_jax.errors import UserError
from vla_jax.storage.replacing import replace_folder, temporary_folder

# In the order of the real vocabulary; their ids follow the byte-pair merges.
_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# The wording matters little: it only has to hold the merges that make common words one token.
_CORPUS = (
    "You are a helpful assistant.",
    "Insert the needle into the red marker.",
    "Insert the needle into the green target and stop at the blue layer.",
    "Insert the needle into the trocar of the eye phantom.",
    "Move the yellow object to the left of the orange pot, then put the towel on the table.",
    "system user assistant insert needle marker target trocar phantom layer red green blue yellow white black",
)
_VOCABULARY_SIZE = 512

# Qwen2.5-VL's own template (Apache-2.0), images only.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_backbone(out: str | os.PathLike, *, seed: int = 0) -> Path:
    """Writes a tiny Qwen2.5-VL with its processor into `out` and returns the path.

    The language model has 2 layers of width 64, the vision tower 2 layers of width 32. Weights are drawn as
    `transformers` does, except for the vision tower's first layer, see `_make_eyes`.

    Raises:
        UserError: `out` holds something else, or cannot be written to.
    """
    import transformers
    from safetensors import SafetensorError

    transformers.utils.logging.disable_progress_bar()
    out = Path(out)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "config.json").exists())):
        raise UserError(f"{out}: exists and is no backbone; choose a new directory")
    try:
        with temporary_folder(out) as folder:
            tokenizer = _tokenizer()
            tokenizer.save_pretrained(folder)
            _image_processor().save_pretrained(folder)
            _model(tokenizer, seed).save_pretrained(folder)
            replace_folder(folder, out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out}: cannot write a backbone here ({error})") from error
    return out


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_SIZE - len(_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(_CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],  # pyrefly: ignore[bad-argument-type]: it takes pairs too
        unk_token=None,  # pyrefly: ignore[bad-argument-type]: bytes need none
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(_SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
    )


def _image_processor():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil()


def _model(tokenizer, seed: int):
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in _SPECIAL_TOKENS}
    width = 64
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            # Half a head's width, divided among time, height and width.
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": width,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.06,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config).float()
        with torch.no_grad():
            _make_eyes(model.model.visual)
    return model


def _make_eyes(visual) -> None:
    """Gives a random vision tower the kind of first layer that trained ones have: smooth, colour-opponent filters.

    White-noise filters answer mostly to brightness and pixel noise, and the norms behind them keep the direction
    of the answer only, so that a small marker hardly shows. Read out linearly on the alignment phase of 30 phantom
    episodes after a fit on 90 others, the marker's lateral offset has R² 0.67 and 0.72 with white filters, 0.93
    and 0.89 with these (2×2 cells; 0.27 and 0.29 from the mean), and the needle's depth 0.99. The filters were
    chosen by those same episodes, so their figures flatter them a little.
    """
    import torch

    weight = visual.patch_embed.proj.weight
    num_filters, _, frames, _, size = weight.shape
    distance = torch.arange(size)[:, None] - torch.arange(size)[None]
    correlation_pixels, brightness_share = 10.0, 0.05
    covariance = torch.exp(-((distance / correlation_pixels) ** 2) / 2) + 1e-4 * torch.eye(size)
    smooth = torch.linalg.cholesky(covariance)
    shape = smooth @ torch.randn(num_filters, size, size) @ smooth.T
    colour = torch.randn(num_filters, 3)
    brightness = colour.mean(dim=1, keepdim=True)
    colour = torch.nn.functional.normalize(colour - (1 - brightness_share) * brightness)
    filters = colour[:, :, None, None] * shape[:, None]
    # One picture fills all frames of a patch.
    weight.copy_((0.02 * filters / filters.std())[:, :, None].expand(-1, -1, frames, -1, -1))
    # A constant part of each patch keeps the norms from blowing up patches that show nothing.
    for block in visual.blocks:
        block.attn.proj.bias.normal_()
        block.mlp.down_proj.bias.normal_()
