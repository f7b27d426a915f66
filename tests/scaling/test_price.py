"""The smooth price against the exact bills it is read off, its parts, and the mean price against a sum over steps."""

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.cost import capacity, eflops, request_cost, seconds
from kinetics_jax.scaling import RequestPrice, Setting, free_cache_bytes, request_bill, request_price
from kinetics_jax.specs import HARDWARE, MODELS, TopK
from tests.scaling.smooth import small_law

MINI, H100 = MODELS["Kinetics-Mini-1.7M"], HARDWARE["H100-SXM"]


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def settings_of(page_len: float) -> Setting:
    axes = np.meshgrid([9.0, 200.0, 4000.0], [1.0, 3.0, 64.0], [32.0, 256.0, 2048.0], indexing="ij")
    length, trials, budget = (axis.ravel() for axis in axes)
    return Setting(gen_len=length, num_trials=trials, budget_len=budget, page_len=np.full_like(length, page_len))


@pytest.mark.parametrize(
    ("method", "page_len", "error"), [("dense", 1, 1e-6), ("topk", 1, 2e-3), ("block_topk", 8, 0.03)]
)
def test_whole_settings_cost_what_their_bills_say(method: str, page_len: float, error: float):
    at = settings_of(page_len)
    for batch_size in (None, 1):
        price = request_price(MINI, method, H100, prompt_len=294, batch_size=batch_size)
        smooth = np.asarray(jax.vmap(price)(jax.tree.map(jnp.asarray, at)))
        exact = request_bill(MINI, method, H100, prompt_len=294, batch_size=batch_size)(at)
        # Steps whose pages all fit are searched by the smooth price, and free in the bill.
        is_like = np.asarray(at.budget_len) < 294 if method == "block_topk" else np.ones(len(exact), bool)
        np.testing.assert_allclose(smooth[is_like], exact[is_like], rtol=error)


def test_parts_are_compute_and_memory():
    at = Setting(gen_len=200.0, num_trials=3.0, budget_len=64.0, page_len=1.0)
    bill = request_cost(MINI, TopK(budget_len=64), prompt_len=294, gen_len=200, num_trials=3)
    add = request_price(MINI, "topk", H100, prompt_len=294)
    larger = replace(add, combine="max")
    assert add.part_names == ("cost",)
    assert larger.part_names == ("compute", "memory traffic")
    wanted = [bill.flops, bill.bytes * H100.intensity("bfloat16", "bfloat16")]
    np.testing.assert_allclose(larger.parts(at), wanted, rtol=1e-3)
    assert float(larger(at)) == max(map(float, larger.parts(at)))
    np.testing.assert_allclose(add(at), sum(larger.parts(at)), rtol=1e-12)
    alone = request_cost(MINI, TopK(budget_len=64), prompt_len=294, gen_len=200, num_trials=3, batch_size=3)
    np.testing.assert_allclose(add.latency_s(at), seconds(alone, H100), rtol=2e-3)


def test_memory_is_what_capacity_counts():
    room = capacity(MINI, TopK(budget_len=64), H100, context_len=320)
    free = free_cache_bytes(MINI, H100)
    assert free == pytest.approx(room.usable_bytes - room.weight_bytes)
    price = request_price(MINI, "topk", H100, prompt_len=300)
    one = float(price.cache_bytes(Setting(gen_len=20.0, num_trials=1.0, budget_len=64.0, page_len=1.0)))
    assert room.num_sequences == pytest.approx(free / one, rel=0.01)


def test_the_mean_price_is_that_of_trials_that_stop_when_right():
    law = small_law()
    price: RequestPrice = request_price(MINI, "topk", H100, prompt_len=294)
    at = Setting(gen_len=100.0, num_trials=1.0, budget_len=64.0, page_len=1.0)
    # A trial ends at step t with the chance that it is solved there, and pays for t tokens.
    edges = jnp.arange(1.0, 101.0)
    within = np.asarray(
        jax.vmap(lambda n: (law.weights * law.solved(replace(at, gen_len=n))).sum())(
            jnp.concatenate([edges - 1 + 1e-9, edges[-1:]])
        )
    )
    to = np.asarray(jax.vmap(lambda n: price(replace(at, gen_len=n)))(edges))
    paid = (np.diff(within) * (to + np.append(0.0, to[:-1])) / 2).sum() + (1 - within[-1]) * to[-1]
    np.testing.assert_allclose(price.averaged(law)(at), paid, rtol=2e-3)
    assert float(price.averaged(law)(at)) < 0.95 * float(price(at))


def test_one_number_for_dense_and_for_the_paper_chip():
    chip = HARDWARE["PAPER_B200"]
    price = request_price(MODELS["Qwen3-8B"], "dense", chip, prompt_len=500)
    exact = request_cost(MODELS["Qwen3-8B"], TopK(budget_len=10**6), prompt_len=500, gen_len=8000)
    at = Setting(gen_len=8000.0, num_trials=1.0, budget_len=1.0, page_len=1.0)
    np.testing.assert_allclose(price(at), eflops(exact, chip), rtol=1e-6)
    with pytest.raises(ValueError, match="method must be one of dense, topk"):
        request_price(MINI, "window", H100, prompt_len=294)
