"""How long does a decode step take? The engine's own program on a full batch of random weights and random pages.

Weights and keys of any value cost the same, so no checkpoint and no prompt is needed to time a model of true size.
Called by `kinetics bench decode`. Left out: prefill, admission, and whatever the host does between calls.
"""

import statistics
import time
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from kinetics_jax.models import Decoder, abstract_decoder
from kinetics_jax.specs import AttentionSpec, ModelSpec, PageSelection, SamplingSpec

from ._call import Batch, CallWriter
from ._pools import Pools
from ._programs import Programs
from ._token import sample_token

_WEIGHT_SCALE = 0.02


@dataclass(frozen=True, kw_only=True)
class DecodeTiming:
    """Hold what a batch of decoding sequences took.

    Attributes:
        step_s: Time of a step, sampling included, the host's share of a call spread over its steps [s].
        sample_s: Time of drawing the tokens alone [s].
        num_runs: Calls timed; both times are medians of as many.
    """

    step_s: float
    sample_s: float
    num_runs: int


def random_model(spec: ModelSpec, *, dtype: DTypeLike = jnp.bfloat16) -> Decoder:
    """Return a decoder of random weights on the default device, made leaf by leaf: nothing is there twice.

    Example:
        >>> from kinetics_jax.specs import MODELS
        >>> random_model(MODELS["Kinetics-Mini-0.1M"]).embed.embedding[...].dtype.name
        'bfloat16'
    """

    @cache
    def maker(shape: tuple[int, ...], kind: jnp.dtype):
        return jax.jit(lambda key: (_WEIGHT_SCALE * jax.random.normal(key, shape, jnp.float32)).astype(kind))

    shapes, structure = jax.tree.flatten(abstract_decoder(spec, dtype=dtype))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    leaves = [maker(leaf.shape, leaf.dtype)(key) for leaf, key in zip(shapes, keys, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def time_decode(
    model: Decoder,
    attention: AttentionSpec,
    *,
    context_len: int,
    batch_size: int,
    sampling: SamplingSpec | None = None,
    page_len: int = 16,
    num_steps: int = 16,
    num_runs: int = 20,
) -> DecodeTiming:
    """Time decode steps of `batch_size` sequences that hold `context_len` tokens each, with pages all over the pool.

    Args:
        model: The language model, on one device.
        attention: Which cache entries a step reads.
        context_len: Tokens that each sequence holds before the first step timed [tokens].
        batch_size: Sequences, B.
        sampling: How tokens are drawn; None is the paper's: temperature 0.6, top-k 20, top-p 0.95.
        page_len: Tokens in a page, where the attention does not say.
        num_steps: Steps a call.
        num_runs: Calls timed, after one that compiles.

    Returns:
        Medians.

    Raises:
        ValueError: If a size is not positive.

    References:
        BENCH.md, whole-model decode step.
    """
    sizes = {"context_len": context_len, "batch_size": batch_size, "num_steps": num_steps, "num_runs": num_runs}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}")
    sampling = SamplingSpec(temperature=0.6, top_k=20, top_p=0.95) if sampling is None else sampling
    page_len = attention.page_len if isinstance(attention, PageSelection) else page_len
    max_pages = -(-(context_len + num_steps) // page_len)
    programs = Programs(
        model,
        sampling=sampling,
        stop_ids=(),
        closing=None,
        num_steps=num_steps,
        num_page_groups=1,
        keep_log_probs=False,
    )
    pools = _random_pools(model, num_pages=1 + batch_size * max_pages, page_len=page_len)
    batch = _full_batch(model, context_len=context_len, batch_size=batch_size, max_pages=max_pages, num_steps=num_steps)
    seen, runs = jnp.zeros((batch_size, 0), bool), []
    for _ in range(1 + num_runs):
        started = time.perf_counter()
        pools, seen, drawn = programs.decode(pools, seen, batch, attention)
        jax.block_until_ready(drawn)
        runs.append((time.perf_counter() - started) / num_steps)
    sample_s = _time_sampling(model, sampling, batch_size, num_runs)
    return DecodeTiming(step_s=statistics.median(runs[1:]), sample_s=sample_s, num_runs=num_runs)


def _random_pools(model: Decoder, *, num_pages: int, page_len: int) -> Pools:
    spec = model.spec
    layer = (num_pages, spec.num_kv_heads, page_len, spec.head_dim)

    # A layer at a time: random bits of the whole pool would be as large as the pool again.
    @partial(jax.jit, static_argnums=1)
    def fill(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        def put(index: jax.Array, pool: jax.Array) -> jax.Array:
            noise = jax.random.normal(jax.random.fold_in(key, index), shape, jnp.dtype(model.dtype))
            return jax.lax.dynamic_update_index_in_dim(pool, noise, index, axis=0)

        return jax.lax.fori_loop(0, spec.num_layers, put, jnp.zeros((spec.num_layers, *shape), model.dtype))

    keys = jax.random.split(jax.random.key(1), 3)
    return Pools(fill(keys[0], layer), fill(keys[1], layer), fill(keys[2], (*layer[:2], layer[3])))


def _full_batch(model: Decoder, *, context_len: int, batch_size: int, max_pages: int, num_steps: int) -> Batch:
    random = np.random.default_rng(0)
    writer = CallWriter(
        num_steps=num_steps,
        max_pages=max_pages,
        num_hidden=model.spec.d_model,
        dtype=np.dtype(model.dtype),
        num_remembered=0,
    )
    batch = writer.batch([None] * batch_size)
    batch.page_table[:] = 1 + random.permutation(batch_size * max_pages).reshape(batch_size, max_pages)
    batch.lengths[:] = batch.prompt_lens[:] = context_len
    batch.token_ids[:] = random.integers(0, model.spec.vocab_size, batch_size)
    batch.active[:], batch.max_gen_lens[:] = True, np.iinfo(np.int32).max
    batch.problem_keys[:] = random.integers(0, 2**32, (batch_size, 2), dtype=np.uint32)
    return batch


def _time_sampling(model: Decoder, sampling: SamplingSpec, batch_size: int, num_runs: int) -> float:
    """Time one draw among many in one program, so that launching it does not count."""
    num_draws, vocab_size = 16, model.spec.vocab_size
    logits = jax.random.normal(jax.random.key(2), (batch_size, vocab_size), jnp.float32)
    keys = jax.random.split(jax.random.key(3), batch_size)

    @jax.jit
    def draw(logits: jax.Array, keys: jax.Array) -> jax.Array:
        def once(index: jax.Array, last: jax.Array) -> jax.Array:
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
            # Depends on the draw before, so that none is left out or moved out of the loop.
            return sample_token(logits + last[:, None].astype(jnp.float32) * 1e-9, step_keys, sampling)

        return jax.lax.fori_loop(0, num_draws, once, jnp.zeros(batch_size, jnp.int32))

    runs = []
    for _ in range(1 + num_runs):
        started = time.perf_counter()
        jax.block_until_ready(draw(logits, keys))
        runs.append((time.perf_counter() - started) / num_draws)
    return statistics.median(runs[1:])
