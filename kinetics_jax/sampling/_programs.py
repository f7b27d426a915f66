"""The two compiled programs of the engine: a chunk of prompts into pages, and several decode steps of a whole batch.

Both have static shapes and are compiled once. The page pools stay on the device and are donated to every call; all
else is small, and the host's: it comes with each call and goes back.
"""

from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from kinetics_jax.attention import DATA_AXIS, PagedCache, copy_pages
from kinetics_jax.models import Decoder
from kinetics_jax.specs import AttentionSpec, SamplingSpec

from ._call import NO_TOKEN, Batch, Drawn, PromptChunk
from ._pools import Pools, pool_shardings, pools_of
from ._stopping import BudgetForcing, forced_token, thought_closed
from ._token import sample_token, token_log_probs


class _Loop(NamedTuple):
    step: Int[Array, ""]
    cache: PagedCache
    token_ids: Int[Array, " B"]
    active: Bool[Array, " B"]
    closed: Bool[Array, " B"]
    seen: Bool[Array, "B V"]
    drawn: Drawn


class Programs:
    """Compile the programs of one model; count how often.

    Args:
        model: The language model.
        sampling: How tokens are drawn.
        stop_ids: Tokens that end a trial.
        closing: Budget forcing, or None.
        num_steps: Decode steps a call, T.
        num_page_groups: Parts of pool and batch, as in `PagedCache`.
        keep_log_probs: Whether log-probabilities are computed.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        sampling: SamplingSpec,
        stop_ids: tuple[int, ...],
        closing: BudgetForcing | None,
        num_steps: int,
        num_page_groups: int,
        keep_log_probs: bool,
    ):
        self.num_compilations: Counter[str] = Counter()
        self._sampling, self._closing, self._keep_log_probs = sampling, closing, keep_log_probs
        self._stop_ids, self._num_steps, self._num_page_groups = stop_ids, num_steps, num_page_groups
        # Flattened once: an NNX model of 400 leaves takes longer to flatten than a decode step to launch.
        self._weights, self._structure = jax.tree.flatten(model)
        prefilled, decoded = None, None
        if model.mesh is not None:  # what goes back in must lie where it lay, else the next call compiles anew
            pools = pool_shardings(model, num_page_groups)
            rows, whole = (NamedSharding(model.mesh, PartitionSpec(*axes)) for axes in ((DATA_AXIS,), ()))
            prefilled, decoded = (pools, whole), (pools, rows, whole)
        self._prefill = jax.jit(
            self._run_prefill, static_argnames="is_first", donate_argnames="pools", out_shardings=prefilled
        )
        self._decode = jax.jit(
            self._run_decode, static_argnames="attention", donate_argnames=("pools", "seen"), out_shardings=decoded
        )

    def prefill(self, pools: Pools, chunk: PromptChunk, *, is_first: bool) -> tuple[Pools, Float[Array, "G D"]]:
        """Write a chunk of each group's prompt into its pages.

        Args:
            pools: Donated.
            chunk: The chunk.
            is_first: Whether every chunk begins its prompt, so that no page needs to be read.

        Returns:
            The pools, and the final hidden state of the last token of each chunk.
        """
        return self._prefill(self._weights, pools, chunk, is_first=is_first)

    def decode(
        self, pools: Pools, seen: Bool[Array, "B V"], batch: Batch, attention: AttentionSpec
    ) -> tuple[Pools, Bool[Array, "B V"], Drawn]:
        """Draw up to T tokens for every active row; a row that stops idles until all have stopped.

        Args:
            pools: Donated.
            seen: Which tokens each row's text holds; [B, 0] without a repetition penalty. Donated.
            batch: The rows.
            attention: Which cache entries a step reads.
        """
        return self._decode(self._weights, pools, seen, batch, attention=attention)

    def lower_decode(self, pools: Any, seen: Any, batch: Batch, attention: AttentionSpec) -> jax.stages.Lowered:
        """Return `decode` lowered for arguments of these shapes and places, to compile ahead of time."""
        return self._decode.lower(self._weights, pools, seen, batch, attention=attention)

    def load(self, model: Decoder) -> None:
        """Run on the weights of this model from now on: those given before may have been shapes alone."""
        self._weights = jax.tree.leaves(model)

    def _run_prefill(
        self, weights: list[Array], pools: Pools, chunk: PromptChunk, *, is_first: bool
    ) -> tuple[Pools, Array]:
        self.num_compilations["prefill"] += 1
        model: Decoder = jax.tree.unflatten(self._structure, weights)
        cache = self._cache(pools, chunk.page_table, chunk.start)
        token_ids, num_new = jnp.asarray(chunk.token_ids), jnp.asarray(chunk.num_new)
        hidden, cache = model.extend(token_ids, cache, num_new, is_first=is_first)
        last = jnp.maximum(num_new - 1, 0)[:, None, None]
        return pools_of(cache), jnp.take_along_axis(hidden, last, axis=1)[:, 0]

    def _run_decode(
        self, weights: list[Array], pools: Pools, seen: Array, batch: Batch, *, attention: AttentionSpec
    ) -> tuple[Pools, Array, Drawn]:
        self.num_compilations[f"decode {attention}"] += 1
        model: Decoder = jax.tree.unflatten(self._structure, weights)
        num_rows = batch.lengths.shape[0]
        problem_keys = jax.random.wrap_key_data(jnp.asarray(batch.problem_keys))
        trial_keys = jax.vmap(jax.random.fold_in)(problem_keys, jnp.asarray(batch.trials))
        state = _Loop(
            step=jnp.asarray(0, jnp.int32),
            cache=self._cache(pools, batch.page_table, batch.lengths),
            token_ids=jnp.asarray(batch.token_ids),
            active=jnp.asarray(batch.active),
            closed=jnp.asarray(batch.closed),
            seen=_with_prompts(seen, batch),
            drawn=Drawn(
                token_ids=jnp.full((1 + self._num_steps, num_rows), NO_TOKEN, jnp.int32),
                log_probs=jnp.zeros((1 + self._num_steps, num_rows), jnp.float32),
            ),
        )

        def draw(state: _Loop, logits: Array, rows: Array) -> _Loop:
            return self._draw(state, logits, rows, batch, trial_keys)

        def begin(state: _Loop) -> _Loop:
            tails = jnp.asarray(batch.tail_from), jnp.asarray(batch.tail_to)
            state = state._replace(cache=copy_pages(state.cache, *tails, mesh=model.mesh))
            return draw(state, model.next_logits(jnp.asarray(batch.hidden)), jnp.asarray(batch.fresh))

        def step(state: _Loop) -> _Loop:
            logits, cache = model.decode_step(state.token_ids, state.cache, attention, active=state.active)
            state = state._replace(cache=cache, step=state.step + 1)
            return draw(state, logits, state.active)

        state = jax.lax.cond(batch.fresh.any(), begin, lambda state: state, state)
        state = jax.lax.while_loop(lambda state: (state.step < self._num_steps) & state.active.any(), step, state)
        return pools_of(state.cache), state.seen, state.drawn

    def _draw(self, state: _Loop, logits: Array, rows: Array, batch: Batch, trial_keys: Array) -> _Loop:
        """Draw or force the token after each cache, note it, and stop who is done."""
        positions = state.cache.lengths
        gen_lens = positions - batch.prompt_lens  # tokens before this one
        keys = jax.vmap(jax.random.fold_in)(trial_keys, positions)
        penalised = self._sampling.repetition_penalty != 1
        tokens = sample_token(logits, keys, self._sampling, seen=state.seen if penalised else None)
        closed = state.closed
        if self._closing is not None:
            closing = forced_token(gen_lens, closed, self._closing)
            tokens = jnp.where(closing < 0, tokens, closing)
        forced = jax.lax.dynamic_index_in_dim(jnp.asarray(batch.forced), state.step, keepdims=False)
        tokens = jnp.where(forced < 0, tokens, forced)
        if self._closing is not None:
            closed = jnp.where(rows, thought_closed(gen_lens, closed, tokens, self._closing), closed)
        log_probs = token_log_probs(logits, tokens) if self._keep_log_probs else jnp.zeros(tokens.shape, jnp.float32)
        is_stop = jnp.isin(tokens, jnp.asarray(self._stop_ids, jnp.int32))
        done = rows & (is_stop | (gen_lens + 1 >= batch.max_gen_lens))
        drawn = Drawn(
            token_ids=state.drawn.token_ids.at[state.step].set(jnp.where(rows, tokens, NO_TOKEN)),
            log_probs=state.drawn.log_probs.at[state.step].set(jnp.where(rows, log_probs, 0.0)),
        )
        seen = state.seen
        if penalised:
            seen = seen.at[jnp.arange(len(tokens)), jnp.where(rows, tokens, seen.shape[1])].set(True, mode="drop")
        return state._replace(
            token_ids=jnp.where(rows, tokens, state.token_ids),
            active=state.active & ~done,
            closed=closed,
            seen=seen,
            drawn=drawn,
        )

    def _cache(self, pools: Pools, page_table: Array | np.ndarray, lengths: Array | np.ndarray) -> PagedCache:
        return PagedCache(
            key_pages=pools.key_pages,
            value_pages=pools.value_pages,
            key_means=pools.key_means,
            page_table=jnp.asarray(page_table),
            lengths=jnp.asarray(lengths),
            num_page_groups=self._num_page_groups,
        )


def _with_prompts(seen: Array, batch: Batch) -> Array:
    """Start the memory of fresh rows with the tokens of their prompts."""
    if seen.shape[1] == 0:
        return seen
    bits = jnp.unpackbits(jnp.asarray(batch.seen), axis=1)[:, : seen.shape[1]].astype(bool)
    return jnp.where(jnp.asarray(batch.fresh)[:, None], bits, seen)
