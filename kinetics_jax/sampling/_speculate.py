"""Self-speculation: the model drafts with sparse attention and verifies with dense, and says what dense would say.

`speculate` stands beside `generate` and is as pure. A round drafts g tokens by decode steps under the draft's attention
spec, then runs all of them through the model at once with dense attention (`Decoder.extend`), whose keys and values
overwrite the drafted ones:

    cache, L tokens | newest | d1 d2 d3 d4        drafted, sparse, from the newest token on
                    |   p1   | p2 p3 p4 p5        dense distributions of the tokens after each, in one pass
    text grows by            | d1 d2 x            d3 was refused: x is drawn in its place, and d4 is forgotten

What it costs is for `cost.speculative_cost`, which takes the acceptance rate found here. Left out: budget forcing, and
drafting by another model.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from kinetics_jax.attention import PagedCache, advance
from kinetics_jax.models import Decoder
from kinetics_jax.specs import DEFAULT_PAGE_LEN, AttentionSpec, PageSelection, SamplingSpec

from ._draw import draw_token
from ._generate import Generation, prefill_shared, trial_keys_of
from ._penalty import seen_tokens
from ._token import sample_token, token_probs


class Speculation(NamedTuple):
    """Hold the trials of one problem and how the drafts fared.

    Attributes:
        generation: The trials, as `generate` returns them.
        num_rounds: Rounds of drafting and verifying that each trial took [trials].
        num_judged: Drafted tokens that were held against the dense distribution: those before the first refusal and the
            refused one, as far as they became or would have become text [trials].
        num_accepted: Those of them that became text [trials].
    """

    generation: Generation
    num_rounds: Int[Array, " trials"]
    num_judged: Int[Array, " trials"]
    num_accepted: Int[Array, " trials"]

    @property
    def acceptance_rate(self) -> Float[Array, ""]:
        """Share of the judged tokens that were accepted, of all trials; NaN if none was judged."""
        return self.num_accepted.sum() / self.num_judged.sum()


class _State(NamedTuple):
    cache: PagedCache  # all text but the newest token
    newest: Int[Array, " trials"]
    seen: Bool[Array, "trials V"] | None
    token_ids: Int[Array, "trials max_gen_len"]
    gen_len: Int[Array, " trials"]
    stopped: Bool[Array, " trials"]
    num_rounds: Int[Array, " trials"]
    num_judged: Int[Array, " trials"]
    num_accepted: Int[Array, " trials"]


class _Draft(NamedTuple):
    token_ids: Int[Array, "trials draft_len"]
    probs: Float[Array, "trials draft_len V"]


def speculate(
    model: Decoder,
    prompt_ids: Int[Array, " max_prompt_len"],
    key: PRNGKeyArray,
    *,
    draft: AttentionSpec,
    draft_len: int,
    prompt_len: int | Int[Array, ""] | None = None,
    num_trials: int = 1,
    max_gen_len: int,
    stop_ids: tuple[int, ...],
    sampling: SamplingSpec | None = None,
    page_len: int | None = None,
) -> Speculation:
    """Draw `num_trials` continuations of one prompt from the dense model's distribution, drafting with another spec.

    With p the dense and q the draft's distribution of a token, both after temperature, truncation and penalty, a
    drafted token x becomes text with probability min(1, p(x) / q(x)); the first refused one is replaced by a draw from
    max(0, p - q), normalised. So each token is drawn from p, whatever the draft is like: only the speed depends on it.
    Greedy tokens are accepted if they are equal.

    The draft of the token at position t of trial r is drawn with the key of `generate`, fold_in(fold_in(key, r), t);
    the test and the replacement use others folded from it. A draft that reads everything therefore says the tokens of
    `generate`, up to rounding.

    Args:
        model: The language model.
        prompt_ids: Prompt, padded at the end to a fixed length [max_prompt_len].
        key: The problem's key.
        draft: Which cache entries a drafting step reads.
        draft_len: Tokens drafted a round, g (static).
        prompt_len: As in `generate`.
        num_trials: Trials (static).
        max_gen_len: Limit on generated tokens, stop token included (static).
        stop_ids: Tokens that end a trial (static).
        sampling: How tokens are drawn; None is `SamplingSpec()`, temperature 1.
        page_len: Tokens in a page; None follows a draft that selects pages, else `DEFAULT_PAGE_LEN`.

    Returns:
        The trials, and the counts that the acceptance rate follows from.

    Raises:
        ValueError: As `generate`, or if `draft_len` is below one.

    Example:
        >>> from functools import partial
        >>> from kinetics_jax.models import abstract_decoder
        >>> from kinetics_jax.specs import MODELS, BlockTopK
        >>> settings = dict(draft=BlockTopK(page_len=4, num_pages=2), draft_len=3, max_gen_len=8, stop_ids=(2,))
        >>> model = abstract_decoder(MODELS["Kinetics-Mini-0.1M"])  # shapes alone
        >>> found = jax.eval_shape(partial(speculate, **settings), model, jnp.arange(10), jax.random.key(0))
        >>> found.generation.token_ids.shape
        (1, 8)

    References:
        Leviathan et al., Fast Inference from Transformers via Speculative Decoding (arXiv 2211.17192), Algorithm 1 and
        appendix A.1.
    """
    if draft_len < 1:
        raise ValueError(f"draft_len must be at least 1; got {draft_len}")
    if page_len is None:
        page_len = draft.page_len if isinstance(draft, PageSelection) else DEFAULT_PAGE_LEN
    sampling = SamplingSpec() if sampling is None else sampling
    prompt_len = prompt_ids.shape[0] if prompt_len is None else prompt_len
    # The last round may draft beyond the limit.
    cache, logits, seen = prefill_shared(
        model,
        prompt_ids,
        prompt_len,
        num_trials=num_trials,
        max_gen_len=max_gen_len,
        spare_len=draft_len,
        page_len=page_len,
        sampling=sampling,
    )
    keys = trial_keys_of(key, num_trials)
    first = sample_token(logits, jax.vmap(jax.random.fold_in)(keys, cache.lengths), sampling, seen=seen)
    stops, zeros = jnp.asarray(stop_ids, jnp.int32), jnp.zeros(num_trials, jnp.int32)
    state = _State(
        cache=cache,
        newest=first,
        seen=_also_seen(seen, first),
        token_ids=jnp.zeros((num_trials, max_gen_len), jnp.int32).at[:, 0].set(first),
        gen_len=zeros + 1,
        stopped=jnp.isin(first, stops),
        num_rounds=zeros,
        num_judged=zeros,
        num_accepted=zeros,
    )

    def one_round(state: _State) -> _State:
        drafted = _draft(model, state, keys, draft, draft_len, sampling)
        return _verify(model, state, drafted, keys, stops, sampling)

    state = jax.lax.while_loop(lambda state: ~_is_done(state).all(), one_round, state)
    return Speculation(
        generation=Generation(token_ids=state.token_ids, gen_len=state.gen_len, stopped=state.stopped),
        num_rounds=state.num_rounds,
        num_judged=state.num_judged,
        num_accepted=state.num_accepted,
    )


def _draft(
    model: Decoder,
    state: _State,
    keys: Key[Array, " trials"],
    draft: AttentionSpec,
    draft_len: int,
    sampling: SamplingSpec,
) -> tuple[_Draft, PagedCache]:
    """Draw g tokens after the newest one by sparse decode steps; return them with the cache they were written to."""

    def step(carry: tuple[PagedCache, Array, Array | None], _: None) -> tuple[tuple, tuple[Array, Array]]:
        cache, newest, seen = carry
        logits, cache = model.decode_step(newest, cache, draft)
        step_keys = jax.vmap(jax.random.fold_in)(keys, cache.lengths)
        tokens = sample_token(logits, step_keys, sampling, seen=seen)
        probs = token_probs(logits, sampling, seen=seen)
        return (cache, tokens, _also_seen(seen, tokens)), (tokens, probs)

    carry = (state.cache, state.newest, state.seen)
    (cache, _, _), (tokens, probs) = jax.lax.scan(step, carry, length=draft_len)
    return _Draft(token_ids=tokens.T, probs=probs.swapaxes(0, 1)), cache


def _verify(
    model: Decoder,
    state: _State,
    drafted: tuple[_Draft, PagedCache],
    keys: Key[Array, " trials"],
    stops: Int[Array, " stops"],
    sampling: SamplingSpec,
) -> _State:
    """Hold the drafts against the dense model, and append what is accepted and one token more."""
    draft, cache = drafted
    num_trials, draft_len = draft.token_ids.shape
    lengths, max_gen_len = state.cache.lengths, state.token_ids.shape[1]
    shown = jnp.concatenate([state.newest[:, None], draft.token_ids], axis=1)
    hidden, cache = model.extend(shown, advance(cache, -draft_len), jnp.full(num_trials, draft_len + 1, jnp.int32))
    said, num_kept = _accept(model.next_logits(hidden), draft, state, keys, sampling)

    place = jnp.arange(draft_len + 1, dtype=jnp.int32)[None, :]
    is_stop = jnp.isin(said, stops) & (place <= num_kept[:, None])
    until_stop = jnp.where(is_stop.any(axis=1), jnp.argmax(is_stop, axis=1).astype(jnp.int32), num_kept) + 1
    num_new = jnp.minimum(until_stop, max_gen_len - state.gen_len)
    num_new = jnp.where(state.stopped, 0, num_new)
    goal = jnp.where(place < num_new[:, None], state.gen_len[:, None] + place, max_gen_len)
    last = jnp.take_along_axis(said, jnp.maximum(num_new - 1, 0)[:, None], axis=1)[:, 0]
    seen = None if state.seen is None else seen_tokens(said, num_new, state.seen.shape[1], state.seen)
    num_judged = num_kept + (num_kept < draft_len).astype(jnp.int32)
    return _State(
        cache=advance(cache, lengths + num_new - cache.lengths),
        newest=jnp.where(num_new > 0, last, state.newest),
        seen=seen,
        token_ids=state.token_ids.at[jnp.arange(num_trials)[:, None], goal].set(said, mode="drop"),
        gen_len=state.gen_len + num_new,
        stopped=state.stopped | (is_stop & (place < num_new[:, None])).any(axis=1),
        num_rounds=state.num_rounds + (num_new > 0).astype(jnp.int32),
        num_judged=state.num_judged + jnp.minimum(num_judged, num_new),
        num_accepted=state.num_accepted + jnp.minimum(num_kept, num_new),
    )


def _accept(
    dense_logits: Float[Array, "trials shown V"],
    draft: _Draft,
    state: _State,
    keys: Key[Array, " trials"],
    sampling: SamplingSpec,
) -> tuple[Int[Array, "trials shown"], Int[Array, " trials"]]:
    """Return what is said, the accepted drafts and one token after them, and how many were accepted."""
    draft_len, vocab_size = draft.token_ids.shape[1], dense_logits.shape[2]
    place = jnp.arange(draft_len + 1, dtype=jnp.int32)
    seen = None
    if state.seen is not None:  # before each of the judged tokens
        befores = [state.seen]
        for index in range(draft_len):
            ones = jnp.ones_like(draft.token_ids[:, index])
            befores.append(seen_tokens(draft.token_ids[:, index, None], ones, vocab_size, befores[-1]))
        seen = jnp.stack(befores, axis=1)
    flat_seen = None if seen is None else seen.reshape(-1, vocab_size)
    dense = token_probs(dense_logits.reshape(-1, vocab_size), sampling, seen=flat_seen).reshape(dense_logits.shape)

    # Keys of the drawn tokens' positions: newest is at `lengths`. What is folded in is no token's id, nor V.
    positions = state.cache.lengths[:, None] + 1 + place[None, :]
    position_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, positions)
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))
    chance = jax.vmap(jax.vmap(jax.random.uniform))(fold(position_keys[:, :-1], vocab_size + 1))
    drafted = draft.token_ids[:, :, None]
    p = jnp.take_along_axis(dense[:, :-1], drafted, axis=2)[:, :, 0]
    q = jnp.take_along_axis(draft.probs, drafted, axis=2)[:, :, 0]
    num_kept = jnp.cumprod(chance * q < p, axis=1, dtype=jnp.int32).sum(axis=1, dtype=jnp.int32)

    refused = jnp.minimum(num_kept, draft_len - 1)[:, None, None]
    wanted, offered = (jnp.take_along_axis(probs, refused, axis=1)[:, 0] for probs in (dense, draft.probs))
    missing = jnp.maximum(wanted - offered, 0)
    # Where rounding leaves nothing missing, p and q are the same.
    missing = jnp.where(missing.sum(axis=1, keepdims=True) > 0, missing, wanted)
    refused_keys = jnp.take_along_axis(fold(position_keys, vocab_size + 2), refused[:, :, 0], axis=1)[:, 0]
    replacement = draw_token(jnp.log(missing), refused_keys)
    further = sample_token(
        dense_logits[:, -1], position_keys[:, -1], sampling, seen=None if seen is None else seen[:, -1]
    )
    after = jnp.where(num_kept < draft_len, replacement, further)
    padded = jnp.concatenate([draft.token_ids, after[:, None]], axis=1)
    return jnp.where(place[None, :] < num_kept[:, None], padded, after[:, None]), num_kept


def _is_done(state: _State) -> Bool[Array, " trials"]:
    return state.stopped | (state.gen_len >= state.token_ids.shape[1])


def _also_seen(
    seen: Bool[Array, "trials V"] | None, token_ids: Int[Array, " trials"]
) -> Bool[Array, "trials V"] | None:
    if seen is None:
        return None
    return seen_tokens(token_ids[:, None], jnp.ones_like(token_ids), seen.shape[1], seen)
