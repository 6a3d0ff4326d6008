"""A policy, with or without its backbone, that answers requests of several clients at once."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from vla_jax.contracts.feature_encoder import FeatureEncoder
from vla_jax.contracts.observation import Observation
from vla_jax.errors import UserError
from vla_jax.policy.chunk_execution import plan_arguments
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.serving.batching import Batcher
from vla_jax.serving.pictures import decode
from vla_jax.serving.request_spec import RequestSpec
from vla_jax.serving.requests import Request, RequestError, read_request

MAX_BATCH = 8
WARM_UP_SIDE = 56


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """Returns the batch sizes that are compiled: powers of two, and the largest."""
    powers = [2**power for power in range(max_batch.bit_length()) if 2**power < max_batch]
    return (*powers, max_batch)


class PolicyService:
    """Answers requests: `warm_up` once, then `answer` from one event loop, `close` at the end.

    The policy predicts in one thread and the backbone encodes in another; each takes what has gathered as a batch.
    """

    def __init__(
        self, policy: InsertionPolicy, encoder: FeatureEncoder | None = None, *, max_batch: int = MAX_BATCH
    ) -> None:
        """encoder: of the policy's features; without one, requests with pictures are refused."""
        self.policy = policy
        self.spec = RequestSpec.of(policy, takes_pictures=encoder is not None)
        self.batch_sizes = batch_sizes(max_batch)
        self._encoder = encoder
        self._predicting = Batcher(self._predict, max_batch, name="predict")
        self._encoding = Batcher(self._encode, max_batch, name="encode")
        self._keys = jax.jit(_keys_of_seeds)

    def warm_up(self) -> None:
        """Compiles for every batch size that will be used; nothing is compiled after that."""
        example = _example(self.spec)
        for size in self.batch_sizes:
            self._predict([example] * size)
        if self._encoder is not None:
            grey = np.full((WARM_UP_SIDE, WARM_UP_SIDE, 3), 128, np.uint8)
            looking = replace(example, prompt="warm-up", images=dict.fromkeys(self.spec.views, grey))
            # Pictures of other sizes than the policy's may have more tokens than it reads.
            with contextlib.suppress(UserError):
                self._encode([looking])

    async def answer(self, message: Any) -> dict[str, Any]:
        """Returns the reply to a decoded message: the actions [h, a], float32 in recorded units, and timings.

        `policy_timing`: infer_ms and encode_ms of the batches that the request was in, and its predictions' size.
        `server_timing`: infer_ms from here to the result, and wait_ms of it until batches were begun.

        Raises:
            RequestError: the request does not fit, or leads to actions that are not finite.
        """
        begun = time.perf_counter()
        request = read_request(message, self.spec)
        timing: dict[str, float] = {}
        waited = 0.0
        if request.images is not None:
            encoded = await self._encoding.submit(request)
            vl, vl_mask = encoded.value
            request = replace(request, vl=vl, vl_mask=vl_mask, images=None)
            timing["encode_ms"] = 1e3 * encoded.took_s
            waited += encoded.waited_s
        predicted = await self._predicting.submit(request)
        waited += predicted.waited_s
        timing |= {"infer_ms": 1e3 * predicted.took_s, "batch_size": predicted.batch_size}
        return {
            "actions": predicted.value,
            "policy_timing": timing,
            "server_timing": {"infer_ms": 1e3 * (time.perf_counter() - begun), "wait_ms": 1e3 * waited},
        }

    def close(self) -> None:
        """Waits for what is being computed, and ends the threads."""
        self._encoding.close()
        self._predicting.close()

    def _encode(self, requests: Sequence[Request]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns features and mask of each request with pictures."""
        assert self._encoder is not None
        decoded = [
            (
                request.prompt or "",
                {view: decode(picture, f"images/{view}") for view, picture in (request.images or {}).items()},
            )
            for request in requests
        ]
        values, masks = self._encoder.encode_batch(decoded)
        return list(zip(values, masks, strict=True))

    def _predict(self, requests: Sequence[Request]) -> list[Float[np.ndarray, "h a"]]:
        """Returns the actions of each request, in a batch of a size that is compiled."""
        size = next(size for size in self.batch_sizes if size >= len(requests))
        rows = [*requests, *[requests[-1]] * (size - len(requests))]
        seeds = np.array([row.seed for row in rows], np.uint32)
        try:
            actions = self.policy.infer(self._observation(rows), self._keys(seeds))
        except ValueError as error:
            raise RequestError(str(error)) from error
        return list(actions[: len(requests)])

    def _observation(self, rows: Sequence[Request]) -> Observation:
        arrays = self.spec.arrays

        def stacked(name: str) -> np.ndarray | None:
            is_read = name in arrays and arrays[name].is_read
            return np.stack([getattr(row, name) for row in rows]) if is_read else None

        sensor = has_sensor = None
        if "sensor" in arrays and arrays["sensor"].is_read:
            empty = np.zeros(arrays["sensor"].shape, np.float32)
            sensor = np.stack([empty if row.sensor is None else row.sensor for row in rows])
            has_sensor = np.array([row.sensor is not None for row in rows])
        planned: dict[str, np.ndarray] = {}
        if "prefix" in arrays:
            no_plan = np.zeros((0, arrays["prefix"].shape[1]), np.float32)
            plans = [no_plan if row.prefix is None else row.prefix for row in rows]
            promised = [row.prefix_length for row in rows]
            planned = plan_arguments(plans, promised, arrays["prefix"].shape[0])
        window = window_mask = None
        if "state_window" in arrays:
            empty = np.zeros(arrays["state_window"].shape, np.float32)
            window = np.stack([empty if row.state_window is None else row.state_window for row in rows])
            window_mask = np.stack([_window_mask(row, len(empty)) for row in rows])
        return Observation(
            vl=stacked("vl"),
            vl_mask=stacked("vl_mask"),
            sensor=sensor,
            has_sensor=has_sensor,
            state=stacked("state"),
            state_window=window,
            state_window_mask=window_mask,
            feature_age=stacked("feature_age"),
            previous_chunk=stacked("previous_chunk"),
            **planned,
        )


def _window_mask(row: Request, size: int) -> np.ndarray:
    """Returns which of the arm's last states a request holds."""
    if row.state_window is None:
        return np.zeros(size, bool)
    return np.ones(size, bool) if row.state_window_mask is None else row.state_window_mask


def _keys_of_seeds(seeds: Array) -> Key[Array, " b"]:
    """Returns the keys of rows, so that a request draws what `InsertionPolicy.predict` draws for one row with
    `jax.random.key(seed)`, whatever batch it is in."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 0))(seeds)


def _example(spec: RequestSpec) -> Request:
    """Returns a request of the right shapes: zero everywhere, everything present."""
    zeros = {name: np.zeros(entry.shape, entry.dtype) for name, entry in spec.arrays.items()}
    promised = {"prefix_length": 0} if "prefix" in zeros else {}
    return read_request(zeros | promised | {"vl_mask": np.ones(spec.arrays["vl"].shape[:1], bool)}, spec)
