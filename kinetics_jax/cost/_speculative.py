"""Speculative decoding priced as a composition: a cheap draft proposes, the model verifies with dense attention."""

import dataclasses
from typing import Any

from kinetics_jax.specs import AttentionSpec, Dense, ModelSpec

from ._cost import Cost
from ._numbers import Number, is_python, namespace
from ._request import request_cost


def speculative_cost(
    model: ModelSpec,
    draft_attention: AttentionSpec,
    *,
    draft_len: int,
    acceptance_rate: Number,
    draft_model: ModelSpec | None = None,
    prompt_len: Number,
    gen_len: Number,
    num_trials: Number = 1,
    kv_dtype: str = "bfloat16",
    weight_dtype: str = "bfloat16",
    batch_size: Number | None = None,
    share_prompt: bool = True,
) -> Cost:
    """Price a generation in which g tokens at a time are drafted, then verified in one pass with dense attention.

    With each drafted token accepted with probability a, a round yields tau = 1 + a + ... + a^g tokens, so T tokens
    take T / tau rounds. A round decodes g draft tokens and verifies g + 1; the verifying pass reads the cache and the
    weights once for all g + 1, and does the arithmetic and the cache writes of each:

        cost = (g / tau) draft(T) + ((g + 1) / tau) verify(T), where verify reads 1 / (g + 1) of the cache a token

    Rounds are taken to be spread evenly over the contexts of the generation. The drafted cache entries are overwritten
    by the verified ones. Outputs equal those of dense decoding, so accuracy does not change: only the price does.

    Args:
        model: The model that verifies.
        draft_attention: The method that drafts, such as `BlockTopK`.
        draft_len: g, tokens drafted a round, at least 1.
        acceptance_rate: a, in [0, 1], any shape; measured, not predicted here.
        draft_model: The model that drafts; None = the same (self-speculation).
        prompt_len: As in `request_cost`.
        gen_len: As in `request_cost`.
        num_trials: As in `request_cost`.
        kv_dtype: As in `request_cost`.
        weight_dtype: As in `request_cost`.
        batch_size: As in `request_cost`; sequences that draft and verify together.
        share_prompt: As in `request_cost`.

    Returns:
        The bill, shaped as in `request_cost`, `acceptance_rate` broadcast.

    Raises:
        ValueError: As `request_cost`; if `draft_len` is below 1 or a plain `acceptance_rate` is outside [0, 1]
            (inside arrays such values give NaN).

    Example:
        >>> from kinetics_jax.specs import MODELS, BlockTopK, Dense
        >>> model, sizes = MODELS["Qwen3-8B"], dict(prompt_len=512, gen_len=16_384, batch_size=64)
        >>> draft = BlockTopK.from_budget(budget_len=512, page_len=16)
        >>> cost = speculative_cost(model, draft, draft_len=4, acceptance_rate=0.9, **sizes)
        >>> round(request_cost(model, Dense(), **sizes).bytes / cost.bytes, 2)
        2.13

    References:
        Leviathan et al., Fast Inference from Transformers via Speculative Decoding (arXiv 2211.17192), Eq. 1 for tau;
        not in the paper.
    """
    if draft_len < 1:
        raise ValueError(f"draft_len must be at least 1; got {draft_len}")
    if is_python(acceptance_rate) and not 0 <= acceptance_rate <= 1:
        raise ValueError(f"acceptance_rate must lie in [0, 1]; got {acceptance_rate}")
    xp = namespace(acceptance_rate)
    rate = acceptance_rate if is_python(acceptance_rate) else xp.asarray(acceptance_rate)
    if not is_python(rate):
        rate = xp.where((rate >= 0) & (rate <= 1), rate, xp.nan)
    num_accepted = sum((rate**power for power in range(1, draft_len + 1)), start=1.0)

    def price(model: ModelSpec, attention: AttentionSpec, batch_size: Any) -> Cost:
        return request_cost(
            model,
            attention,
            prompt_len=prompt_len,
            gen_len=gen_len,
            num_trials=num_trials,
            kv_dtype=kv_dtype,
            weight_dtype=weight_dtype,
            batch_size=batch_size,
            share_prompt=share_prompt,
        )

    draft = price(draft_model or model, draft_attention, batch_size)
    num_verified = draft_len + 1
    verify = price(model, Dense(), None if batch_size is None else batch_size * num_verified)
    verify = dataclasses.replace(verify, kv_read_bytes=verify.kv_read_bytes / num_verified)
    return draft * (draft_len / num_accepted) + verify * (num_verified / num_accepted)
