"""How long does a decode step take? The engine's own program on a full batch of random weights and random pages.

Weights and keys of any value cost the same, so no checkpoint and no prompt is needed to time a model of true size.
Called by `kinetics bench decode`. Left out: prefill, admission, and whatever the host does between calls.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding
from jaxtyping import DTypeLike

from kinetics_jax.attention import DATA_AXIS
from kinetics_jax.models import Decoder, abstract_decoder, shard_decoder
from kinetics_jax.specs import AttentionSpec, ModelSpec, PageSelection, SamplingSpec

from ._call import Batch, CallWriter
from ._pools import Pools, pool_shardings
from ._processes import place_call, place_rows
from ._programs import Programs
from ._token import sample_token

_WEIGHT_SCALE, _NUM_DRAWS = 0.02, 16


@dataclass(frozen=True, kw_only=True)
class DecodeTiming:
    """Hold what a batch of decoding sequences took.

    Attributes:
        step_s: Time of a step, sampling included, the host's share of a call spread over its steps [s].
        sample_s: Time of drawing the tokens alone [s].
        num_runs: Calls timed; both times are medians of as many.
        device: Kind of the device.
    """

    step_s: float
    sample_s: float
    num_runs: int
    device: str


def random_model(spec: ModelSpec, *, dtype: DTypeLike = jnp.bfloat16, mesh: Mesh | None = None) -> Decoder:
    """Return a decoder of random weights on the default device or a mesh, made leaf by leaf: nothing is there twice.

    Args:
        spec: Its geometry.
        dtype: Of computation and weights.
        mesh: As `shard_decoder`, or None.

    Example:
        >>> from kinetics_jax.specs import MODELS
        >>> random_model(MODELS["Kinetics-Mini-0.1M"]).embed.embedding[...].dtype.name
        'bfloat16'
    """

    @cache
    def maker(shape: tuple[int, ...], kind: jnp.dtype, place: Sharding | None):
        def make(key: jax.Array) -> jax.Array:
            return (_WEIGHT_SCALE * jax.random.normal(key, shape, jnp.float32)).astype(kind)

        return jax.jit(make, out_shardings=place)

    shapes, structure = jax.tree.flatten(_shapes_of_model(spec, dtype, mesh))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    leaves = [maker(leaf.shape, leaf.dtype, leaf.sharding)(key) for leaf, key in zip(shapes, keys, strict=True)]
    return jax.tree.unflatten(structure, leaves)


class DecodeTimer:
    """Time decode steps of `batch_size` sequences that hold `context_len` tokens each, with pages all over the pool.

    Compiled when made, from shapes alone: the weights come later, and may be on the device after others have left it.

    Args:
        spec: The language model.
        attention: Which cache entries a step reads.
        context_len: Tokens that each sequence holds before the first step timed [tokens].
        batch_size: Sequences, B.
        sampling: How tokens are drawn; None is the paper's: temperature 0.6, top-k 20, top-p 0.95.
        page_len: Tokens in a page, where the attention does not say.
        num_steps: Steps a call.
        dtype: Of weights and cache.
        mesh: Axes "data" (sequences) and "model" (heads) to run on, or None for the default device.

    Raises:
        ValueError: If a size is not positive, or the data axis does not divide the batch.

    Example:
        >>> from kinetics_jax.specs import MODELS, Dense
        >>> spec = MODELS["Kinetics-Mini-0.1M"]
        >>> timer = DecodeTimer(spec, Dense(), context_len=30, batch_size=2, num_steps=2, dtype="float32")
        >>> timer.time(random_model(spec, dtype="float32"), num_runs=1).num_runs
        1

    References:
        docs/sampling.md, "The engine".
    """

    def __init__(
        self,
        spec: ModelSpec,
        attention: AttentionSpec,
        *,
        context_len: int,
        batch_size: int,
        sampling: SamplingSpec | None = None,
        page_len: int = 16,
        num_steps: int = 16,
        dtype: DTypeLike = jnp.bfloat16,
        mesh: Mesh | None = None,
    ):
        _check_positive(context_len=context_len, batch_size=batch_size, num_steps=num_steps)
        num_groups = 1 if mesh is None else mesh.shape[DATA_AXIS]
        if batch_size % num_groups:
            raise ValueError(f"batch_size must be a multiple of the data axis, {num_groups}; got {batch_size}")
        sampling = SamplingSpec(temperature=0.6, top_k=20, top_p=0.95) if sampling is None else sampling
        page_len = attention.page_len if isinstance(attention, PageSelection) else page_len
        max_pages = -(-(context_len + num_steps) // page_len)
        self._attention, self._num_steps = attention, num_steps
        model = _shapes_of_model(spec, dtype, mesh)
        mesh = model.mesh  # as the model counts its axes
        self._programs = Programs(
            model,
            sampling=sampling,
            stop_ids=(),
            closing=None,
            num_steps=num_steps,
            num_page_groups=num_groups,
            keep_log_probs=False,
        )
        sizes = {"batch_size": batch_size, "max_pages": max_pages, "num_groups": num_groups}
        self._batch = place_call(_full_batch(spec, dtype, context_len=context_len, num_steps=num_steps, **sizes), mesh)
        places = (None, None, None) if mesh is None else tuple(pool_shardings(model, num_groups))
        num_pages = num_groups + batch_size * max_pages
        self._make_pools = partial(_random_pools, spec, dtype, places, num_pages=num_pages, page_len=page_len)
        self._make_seen = partial(place_rows, np.zeros((batch_size, 0), bool), mesh)
        self._make_logits = partial(_random_logits, batch_size, spec.vocab_size)
        self._draw_many = jax.jit(partial(_draw_many, sampling=sampling))
        # What `jit` has lowered for shapes, it does not lower again for arrays of them.
        shapes = zip(jax.eval_shape(self._make_pools), places, strict=True)
        pools = Pools._make(jax.ShapeDtypeStruct(pool.shape, pool.dtype, sharding=place) for pool, place in shapes)
        self._programs.lower_decode(pools, self._make_seen(), self._batch, attention).compile()
        self._draw_many.lower(*jax.eval_shape(self._make_logits)).compile()

    def time(self, model: Decoder, *, num_runs: int = 20) -> DecodeTiming:
        """Return medians over calls, after one that does not count.

        Args:
            model: Weights of the spec and dtype given, on the mesh given or the default device.
            num_runs: Calls timed.

        Raises:
            ValueError: If none is.
        """
        _check_positive(num_runs=num_runs)
        call, logits = self.start(model), jax.block_until_ready(self._make_logits())
        return DecodeTiming(
            step_s=_median_s(call, num_runs) / self._num_steps,
            sample_s=_median_s(lambda: jax.block_until_ready(self._draw_many(*logits)), num_runs) / _NUM_DRAWS,
            num_runs=num_runs,
            device=jax.devices()[0].device_kind,
        )

    def start(self, model: Decoder) -> Callable[[], None]:
        """Return what runs one call of `num_steps` steps and waits for it, on pools of its own.

        Args:
            model: As `time`.
        """
        self._programs.load(model)
        # Awaited, so that a lack of memory shows where it is.
        pools, seen = jax.block_until_ready((self._make_pools(), self._make_seen()))

        def call() -> None:
            nonlocal pools, seen
            pools, seen, drawn = self._programs.decode(pools, seen, self._batch, self._attention)
            jax.block_until_ready(drawn)

        return call


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}")


def _median_s(call: Callable[[], None], num_runs: int) -> float:
    runs = []
    for _ in range(1 + num_runs):
        started = time.perf_counter()
        call()
        runs.append(time.perf_counter() - started)
    return statistics.median(runs[1:])


def _shapes_of_model(spec: ModelSpec, dtype: DTypeLike, mesh: Mesh | None) -> Decoder:
    model = abstract_decoder(spec, dtype=dtype)
    return model if mesh is None else shard_decoder(model, mesh)


def _random_pools(
    spec: ModelSpec, dtype: DTypeLike, places: tuple[Any, ...], *, num_pages: int, page_len: int
) -> Pools:
    layer = (num_pages, spec.num_kv_heads, page_len, spec.head_dim)

    def fill(key: jax.Array, *, shape: tuple[int, ...]) -> jax.Array:
        # A layer at a time: random bits of the whole pool would be as large as the pool again.
        def put(index: jax.Array, pool: jax.Array) -> jax.Array:
            noise = jax.random.normal(jax.random.fold_in(key, index), shape, dtype)
            return jax.lax.dynamic_update_index_in_dim(pool, noise, index, axis=0)

        return jax.lax.fori_loop(0, spec.num_layers, put, jnp.zeros((spec.num_layers, *shape), dtype))

    keys, shapes = jax.random.split(jax.random.key(1), 3), (layer, layer, (*layer[:2], layer[3]))
    return Pools._make(
        jax.jit(partial(fill, shape=shape), out_shardings=place)(key)
        for key, shape, place in zip(keys, shapes, places, strict=True)
    )


def _full_batch(
    spec: ModelSpec,
    dtype: DTypeLike,
    *,
    context_len: int,
    batch_size: int,
    max_pages: int,
    num_groups: int,
    num_steps: int,
) -> Batch:
    random = np.random.default_rng(0)
    writer = CallWriter(
        num_steps=num_steps,
        max_pages=max_pages,
        num_hidden=spec.d_model,
        dtype=np.dtype(dtype),
        num_remembered=0,
    )
    batch = writer.batch([None] * batch_size)
    per_group = batch_size // num_groups * max_pages  # a group counts its own pages, from the scratch page on
    ids = np.concatenate([1 + random.permutation(per_group) for _ in range(num_groups)])
    batch.page_table[:] = ids.reshape(batch_size, max_pages)
    batch.lengths[:] = batch.prompt_lens[:] = context_len
    batch.token_ids[:] = random.integers(0, spec.vocab_size, batch_size)
    batch.active[:], batch.max_gen_lens[:] = True, np.iinfo(np.int32).max
    batch.problem_keys[:] = random.integers(0, 2**32, (batch_size, 2), dtype=np.uint32)
    return batch


def _random_logits(batch_size: int, vocab_size: int) -> tuple[jax.Array, jax.Array]:
    """Return logits, and a key for each row."""
    logits = jax.random.normal(jax.random.key(2), (batch_size, vocab_size), jnp.float32)
    return logits, jax.random.split(jax.random.key(3), batch_size)


def _draw_many(logits: jax.Array, keys: jax.Array, *, sampling: SamplingSpec) -> jax.Array:
    """Draw tokens many times in one program, so that launching it does not count."""

    def once(index: jax.Array, last: jax.Array) -> jax.Array:
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        # Depends on the draw before, so that none is left out or moved out of the loop.
        return sample_token(logits + last[:, None].astype(jnp.float32) * 1e-9, step_keys, sampling)

    return jax.lax.fori_loop(0, _NUM_DRAWS, once, jnp.zeros(logits.shape[0], jnp.int32))
