"""The adaptive policy: valued as by drawing every request, better only where lengths tell something."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from kinetics_jax.cost import eflops, request_cost
from kinetics_jax.scaling import AdaptivePolicy, evaluate_policy
from kinetics_jax.scaling._followups import price_followups
from kinetics_jax.specs import HARDWARE, MODELS, Dense, parse_attention
from kinetics_jax.traces import TraceTable
from tests.scaling.synthetic import MODEL_NAMES, synthetic_tables

H100 = HARDWARE["H100-SXM"]
MODEL = MODEL_NAMES[0]


def table_of(gen_len: np.ndarray, right: np.ndarray, mask: np.ndarray | None = None) -> TraceTable:
    mask = np.ones(gen_len.shape, bool) if mask is None else mask
    num_problems = len(gen_len)
    return TraceTable(
        model=MODEL,
        attention="dense",
        task="drawn",
        max_gen_len=512,
        problems=tuple(f"p{q:02d}" for q in range(num_problems)),
        difficulty=np.zeros(num_problems, np.int32),
        prompt_len=np.full(num_problems, 200, np.int32),
        gen_len=np.where(mask, gen_len, 0).astype(np.int32),
        solved_len=np.where(right & mask, gen_len, np.inf),
        mask=mask,
    )


def price(attention: str, gen_len: int, count: int, prompt_len: int) -> float:
    cost = request_cost(
        MODELS[MODEL], parse_attention(attention), prompt_len=prompt_len, gen_len=gen_len, num_trials=count
    )
    return float(eflops(cost, H100))


def test_values_and_prices_are_means_over_all_requests():
    """Against every recorded first trial, followed by every choice of other trials."""
    tables = synthetic_tables(models=(MODEL,), attentions=("dense", "topk:32"), num_problems=3, num_trials=5)
    missing = np.ones((3, 5), bool)
    missing[1, 3] = missing[2, 0] = False
    tables = {table.attention: replace(table, mask=missing & table.mask) for table in tables}
    edges, opening = (8, 40), tables["dense"]
    found = price_followups(tables, "dense", edges, (1, 3), model=MODELS[MODEL], hardware=H100, price="eflops")
    assert found.options == (("", 0), ("dense", 1), ("dense", 3), ("topk:32", 1), ("topk:32", 3))
    value, cost = np.zeros(found.value.shape), np.zeros(found.cost.shape)
    for q in range(3):
        firsts, prompt_len = np.flatnonzero(missing[q]), int(opening.prompt_len[q])
        for r, (a, (attention, count)) in itertools.product(firsts, enumerate(found.options)):
            state = int(opening.gen_len[q, r] >= 8) + int(opening.gen_len[q, r] >= 40)
            table = tables[attention or "dense"]
            requests = list(itertools.combinations([other for other in firsts if other != r], count))
            first_right = np.isfinite(opening.solved_len[q, r])
            right = [first_right or np.isfinite(table.solved_len[q, list(request)]).any() for request in requests]
            first_price = price("dense", int(opening.gen_len[q, r]), 1, prompt_len)
            others = [
                np.mean([price(attention, int(table.gen_len[q, other]), count, prompt_len) for other in request])
                for request in requests
                if count
            ]
            value[q, state, a] += np.mean(right) / len(firsts)
            cost[q, state, a] += (first_price + (np.mean(others) if others else 0)) / len(firsts)
    np.testing.assert_allclose(found.value, value, atol=1e-6)
    np.testing.assert_allclose(found.cost, cost, rtol=1e-9)


def two_kinds(seed: int, *, tells: bool, num_problems: int = 40) -> tuple[TraceTable, np.ndarray]:
    """Draw a table, and budgets in FLOPs, where N trials cost N times as much as one.

    Half of the problems always succeed, half at 30%; where lengths tell, in 64 and 16 tokens.
    """
    rng = np.random.default_rng(seed)
    is_hard = np.arange(num_problems) % 2 == 1
    right = rng.random((num_problems, 12)) < np.where(is_hard, 0.3, 1.0)[:, None]
    length = np.where(is_hard, 16, 64)[:, None] + np.zeros((1, 12), int)
    if not tells:
        length = rng.choice([16, 64], size=length.shape)
    table = table_of(length, right)
    bills = (request_cost(MODELS[MODEL], Dense(), prompt_len=200, gen_len=length) for length in (16, 64))
    return table, float(np.mean([bill.flops for bill in bills])) * np.array([0.5, 1.1, 1.3, 1.7])


POLICY = AdaptivePolicy(first="dense", edges=(32,), trial_counts=(1, 2, 4))


def test_lengths_that_tell_are_used():
    table, budgets = two_kinds(0, tells=True)
    found = evaluate_policy([table], POLICY, budgets, models=MODELS, hardware=H100, price="flops")
    np.testing.assert_allclose(found.spent, budgets, rtol=0.02)
    np.testing.assert_allclose(found.served, [0.5, 1, 1, 1])
    assert (found.regret_to_fixed[1:] < -0.03).all()
    assert (found.regret_interval(num_resamples=200)[1][1:] < 0).all()
    # Below the price of a first trial, a share of the requests is answered: half of (1 + 0.3) / 2.
    assert abs(found.accuracy[0] - 0.325) < 0.02
    # A long first trial was right: nothing follows. A short one is followed by as many as there is money for.
    short, long = found.decisions[2]
    assert [(decision.num_trials, decision.chance) for decision in long] == [(0, 1.0)]
    assert sum(decision.num_trials * decision.chance for decision in short) > 1
    for low, high in zip(*found.regret_to_oracle, strict=True):
        assert low <= high + 1e-6
        assert high > -0.01
    np.testing.assert_allclose(found.solved.mean(1), found.accuracy)
    np.testing.assert_allclose(found.paid.mean(1), found.spent)


def test_oracles_have_the_same_options():
    """One further trial at most, above and below: eight trials for the hard problems would pass the upper bound."""
    rng, policy = np.random.default_rng(0), AdaptivePolicy(first="dense", edges=(8,), trial_counts=(1,))
    right = rng.random((30, 16)) < np.where(np.arange(30) % 2 == 1, 0.25, 1.0)[:, None]
    one = request_cost(MODELS[MODEL], Dense(), prompt_len=200, gen_len=32).flops
    found = evaluate_policy(
        [table_of(np.full((30, 16), 32), right)],
        policy,
        float(one) * np.array([1.2, 1.5, 1.9]),
        models=MODELS,
        hardware=H100,
        price="flops",
    )
    assert (found.oracle_low <= found.oracle_high).all()


def test_lengths_that_tell_nothing_show_no_gain():
    """Null test: what the policy sees is noise, and its regret to the best fixed choice is not negative."""
    regrets = []
    for seed in range(12):
        table, budgets = two_kinds(seed, tells=False)
        found = evaluate_policy([table], POLICY, budgets, models=MODELS, hardware=H100, price="flops")
        regrets.append(found.regret_to_fixed)
    assert (np.mean(regrets, axis=0) > -0.003).all()
    assert (np.mean(regrets, axis=0) < 0.02).all()


def test_bad_input():
    table, budgets = two_kinds(0, tells=True, num_problems=6)
    with pytest.raises(ValueError, match="edges must rise"):
        AdaptivePolicy(first="dense", edges=(8, 8))
    with pytest.raises(ValueError, match="trial_counts"):
        AdaptivePolicy(first="dense", edges=(8,), trial_counts=())
    for wrong, words in (
        ({"policy": AdaptivePolicy(first="topk:8", edges=(8,))}, "'topk:8' for the first trial"),
        ({"policy": AdaptivePolicy(first="dense", edges=(8,), trial_counts=(12,))}, "as many others"),
        ({"budgets": -budgets}, "positive"),
        ({"budgets": budgets[::-1].copy()}, "finite and rise"),
        ({"num_folds": 7}, "2..6 problems"),
    ):
        arguments = {"policy": POLICY, "budgets": budgets, **wrong}
        with pytest.raises(ValueError, match=words):
            evaluate_policy([table], models=MODELS, hardware=H100, **arguments)
