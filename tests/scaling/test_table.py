"""From trace tables to prices and successes, on synthetic tables of the recorded shape."""

from dataclasses import replace

import numpy as np
import pytest

from kinetics_jax.cost import eflops, request_cost
from kinetics_jax.scaling import (
    accuracy_by_budget,
    model_bands,
    model_frontiers,
    paired_gain,
    tradeoff_table,
)
from kinetics_jax.specs import HARDWARE, MODELS, Dense
from tests.scaling.synthetic import MODEL_NAMES, synthetic_tables

H100 = HARDWARE["H100-SXM"]
SMALL = synthetic_tables(models=MODEL_NAMES[:2], attentions=("dense", "block_topk:8x4"), num_problems=6, num_trials=8)


def test_long_cot_counts_and_prices():
    tradeoff = tradeoff_table(SMALL, models=MODELS, hardware=H100, limits=[32, 256])
    assert tradeoff.cost.shape == (2, 6, 8)
    assert [candidate.gen_len for candidate in tradeoff.candidates[:2]] == [32, 256]
    assert tradeoff.candidates[2].attention == "block_topk:8x4"
    table = SMALL[0]
    correct = (table.solved_len <= 32)[:, 0::2].sum(1)
    np.testing.assert_array_equal(tradeoff.num_correct[0, :, 0], correct)
    lengths = np.minimum(table.gen_len, 32)[3, 1::2]
    model = MODELS[table.model]
    prices = [
        eflops(request_cost(model, Dense(), prompt_len=int(table.prompt_len[3]), gen_len=int(length)), H100)
        for length in lengths
    ]
    np.testing.assert_allclose(tradeoff.cost[1, 3, 0], np.mean(np.asarray(prices)), rtol=1e-5)


def test_best_of_n_counts_and_prices():
    tradeoff = tradeoff_table(SMALL, models=MODELS, hardware=H100, price="flops", strategy="best_of_n")
    assert [candidate.num_trials for candidate in tradeoff.candidates[:3]] == [1, 2, 4]
    assert {candidate.gen_len for candidate in tradeoff.candidates} == {256}
    np.testing.assert_array_equal(tradeoff.k[:3], [1, 2, 4])
    np.testing.assert_allclose(tradeoff.cost[..., 2], 4 * np.asarray(tradeoff.cost[..., 0]), rtol=1e-5)
    np.testing.assert_array_equal(tradeoff.num_correct[..., 0], tradeoff.num_correct[..., 2])


def test_a_full_length_is_the_tables_own():
    short = replace(SMALL[1], max_gen_len=300)
    tradeoff = tradeoff_table([SMALL[0], short], models=MODELS, hardware=H100, strategy="best_of_n")
    assert {(candidate.attention, candidate.gen_len) for candidate in tradeoff.candidates} == {
        ("dense", 256),
        ("block_topk:8x4", 300),
    }


def test_missing_trials_do_not_count():
    mask = SMALL[0].mask.copy()
    mask[:, -2:] = False
    whole = tradeoff_table([SMALL[0].restrict(num_trials=6)], models=MODELS, hardware=H100)
    masked = tradeoff_table([replace(SMALL[0], mask=mask)], models=MODELS, hardware=H100)
    for name in ("cost", "num_correct", "num_trials"):
        np.testing.assert_allclose(getattr(masked, name), getattr(whole, name), rtol=1e-6)


def test_candidates_are_ordered_by_model_size():
    tradeoff = tradeoff_table(SMALL[::-1], models=MODELS, hardware=H100)
    assert tradeoff.models == MODEL_NAMES[:2]


def test_eflops_move_the_lead_to_larger_models():
    """On the synthetic law, as in the paper, charging memory favours the larger model earlier."""
    tables = synthetic_tables(attentions=("dense",))
    leads = {}
    for price in ("flops", "eflops"):
        tradeoff = tradeoff_table(tables, models=MODELS, hardware=H100, price=price)
        bands = model_bands(model_frontiers(tradeoff, tradeoff.budget_grid(48)), margin=0.01)
        leads[price] = next(band.accuracy_from for band in bands if band.model == MODEL_NAMES[-1])
    assert leads["eflops"] < leads["flops"]


def test_bad_tables():
    with pytest.raises(ValueError, match="folder empty"):
        tradeoff_table([], models=MODELS, hardware=H100)
    with pytest.raises(ValueError, match="two tables"):
        tradeoff_table([SMALL[0], SMALL[0]], models=MODELS, hardware=H100)
    with pytest.raises(ValueError, match="share their problems"):
        tradeoff_table([SMALL[0], SMALL[1].restrict(problems=SMALL[1].problems[:3])], models=MODELS, hardware=H100)
    with pytest.raises(ValueError, match="share one task"):
        tradeoff_table([SMALL[0], replace(SMALL[1], task="other")], models=MODELS, hardware=H100)
    with pytest.raises(ValueError, match="256 tokens"):
        tradeoff_table(SMALL, models=MODELS, hardware=H100, limits=[512])
    with pytest.raises(ValueError, match="a length; got an empty list"):
        tradeoff_table(SMALL, models=MODELS, hardware=H100, limits=[])
    with pytest.raises(ValueError, match="a number of trials; got an empty list"):
        tradeoff_table(SMALL, models=MODELS, hardware=H100, strategy="best_of_n", trial_counts=[])
    with pytest.raises(ValueError, match="4 trials of a fold"):
        tradeoff_table(SMALL, models=MODELS, hardware=H100, strategy="best_of_n", trial_counts=[8])
    with pytest.raises(ValueError, match="trial in each"):
        tradeoff_table([SMALL[0].restrict(num_trials=1)], models=MODELS, hardware=H100)
    with pytest.raises(ValueError, match="unknown model"):
        tradeoff_table([replace(SMALL[0], model="GPT")], models=MODELS, hardware=H100)


def test_accuracy_by_budget():
    dense, block = accuracy_by_budget(SMALL[:2])
    assert (dense.budget_len, block.budget_len, block.method) == (None, 32, "block_topk")
    np.testing.assert_allclose(dense.accuracy, np.isfinite(SMALL[0].solved_len).mean())
    assert dense.low <= dense.accuracy <= dense.high


def test_paired_gain_is_the_mean_difference_by_problem_and_its_interval_covers_it():
    base, other = (table for table in SMALL if table.attention == "dense")
    share = [np.isfinite(table.solved_len).mean(1) for table in (base, other)]
    gain = paired_gain(base, other)
    assert gain.gain == pytest.approx(float((share[1] - share[0]).mean()))
    assert gain.low <= gain.gain <= gain.high
    back = paired_gain(other, base)
    assert (back.gain, back.low, back.high) == pytest.approx((-gain.gain, -gain.high, -gain.low))
    same = paired_gain(base, base)
    assert (same.gain, same.low, same.high) == (0, 0, 0)


def test_paired_gain_refuses_other_problems():
    base, other = (table for table in SMALL if table.attention == "dense")
    with pytest.raises(ValueError, match="same problems"):
        paired_gain(base, other.restrict(problems=other.problems[:3]))
