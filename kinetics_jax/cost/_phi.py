"""When does attention outweigh the weights? Two ratios of the paper, in closed form."""

from kinetics_jax.specs import HardwareSpec, ModelSpec

from ._numbers import Number, Quantity, poison, prepare
from ._rates import kv_element_bytes, num_flop_params
from ._tariff import Convention


def phi(
    model: ModelSpec,
    hardware: HardwareSpec,
    *,
    gen_len: Number,
    prompt_len: Number = 0,
    num_trials: Number | None = None,
    kv_dtype: str = "bfloat16",
    compute_dtype: str = "bfloat16",
    convention: Convention = "exact",
) -> Quantity:
    """Compare dense attention with the weights: Phi = (attention eFLOPs) / (linear FLOPs), averaged over the steps.

        Phi = D (r (2 L_in + T) + I b (2 L_in / N + T) / 2) / (2 P);  at b = 2 and N endless the paper's
        Phi = (2 r L_in D + (r + I) D T) / (2 P)

    "exact" has T + 1 for T and P without the input embedding; "paper" has the formula as written and the published P.
    For a mixture of experts P counts the active ones. KV writes are not part of Phi.

    Args:
        model: The geometry.
        hardware: The chip.
        gen_len: T, any shape [tokens].
        prompt_len: L_in [tokens].
        num_trials: N trials that read the prompt once; None = endless, the paper's limit.
        kv_dtype: Cache dtype, of b bytes an element, its scale included.
        compute_dtype: The dtype of the matrix products; with kv_dtype, sets I.
        convention: "exact" or "paper".

    Returns:
        Phi [-]; its limit at gen_len = 0.

    Raises:
        ValueError: If a Python number is out of range, or a dtype or the convention is unknown.

    Example:
        >>> from kinetics_jax.specs import HARDWARE, MODELS
        >>> round(phi(MODELS["Qwen3-0.6B"], HARDWARE["PAPER_B200"], gen_len=4096, convention="paper"), 1)
        88.2

    References:
        PAPER.md section 2; errata 6: 88 for 0.6B but 4.7 for 32B, so "10 to 1000x" does not hold for large models.
    """
    num_params = num_flop_params(model, convention)
    element_bytes = kv_element_bytes(model, kv_dtype, convention)
    valid, prompt_len, gen_len, num_readers = prepare(
        prompt_len=prompt_len, gen_len=gen_len, num_trials=1 if num_trials is None else num_trials
    )
    own_len = gen_len + (0.0 if convention == "paper" else 1.0)
    fetched_len = own_len if num_trials is None else own_len + 2 * prompt_len / num_readers
    attention = model.group_size * (2 * prompt_len + own_len)
    memory = hardware.intensity(compute_dtype, kv_dtype) * element_bytes / 2 * fetched_len
    return poison(model.kv_elements_per_token / (2 * num_params) * (attention + memory), valid)


def break_even_budget_len(
    model: ModelSpec,
    hardware: HardwareSpec,
    *,
    kv_dtype: str = "bfloat16",
    compute_dtype: str = "bfloat16",
    convention: Convention = "exact",
) -> float:
    """Return the KV budget whose reading costs as much as the weights: B* = P / ((r + I b / 2) D).

    Below B*, sparse attention is the smaller part of a step and a smaller budget saves little.

    Args:
        model: The geometry.
        hardware: The chip.
        kv_dtype: Cache dtype, of b bytes an element, its scale included.
        compute_dtype: The dtype of the matrix products; with kv_dtype, sets I.
        convention: "exact" (P without the input embedding) or "paper" (the published P).

    Returns:
        B* [tokens], not rounded.

    Raises:
        ValueError: If a dtype or the convention is unknown.

    Example:
        >>> from kinetics_jax.specs import HARDWARE, MODELS
        >>> round(break_even_budget_len(MODELS["Qwen3-32B"], HARDWARE["PAPER_B200"], convention="paper"))
        438

    References:
        PAPER.md section 2, from the sparse formulas.
    """
    memory = kv_element_bytes(model, kv_dtype, convention) / 2 * hardware.intensity(compute_dtype, kv_dtype)
    per_entry = model.group_size + memory
    return num_flop_params(model, convention) / (per_entry * model.kv_elements_per_token)
