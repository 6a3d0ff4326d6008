"""Prompts as the backbone reads them: tokens, by a tokenizer on disk; needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Prompt:
    """One prompt of a data set. tokens, ids: None where no tokenizer was given."""

    text: str
    episodes: int
    tokens: tuple[str, ...] | None = None
    ids: tuple[int, ...] | None = None


def prompts_of(dataset: PackedDataset, tokenizer: Path | None = None) -> list[Prompt]:
    """Returns the prompts of a data set in the order of their first episodes, with their tokens.

    tokenizer: a backbone's folder, or its tokenizer.json. The tokens are the prompt's alone: the chat template and
    the pictures' tokens around it are added on export.

    Raises:
        UserError: the `tokenizers` package or the file is missing, or the file is damaged.
    """
    counts: dict[str, int] = {}
    for entry in dataset.episodes:
        counts[entry.instruction] = counts.get(entry.instruction, 0) + 1
    if tokenizer is None:
        return [Prompt(text, count) for text, count in counts.items()]
    model = _load(tokenizer)
    found = []
    for text, count in counts.items():
        ids = model.encode(text, add_special_tokens=False).ids
        # Decoded one by one, a byte-level token is readable; a part of a character stays a replacement sign.
        found.append(Prompt(text, count, tuple(model.decode([i]) for i in ids), tuple(ids)))
    return found


def _load(path: Path):
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"{file}: no such tokenizer; give a backbone's folder with {TOKENIZER_FILE} in it, as "
            "`python -m experiments.tiny_backbone OUT` or the model hub writes it"
        )
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError("prompt tokens need the tokenizers package: pip install tokenizers") from error
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # The library raises nothing narrower.
        raise UserError(f"{file}: is no tokenizer ({error})"[:300]) from error
