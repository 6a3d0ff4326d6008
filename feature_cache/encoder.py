"""Pictures and prompts → features: one way for the exporter's batches and for live pictures.

`RecordEncoder` makes the features of records, as a cache holds them; `FeatureEncoder` those of one observation, in the
slots of a policy.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from feature_cache.backbone import Backbone, find_backbone, load_backbone
from feature_cache.memory_limit import MemoryLimit, encode_within_memory
from feature_cache.pictures import Picture, rgb_image
from feature_cache.processor import PreparedRecord
from feature_cache.shard import storage_dtype
from vla_jax.contracts.provenance import DEFAULT_MAX_PIXELS, Provenance
from vla_jax.contracts.slots import SlotLayout
from vla_jax.contracts.specs import FeatureSpec
from vla_jax.errors import UserError


class RecordEncoder:
    """A loaded backbone with the settings of one provenance.

    `prepare` and `collate` may run in other threads, ahead of `encode`.
    """

    def __init__(self, backbone: Backbone, provenance: Provenance) -> None:
        self.backbone = backbone
        self.provenance = provenance
        self._limit = MemoryLimit()

    def prepare(self, prompt: str, images: Sequence[tuple[str, Picture]]) -> PreparedRecord:
        """Returns the tokens and patches of one record. images: name and picture of those there are, in view order."""
        pictures = [rgb_image(picture, name) for name, picture in images]
        return self.backbone.processor.prepare(prompt, pictures)

    def collate(self, records: list[PreparedRecord]) -> dict[str, Any]:
        """Returns the batch of these records on the host, ready to be copied to the device in the background."""
        return self.backbone.collate(records)

    def encode(
        self, records: list[PreparedRecord], inputs: dict[str, Any] | None = None
    ) -> list[Float[np.ndarray, "_ v"]]:
        """Returns the float32 features of each record, whatever else is in the batch.

        inputs: the records' batch, where `collate` has made it already.

        Raises:
            UserError: memory does not suffice for one record.
        """
        return encode_within_memory(self.backbone, records, self.provenance, self._limit, inputs)


class FeatureEncoder:
    """What a policy sees of live pictures (`vla_jax.contracts.feature_encoder`). Build it with `open`.

    spec: what the features are, and the slots they fill. views: names of the views, in the order of their slots.
    """

    def __init__(self, records: RecordEncoder, spec: FeatureSpec, views: Sequence[str]) -> None:
        self.spec = spec
        self.views = tuple(views)
        self._records = records
        self._layout = SlotLayout.of(records.provenance, len(self.views), spec.num_slots)
        self._storage_dtype = storage_dtype(records.provenance.dtype)
        if self._layout.num_slots != spec.num_slots:
            raise UserError(
                f"{len(self.views)} views ({', '.join(self.views)}) give {self._layout.num_slots} feature slots, "
                f"the policy has {spec.num_slots}; give the views of its data set"
            )

    @classmethod
    def open(
        cls,
        backbone: str | Path,
        spec: FeatureSpec,
        views: Sequence[str],
        *,
        adapter: str | None = None,
        device: str | None = None,
        compute_dtype: str | None = None,
    ) -> "FeatureEncoder":
        """Loads the backbone that made a policy's features, with their settings.

        backbone: a local directory, or a model hub's name.
        spec, views: the policy's features, and the views of the data it was trained on.
        adapter: directory of the LoRA adapter, where the features were made with one.
        device, compute_dtype: see `load_backbone`.

        Raises:
            UserError: it is not what made the policy's features (with all differences), or it cannot be loaded.
        """
        wanted = spec.provenance
        if wanted is None or wanted.is_imported:
            raise UserError(
                f"{backbone}: the policy does not say which backbone and settings made its features, so that none "
                "can be told to be the right ones; train on exported features"
            )
        max_pixels = wanted.processor.get("size", {}).get("longest_edge", DEFAULT_MAX_PIXELS)
        files = find_backbone(str(backbone), max_pixels=max_pixels, adapter=adapter)
        found = files.provenance(
            pooling=wanted.pooling, grid=wanted.grid, layer=wanted.layer, dtype=wanted.dtype
        )
        differences = found.differences(wanted)
        if differences:
            raise UserError(
                f"{backbone}: does not make the policy's features: {'; '.join(differences)}; give the backbone and "
                f"the adapter of its export ({wanted.export_options()})"
            )
        loaded = load_backbone(files, device=device, compute_dtype=compute_dtype)
        return cls(RecordEncoder(loaded, wanted), spec, views)

    def encode(
        self, prompt: str, images: Mapping[str, Picture]
    ) -> tuple[Float[np.ndarray, "s v"], Bool[np.ndarray, " s"]]:
        """Returns the features of one observation in the policy's slots (float32), and which slots are there.

        `encode_batch` of one.
        """
        values, mask = self.encode_batch([(prompt, images)])
        return values[0], mask[0]

    def encode_batch(
        self, observations: Sequence[tuple[str, Mapping[str, Picture]]]
    ) -> tuple[Float[np.ndarray, "n s v"], Bool[np.ndarray, "n s"]]:
        """Returns the features of observations in the policy's slots (float32), and which slots are there.

        They are rounded as a cache stores them, so that a policy sees what it was trained on.

        observations: prompt, and view → picture; a view that is absent is masked.

        Raises:
            UserError: a view that the policy does not have, a damaged picture, or more tokens than slots.
        """
        unknown = sorted({view for _, images in observations for view in images} - set(self.views))
        if unknown:
            raise UserError(
                f"view {unknown[0]!r} is none of the policy's: {', '.join(self.views) or 'it has none'}"
            )
        present = np.array([[view in images for view in self.views] for _, images in observations], bool)
        records = [
            self._records.prepare(prompt, [(view, images[view]) for view in self.views if view in images])
            for prompt, images in observations
        ]
        features = self._records.encode(records)
        num_tokens = max(map(len, features))
        if not self._layout.cells and num_tokens > self.spec.num_slots:
            raise UserError(
                f"prompt and pictures make {num_tokens} tokens, the policy reads at most {self.spec.num_slots}; "
                "use the prompts and picture sizes of its data set"
            )
        mask = self._layout.mask(present, np.array([len(record) for record in features]))
        values = np.zeros((len(records), self.spec.num_slots, self.spec.width), np.float32)
        self._layout.place([record.astype(self._storage_dtype) for record in features], mask, values)
        return values, mask
