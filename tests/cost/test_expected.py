"""Random lengths: truncation at every limit in one pass, masks, bootstrap intervals and censoring."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.cost import Cost, CostEstimate, bootstrap_cost, eflops, expected_cost, request_cost
from kinetics_jax.specs import HARDWARE, MODELS, BlockTopK, Dense, TopK

MODEL, H100 = MODELS["Qwen3-0.6B"], HARDWARE["H100-SXM"]
PAGES = BlockTopK(page_len=16, num_pages=4, dense_layers=1)
LENGTHS = np.array([[10.0, 400.0, 90.0, 90.0, 7.0], [33.0, 1.0, 64.0, 1000.0, 5.0]])
MASK = np.array([[True, True, True, False, True], [False, True, True, True, True]])
LIMITS = np.array([1.0, 64.0, 90.0, 91.0, 5000.0])


def by_hand(spec: Any, limit: float, row: int, prompt_len: float) -> Cost:
    """Price every existing sample on its own and average."""
    lengths = [min(length, limit) for length, exists in zip(LENGTHS[row], MASK[row], strict=True) if exists]
    bills = [request_cost(MODEL, spec, prompt_len=prompt_len, gen_len=n, num_trials=3) for n in lengths]
    return sum(bills[1:], start=bills[0]) * (1 / len(bills))


@pytest.mark.parametrize("spec", [Dense(), TopK(budget_len=50), PAGES], ids=str)
def test_every_limit_is_the_mean_over_truncated_samples(spec: Any) -> None:
    prompt_lens = np.array([100.0, 20.0])

    def price(prompt_lens: Any, lengths: Any, mask: Any, limits: Any) -> Cost:
        return expected_cost(
            MODEL, spec, prompt_len=prompt_lens, gen_lens=lengths, mask=mask, max_gen_lens=limits, num_trials=3
        )

    by_numpy = price(prompt_lens, LENGTHS, MASK, LIMITS)
    with jax.enable_x64(True):
        by_jax = jax.jit(price)(prompt_lens, LENGTHS, MASK, LIMITS)
    for row, column in np.ndindex(2, 5):
        wanted = by_hand(spec, float(LIMITS[column]), row, float(prompt_lens[row]))
        for cost in (by_numpy, by_jax):
            got = [float(leaf[row, column]) for leaf in jax.tree.leaves(cost)]
            assert got == pytest.approx(jax.tree.leaves(wanted), rel=1e-12)


def test_limits_above_all_samples_change_nothing() -> None:
    whole = expected_cost(MODEL, PAGES, prompt_len=9, gen_lens=LENGTHS, mask=MASK)
    limited = expected_cost(MODEL, PAGES, prompt_len=9, gen_lens=LENGTHS, mask=MASK, max_gen_lens=np.array([1000]))
    np.testing.assert_allclose(np.asarray(eflops(limited, H100))[:, 0], eflops(whole, H100), rtol=1e-13)


def test_dense_is_the_two_moments_of_the_paper() -> None:
    """Eq. 10: a E[T] + b E[T^2], with a = 2 P + (2 r + 2 I) L_in D and b = (r + I) D in the paper's convention."""
    lengths, prompt_len, intensity = np.array([100.0, 300.0, 5000.0]), 50, 562.5
    cost = expected_cost(MODEL, Dense(), prompt_len=prompt_len, gen_lens=lengths, convention="paper")
    linear = 2 * 751_632_384 + 2 * (2 + intensity) * prompt_len * 57_344
    wanted = linear * 1800 + (2 + intensity) * 57_344 * (100**2 + 300**2 + 5000**2) / 3
    assert eflops(cost, HARDWARE["PAPER_B200"]) == pytest.approx(wanted, rel=1e-12)


def test_no_sample_is_nan_and_hides_nothing() -> None:
    mask = np.array([[False] * 5, [True] * 5])
    cost = expected_cost(MODEL, PAGES, prompt_len=9, gen_lens=LENGTHS, mask=mask, max_gen_lens=LIMITS)
    np.testing.assert_array_equal(np.isfinite(cost.bytes), [[False] * 5, [True] * 5])


def test_gradient_in_the_limit_is_the_share_still_running() -> None:
    """d E[linear FLOPs] / dn = 2 P P(T > n)."""

    def price(limit: Any) -> Any:
        lengths, limits = jnp.asarray(LENGTHS[0]), jnp.atleast_1d(limit)
        cost = expected_cost(MODEL, TopK(budget_len=50), prompt_len=9, gen_lens=lengths, max_gen_lens=limits)
        return cost.linear_flops[0]

    slope = jax.jit(jax.grad(price))(jnp.float32(50.0))
    np.testing.assert_allclose(slope, 2 * MODEL.num_matmul_params * 3 / 5, rtol=1e-6)


def bootstrap(spec: Any, **options: Any) -> CostEstimate:
    return bootstrap_cost(
        MODEL, spec, **{"prompt_len": np.array([100.0, 20.0]), "gen_lens": LENGTHS, "max_gen_lens": LIMITS, **options}
    )


def test_bootstrap_centres_on_the_mean_with_the_spread_of_theory() -> None:
    """The bootstrap variance of a mean of R samples is their (biased) variance / R."""
    estimate = bootstrap(Dense(), mask=MASK, num_resamples=4000, key=jax.random.key(1))
    terms = np.asarray(eflops(estimate.resamples, H100))
    assert terms.shape == (4000, 2, 5)
    mean = np.asarray(eflops(estimate.mean, H100))
    np.testing.assert_allclose(terms.mean(0), mean, rtol=0.05)
    prices = np.array(
        [
            eflops(request_cost(MODEL, Dense(), prompt_len=100, gen_len=n), H100)
            for n in np.minimum(LENGTHS[0][MASK[0]], 91)
        ]
    )
    assert terms[:, 0, 3].std() == pytest.approx(prices.std() / 2, rel=0.05)  # R = 4
    low, high = estimate.interval(lambda bill: eflops(bill, H100))
    assert (low[:, 1:] < mean[:, 1:]).all()
    assert (mean[:, 1:] < high[:, 1:]).all()
    np.testing.assert_allclose(high[:, 0], low[:, 0])  # All samples reach one token: nothing is uncertain.


def test_bootstrap_states_what_the_limit_cuts() -> None:
    estimate = bootstrap(PAGES, mask=MASK, num_resamples=2, key=jax.random.key(1))
    np.testing.assert_array_equal(estimate.censored_share, [[1, 0.5, 0.5, 0.25, 0], [1, 0.5, 0.25, 0.25, 0]])


def test_bootstrap_repeats_with_its_key() -> None:
    once, again, other = (bootstrap(PAGES, num_resamples=8, key=jax.random.key(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(once.resamples.bytes, again.resamples.bytes)
    assert (once.resamples.bytes != other.resamples.bytes).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_resamples": 1}, "num_resamples must be at least 2; got 1"),
        ({"mask": np.array([[True] * 5, [False] * 5])}, "every row of gen_lens needs a sample"),
    ],
)
def test_bootstrap_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap(Dense(), **options, key=jax.random.key(0))


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_interval_refuses_a_level_out_of_range(level: float) -> None:
    estimate = bootstrap(Dense(), num_resamples=2, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\); got"):
        estimate.interval(lambda bill: bill.flops, level=level)
