"""The length that a budget affords: `request_cost` solved for gen_len, differentiable."""

from typing import Any

from kinetics_jax.specs import AttentionSpec, HardwareSpec, ModelSpec

from ._eflops import Combine, eflops
from ._numbers import Number, Quantity, poison, prepare
from ._rates import num_flop_params
from ._request import request_cost
from ._root import rising_root
from ._tariff import Convention


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
) -> Quantity:
    """Solve eflops(request_cost(gen_len = T)) = target for T.

    Cost C grows with T, and T <= target / (2 P N) since the linear part alone costs that, so bisection finds T. Its
    derivative is that of the implicit function theorem, dT/dx = -(dC/dx) / (dC/dT); the second one is right as well.

    Args:
        model: The geometry.
        attention: The method.
        hardware: The chip.
        target_eflops: The budget of the whole request, any shape [FLOP].
        prompt_len: L_in, broadcast against the target [tokens].
        num_trials: N, trials that share the budget.
        kv_dtype: As in `request_cost` and `eflops`.
        weight_dtype: As in `request_cost`.
        batch_size: As in `request_cost`.
        share_prompt: As in `request_cost`.
        convention: As in `request_cost`.
        combine: As in `eflops`.
        compute_dtype: As in `eflops`.

    Returns:
        T, a real number [tokens]: a float for Python numbers, else an array of the broadcast shape (of NumPy or JAX,
            as given); NaN where an array held a number out of range.

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
    valid, target, prompt_len, num_trials, num_per_read = prepare(
        target_eflops=target_eflops,
        prompt_len=prompt_len,
        num_trials=num_trials,
        batch_size=1 if batch_size is None else batch_size,
    )

    def overspend(gen_len: Any, target: Any, prompt_len: Any, num_trials: Any, num_per_read: Any) -> Any:
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
        price = eflops(cost, hardware, combine=combine, compute_dtype=compute_dtype, kv_dtype=kv_dtype)
        return price - target

    longest = target / (2.0 * num_flop_params(model, convention) * num_trials)
    return poison(rising_root(overspend, longest, target, prompt_len, num_trials, num_per_read), valid)
