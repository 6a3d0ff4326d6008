"""What made a set of vision-language features: a digest of everything their content depends on, beside the inputs."""

import dataclasses
import hashlib
import json
from typing import Any, Literal, get_args

from vla_jax.errors import UserError

Pooling = Literal["grid", "mean", "last", "tokens"]
POOLINGS = get_args(Pooling)
StorageDtype = Literal["float16", "bfloat16"]
STORAGE_DTYPES = get_args(StorageDtype)

# Part of every digest: raise it when the same inputs begin to give other features.
KEY_VERSION = 1

# Pixels of an image above which it is shrunk: the area of 360 × 640.
DEFAULT_MAX_PIXELS = 360 * 640

NAME_LENGTH = 16
# Cells per side of an image's grid; a large image has no more tokens than that.
MAX_GRID = 64


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What made the records of one cache directory, beside their prompts and images."""

    backbone: str
    """Digest of the backbone's configuration and weights."""
    backbone_name: str
    """Where the backbone came from, for people; not part of the digest."""
    adapter: str | None
    """Digest of the LoRA adapter merged into the backbone, or None."""
    processor: dict[str, Any]
    """Settings of the image processor that change its output, the image size among them (JSON values)."""
    chat_template: str
    """Digest of the tokenizer and of the template that makes a token sequence of prompt and images."""
    pooling: Pooling = "grid"
    """Slots per record: K×K cells of each image and the mean of the text; the mean of all tokens; the last token; or
    all tokens."""
    grid: int = 2
    """Cells per side of each image, for `--pooling grid`."""
    layer: int = -1
    """Hidden layer to take: -1 is the last, after the final norm; 0 the embeddings."""
    dtype: StorageDtype = "float16"
    """Number type of the stored features."""

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            raise UserError(f"pooling {self.pooling!r} is unknown; choose one of {', '.join(POOLINGS)}")
        if self.dtype not in STORAGE_DTYPES:
            raise UserError(f"dtype {self.dtype!r} is unknown; choose one of {', '.join(STORAGE_DTYPES)}")
        if self.pooling == "grid" and not 1 <= self.grid <= MAX_GRID:
            raise UserError(
                f"grid {self.grid} is impossible: grid pooling needs at least 1 cell per side, at most {MAX_GRID}"
            )

    def digest(self) -> str:
        """Returns the hex digest (64 characters) of all fields that decide the records' content."""
        fields = dataclasses.asdict(self)
        del fields["backbone_name"]
        if self.pooling != "grid":
            del fields["grid"]
        fields["key_version"] = KEY_VERSION
        return hashlib.sha256(canonical_json(fields).encode()).hexdigest()

    def name(self) -> str:
        """Returns the directory name of these records inside a cache: the digest's first 16 characters."""
        return self.digest()[:NAME_LENGTH]

    @property
    def is_imported(self) -> bool:
        """Whether the records were made elsewhere, so that no export can add to them."""
        return "imported_from" in self.processor

    def export_options(self) -> str:
        """Returns the options of `experiments.export` that make features of this provenance.

        The adapter's directory is not known any more and stands as DIR.
        """
        pixels = self.processor.get("size", {}).get("longest_edge", DEFAULT_MAX_PIXELS)
        options = {
            "--backbone": self.backbone_name,
            "--pooling": self.pooling if self.pooling != "grid" else None,
            "--grid": self.grid if self.pooling == "grid" and self.grid != 2 else None,
            "--image-size": pixels if pixels != DEFAULT_MAX_PIXELS else None,
            "--adapter": "DIR" if self.adapter else None,
            "--layer": self.layer if self.layer != -1 else None,
            "--dtype": self.dtype if self.dtype != "float16" else None,
        }
        return " ".join(f"{name} {value}" for name, value in options.items() if value is not None)

    def to_json(self) -> str:
        """Returns all fields, the digest and the key version as indented JSON."""
        fields = {**dataclasses.asdict(self), "digest": self.digest(), "key_version": KEY_VERSION}
        return json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, *, source: str) -> "Provenance":
        """Builds a provenance from the text of `to_json`; `source` names the file in errors.

        Raises:
            UserError: the text is damaged, of another key version, or disagrees with its own digest.
        """
        try:
            fields = json.loads(text)
            digest, version = fields.pop("digest"), fields.pop("key_version")
            provenance = cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{source}: damaged, does not describe a feature provenance ({error})") from error
        if version != KEY_VERSION:
            raise UserError(
                f"{source}: written with key version {version}, this program uses {KEY_VERSION}; "
                "export into a new cache directory"
            )
        if digest != provenance.digest():
            raise UserError(f"{source}: damaged, its fields do not give its digest {digest[:NAME_LENGTH]}")
        return provenance

    def differences(self, other: "Provenance") -> list[str]:
        """Returns where `other`, the policy's, disagrees, one sentence for each field."""
        ours, theirs = (json.loads(provenance.to_json()) for provenance in (self, other))
        names = [field.name for field in dataclasses.fields(self) if field.name != "backbone_name"]
        if "grid" not in (self.pooling, other.pooling):
            names.remove("grid")
        return [
            f"{name} is {ours[name]!r}, the policy's {theirs[name]!r}"
            for name in names
            if ours[name] != theirs[name]
        ]


def canonical_json(value: Any) -> str:
    """Returns the one text that stands for a JSON value in digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
