"""The length that a budget affords: `request_cost` solved for gen_len, differentiable."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kinetics_jax.specs import AttentionSpec, HardwareSpec, ModelSpec

from ._eflops import Combine, eflops
from ._numbers import Number, poison, prepare
from ._request import request_cost
from ._tariff import Convention

# Halvings that bring any bracket to float64 resolution of its upper end, and on: short answers keep their digits.
_NUM_HALVINGS = 80


def iso_cost_len(
    model: ModelSpec,
    attention: AttentionSpec,
    hardware: HardwareSpec,
    target_eflops: Number,
    *,
    prompt_len: Number,
    num_trials: Number = 1,
    kv_dtype: str = "bfloat16",
    weight_dtype: str = "bfloat16",
    batch_size: Number | None = None,
    share_prompt: bool = True,
    convention: Convention = "exact",
    combine: Combine = "add",
    compute_dtype: str = "bfloat16",
) -> Float[Array, "..."]:
    """Solve eflops(request_cost(gen_len = T)) = target for T.

    Cost grows with T, and T <= target / (2 P N) since the linear part alone costs that: bisect, then take two Newton
    steps. The derivative passes through the Newton steps only; there it is that of the implicit function theorem,
    dT/dx = -(dC/dx) / (dC/dT), and the second derivative is right as well.

    Args:
        model: The geometry.
        attention: The method.
        hardware: The chip.
        target_eflops: The budget of the whole request, any shape [FLOP].
        prompt_len: L_in, broadcast against the target [tokens].
        num_trials: N, trials that share the budget.
        kv_dtype: As in `request_cost`.
        weight_dtype: As in `request_cost`.
        batch_size: As in `request_cost`.
        share_prompt: As in `request_cost`.
        convention: As in `request_cost`.
        combine: As in `eflops`.
        compute_dtype: As in `eflops`.

    Returns:
        T, a real number [tokens], always a JAX array; NaN where an array held a number out of range.

    Raises:
        ValueError: As `request_cost` and `eflops`.

    Example:
        >>> from kinetics_jax.specs import HARDWARE, MODELS, Dense
        >>> length = iso_cost_len(MODELS["Qwen3-0.6B"], Dense(), HARDWARE["PAPER_B200"], 2e16, prompt_len=0,
        ...                       convention="paper")
        >>> print(f"{length:.0f}")
        24833

    References:
        PAPER.md section 6, iso-eFLOPs; figures 5b and 5c.
    """
    valid, *numbers = prepare(
        target_eflops=target_eflops,
        prompt_len=prompt_len,
        num_trials=num_trials,
        batch_size=1 if batch_size is None else batch_size,
    )
    target, *given = [jnp.asarray(number, dtype=jnp.result_type(number)) for number in numbers]

    def overspend(gen_len: Array, target: Array, prompt_len: Array, num_trials: Array, num_per_read: Array) -> Any:
        cost = request_cost(
            model,
            attention,
            prompt_len=prompt_len,
            gen_len=gen_len,
            num_trials=num_trials,
            kv_dtype=kv_dtype,
            weight_dtype=weight_dtype,
            batch_size=None if batch_size is None else num_per_read,
            share_prompt=share_prompt,
            convention=convention,
        )
        return eflops(cost, hardware, combine=combine, compute_dtype=compute_dtype) - target

    num_params = model.num_stored_params if convention == "paper" else model.num_matmul_params
    gen_len = jax.lax.stop_gradient(target / (2.0 * num_params * given[1]))
    frozen = [jax.lax.stop_gradient(number) for number in (target, *given)]

    def halve(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = low + (high - low) / 2
        too_much = overspend(middle, *frozen) > 0
        return jnp.where(too_much, low, middle), jnp.where(too_much, middle, high)

    gen_len, _ = jax.lax.fori_loop(0, _NUM_HALVINGS, halve, (jnp.zeros_like(gen_len), gen_len))
    for _ in range(2):
        excess, slope = jax.jvp(lambda t: overspend(t, target, *given), (gen_len,), (jnp.ones_like(gen_len),))
        gen_len = gen_len - excess / slope
        gen_len = jnp.where(gen_len < 0, jnp.zeros_like(gen_len), gen_len)
    return poison(gen_len, valid)
