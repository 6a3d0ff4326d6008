import numpy as np
import pytest
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.processing_utils import ProcessorMixin

from feature_cache.processor import PromptImageProcessor, parse_image_size
from tests.feature_cache.conftest import random_image
from vla_jax.contracts.provenance import DEFAULT_MAX_PIXELS
from vla_jax.errors import UserError


class StockProcessor(Qwen2_5_VLProcessor):
    """The stock processor without its video part, which needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def make_stock(processor):
    return StockProcessor(
        processor.image_processor, processor.tokenizer, chat_template=processor.chat_template
    )


def stock_inputs(processor, prompt, images):
    stock = make_stock(processor)
    text = stock.apply_chat_template(
        processor.messages(prompt, len(images)), tokenize=False, add_generation_prompt=True
    )
    return stock(text=[text], images=images or None, return_tensors="pt")


@pytest.fixture(scope="module")
def processor(tiny_path):
    return PromptImageProcessor(tiny_path, 360 * 640)


RECORDS = {
    "three views": ("insert the needle", [random_image(i, 112, 112) for i in range(3)]),
    "views of several sizes": ("go on", [random_image(1, 56, 84), random_image(2, 420, 700)]),
    "no image": ("just text", []),
    "an unusual prompt": ("  größer\n\n<|im_end|> 针 ", [random_image(3)]),
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS.keys())
def test_records_equal_the_stock_processors_call(processor, record):
    prepared = processor.prepare(*record)
    stock = stock_inputs(processor, *record)
    np.testing.assert_array_equal(prepared.tokens, stock["input_ids"][0].numpy())
    np.testing.assert_array_equal(prepared.is_image, stock["mm_token_type_ids"][0].numpy() == 1)
    if record[1]:
        np.testing.assert_array_equal(prepared.patches, stock["pixel_values"].numpy())
        np.testing.assert_array_equal(prepared.patch_grids, stock["image_grid_thw"].numpy())
    sizes = [(image.height, image.width) for image in record[1]]
    assert processor.num_tokens(record[0], sizes) == len(prepared.tokens)


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((112, 112), (4, 4)),
        ((64, 64), (2, 2)),
        ((360, 640), (12, 22)),
        ((720, 1280), (12, 22)),
        ((16, 20), (1, 1)),
    ],
)
def test_images_are_shrunk_to_the_budget_and_never_enlarged(processor, size, grid):
    (image_grid,) = processor.prepare("go", [random_image(0, 140, 140).resize(size[::-1])]).image_grids
    assert image_grid == grid


def test_settings_name_the_size_and_differ_with_it(tiny_path, processor):
    assert processor.settings()["size"]["longest_edge"] == 360 * 640
    assert PromptImageProcessor(tiny_path, 180 * 320).settings() != processor.settings()
    assert PromptImageProcessor(tiny_path, 180 * 320).template_digest() == processor.template_digest()


def test_a_prompt_may_not_hold_the_image_token(processor):
    with pytest.raises(UserError, match="must not contain the image token"):
        processor.prepare("look at <|image_pad|>", [random_image(0)])


def test_a_tokenizer_without_chat_template_is_refused(tiny_path, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_path, tmp_path / "tiny")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        PromptImageProcessor(folder, 360 * 640)
    import json

    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert PromptImageProcessor(folder, 360 * 640).chat_template == template


def test_image_sizes_are_parsed():
    assert parse_image_size("360x640") == parse_image_size("230400") == 230400
    for text in ("", "360x", "ax3", "360x640x3", "-3x4"):
        with pytest.raises(UserError, match="write HEIGHTxWIDTH"):
            parse_image_size(text)


def test_an_image_size_below_one_token_is_refused():
    with pytest.raises(UserError, match="at least 28x28"):
        parse_image_size("20x30")


def test_calls_of_the_tokenizer_do_not_change_the_identity(tiny_path):
    """Padding is kept in the tokenizer after a call; it is no part of what makes the tokens."""
    processor = PromptImageProcessor(tiny_path, DEFAULT_MAX_PIXELS)
    before = processor.template_digest()
    processor.tokenizer(["one", "one and two"], padding=True)
    assert processor.template_digest() == before
    assert PromptImageProcessor(tiny_path, DEFAULT_MAX_PIXELS).template_digest() == before
