"""The experiments on closed forms and on recorded traces: beside the grid, on held-out trials, by chip and shape."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.scaling import (
    AccuracySurface,
    Allocation,
    Bounds,
    HeldOutOptimum,
    ModelsByIntensity,
    Optimum,
    Setting,
    _experiments,
    allocate,
    allocation_laws,
    balance_cache,
    best_models_by_intensity,
    cheapest_by_chip,
    fit_accuracy_surface,
    grid_optimum,
    request_price,
    score_optima,
    sparsity_saving,
    tradeoff_table,
)
from kinetics_jax.scaling._lanes import solve_lanes, stack
from kinetics_jax.specs import HARDWARE, MODELS
from kinetics_jax.traces import TraceTable
from kinetics_jax.zoo import recorded_tables
from tests.scaling.smooth import Powers, small_law

H100, MINI = HARDWARE["H100-SXM"], MODELS["Kinetics-Mini-1.7M"]
# All lanes of the recorded traces have one shape, so that they share one compiled program.
NUM_CAPS = 8
BUDGET_LENS, LENGTHS = (16.0, 32.0, 64.0, 128.0, 256.0), tuple(256 * 2 ** (-step / 2) for step in range(11))
BOX = Bounds(gen_len=(8.0, 256.0), num_trials=1.0, budget_len=(16.0, 256.0), page_len=1.0)


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def tables() -> list[TraceTable]:
    return [table for table in recorded_tables() if table.attention.startswith(("dense", "topk"))]


@pytest.fixture(scope="module")
def caps_and_grid(tables: list[TraceTable]) -> tuple[np.ndarray, Allocation]:
    sparse = [table for table in tables if table.attention != "dense"]
    tradeoff = tradeoff_table(sparse, models=MODELS, hardware=H100, strategy="long_cot")
    caps = tradeoff.budget_grid(NUM_CAPS)
    return np.asarray(caps, dtype=float), allocate(tradeoff, caps)


@pytest.fixture(scope="module")
def held_out(tables: list[TraceTable], caps_and_grid: tuple[np.ndarray, Allocation]) -> HeldOutOptimum:
    return score_optima(tables, models=MODELS, hardware=H100, budgets=caps_and_grid[0], strategy="long_cot")


@pytest.fixture(scope="module")
def surface(tables: list[TraceTable]) -> AccuracySurface:
    return fit_accuracy_surface(tables, num_steps=60)


def test_rounded_optima_hold_their_own_on_trials_that_the_fit_has_not_seen(
    held_out: HeldOutOptimum, caps_and_grid: tuple[np.ndarray, Allocation]
):
    caps, grid = caps_and_grid
    assert held_out.solved.shape == (NUM_CAPS, 80)
    beside = held_out.beside(grid, num_resamples=200)
    np.testing.assert_allclose(beside.gain, held_out.accuracy - np.asarray(grid.accuracy), atol=1e-6)
    # Caps are met on the trials that choose; on others the price is off by noise.
    assert (beside.spent <= 1.1 * caps).all()
    # docs/allocation.md has the whole range and says where a short length is underrated.
    is_within = beside.gain >= -beside.grid_stderr
    assert is_within.sum() >= NUM_CAPS - 1
    assert beside.gain.min() > -0.04
    assert beside.gain.mean() > -0.01
    assert held_out.accuracy[-1] > 0.7
    with pytest.raises(ValueError, match="must have the same caps"):
        replace(held_out, budgets=2 * caps).beside(grid)


def test_dense_attention_alone_leaves_nothing_to_choose(tables: list[TraceTable]):
    dense = [table for table in tables if table.attention == "dense"]
    with pytest.raises(ValueError, match="a KV budget can be chosen among sparse traces only"):
        score_optima(dense, models=MODELS, hardware=H100, budgets=np.array([1e9]))


def test_on_the_fitted_surface_no_point_of_the_grid_is_better(
    tables: list[TraceTable], surface: AccuracySurface, caps_and_grid: tuple[np.ndarray, Allocation]
):
    caps, _ = caps_and_grid
    for grade in (5, 7):
        rows = np.flatnonzero(tables[0].difficulty == grade)
        laws = [
            replace(law, difficulty=law.difficulty[rows], weights=law.weights[rows] * 5) for law in laws_of(surface)
        ]
        prices = [
            request_price(MODELS[name], "topk", H100, prompt_len=294.0).averaged(law)
            for name, law in zip(surface.models, laws, strict=True)
        ]
        optima, is_met = solve_lanes(stack(laws), stack(prices), stack([BOX] * 4), jnp.asarray(caps, jnp.float32))
        for lane, (law, price) in enumerate(zip(laws, prices, strict=True)):
            paid = np.asarray(is_met)[lane]
            best = grid_optimum(law, price, caps, gen_lens=LENGTHS, num_trials=[1.0], budget_lens=BUDGET_LENS)
            assert (np.isfinite(best.setting.gen_len) <= paid | (caps < 1.001 * caps[0])).all()
            assert (np.asarray(optima.accuracy)[lane][paid] >= best.accuracy[paid] - 2e-4).all()
            assert (np.asarray(optima.cost)[lane][paid] <= caps[paid] * 1.001).all()
            assert np.mean(np.asarray(optima.accuracy)[lane][paid] - best.accuracy[paid]) > 1e-3


def laws_of(surface: AccuracySurface) -> list[AccuracySurface]:
    return [surface.of_model(name) for name in surface.models]


def test_the_grid_optimum_by_hand():
    law = Powers(scale=1e-3, length=0.5, trials=0.5, budget=0.0)
    price = Product(unit=1.0)
    best = grid_optimum(
        law, price, np.array([5.0, 10.0, 64.0, 1e6]), gen_lens=[8, 16], num_trials=[1, 4], budget_lens=[1]
    )
    np.testing.assert_array_equal(best.setting.gen_len, [np.nan, 8, 16, 16])
    np.testing.assert_array_equal(best.setting.num_trials, [np.nan, 1, 4, 4])
    np.testing.assert_allclose(best.cost, [0, 8, 64, 64])
    np.testing.assert_allclose(best.accuracy, [0, 8**0.5 * 1e-3, 8e-3, 8e-3], rtol=1e-5)
    with pytest.raises(ValueError, match="a grid needs a number of each"):
        grid_optimum(law, price, np.array([5.0]), gen_lens=[], num_trials=[1], budget_lens=[1])


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Product:
    """Price = unit n N."""

    unit: Any

    def __call__(self, setting: Setting) -> Any:
        return self.unit * setting.gen_len * setting.num_trials


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Steep:
    """Price = unit n^2 + B: the best n grows with the root of the budget."""

    unit: Any
    lengths: Any = None

    def __call__(self, setting: Setting) -> Any:
        return self.unit * setting.gen_len**2 + setting.budget_len


def test_laws_of_growth_by_hand(monkeypatch: pytest.MonkeyPatch):
    """Price n^2 + B with the closed form in the solver's place: n^a B^b spends a / (a + 2 b) of the money on n^2."""

    def in_closed_form(laws: Powers, prices: Any, bounds: Bounds, budgets: Any) -> tuple[Optimum, Any]:
        budgets, share = np.asarray(budgets)[None], np.asarray(laws.length / (laws.length + 2 * laws.budget))[:, None]
        low, high = (np.asarray(end)[:, None] for end in bounds.ends("budget_len"))
        read = np.clip((1 - share) * budgets, low, high)
        length = np.minimum((budgets - read) ** 0.5, np.asarray(bounds.ends("gen_len")[1])[:, None])
        ones = np.ones_like(length)
        setting = Setting(gen_len=length, num_trials=2 * ones, budget_len=read, page_len=ones)
        paid = length**2 + read
        nothing = {name: ones for name in ("accuracy", "shadow_price", "multipliers", "slack", "kkt_residual")}
        return Optimum(setting=setting, cost=paid, limits=(), **nothing), ones > 0

    monkeypatch.setattr(_experiments, "solve_lanes", in_closed_form)
    law = Powers(scale=1e-4, length=0.6, trials=0.0, budget=0.3)
    box = Bounds(gen_len=(1.0, 1e3), num_trials=2.0, budget_len=(50.0, 1e6))
    # Two resamples scale everything; a third hardly gains from B, which stays at its lower bound.
    drawn = Powers(scale=jnp.array([1e-4, 2e-4, 1e-4]), length=0.6, trials=0.0, budget=jnp.array([0.3, 0.3, 1e-6]))
    drawn = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, 3), drawn)
    # The last budget buys everything at its upper bound and is left out.
    budgets = np.array([1e3, 1e4, 1e5, 1e7])
    laws = allocation_laws(law, drawn, Steep(unit=1.0), budgets, bounds=box, level=0.9)
    tokens, budget = laws["num_tokens"], laws["budget_len"]
    assert [tokens.exponent, budget.exponent] == pytest.approx([0.5, 1.0], rel=1e-6)
    # Half of the money each: n^2 = B = C / 2.
    assert tokens(np.array([1e4]))[0] == pytest.approx(2 * 5e3**0.5, rel=1e-6)
    assert budget.factor_per_doubling == pytest.approx(2.0, rel=1e-6)
    assert budget.exponent_low == pytest.approx(np.percentile([0, 1, 1], 5), abs=1e-4)
    assert budget.exponent_high == pytest.approx(1.0, rel=1e-6)
    assert tokens.exponent_high > tokens.exponent
    with pytest.raises(ValueError, match="two budgets that are spent in full; got 1"):
        allocation_laws(law, drawn, Steep(unit=1.0), np.array([1e3, 1e7, 2e7, 3e7]), bounds=box)


def test_which_model_takes_over_by_hand():
    found = ModelsByIntensity(
        intensities=np.array([100.0, 300.0]),
        budgets=np.array([1.0, 2.0, 4.0, 8.0]),
        model=np.array([[-1, 0, 1, 1], [0, 1, 0, 0]]),
        accuracy=np.zeros((2, 2, 4)),
        models=("small", "large"),
    )
    np.testing.assert_array_equal(found.takes_over_at("large"), [4.0, np.nan])
    np.testing.assert_array_equal(found.takes_over_at("small"), [np.nan, 4.0])
    assert found.critical_model() == ("large", "small")


def test_memory_that_costs_more_favours_the_smaller_cache(
    tables: list[TraceTable], surface: AccuracySurface, caps_and_grid: tuple[np.ndarray, Allocation]
):
    caps, _ = caps_and_grid
    rows = np.flatnonzero(tables[0].difficulty == 5)
    names = surface.models[1:3]
    part = replace(
        jax.tree.map(lambda leaf: leaf[1:3], surface),
        difficulty=surface.difficulty[1:3, rows],
        weights=jnp.full((2, rows.size), 1 / rows.size),
        models=names,
        problems=(),
    )
    prices = {
        name: request_price(MODELS[name], "topk", H100, prompt_len=294.0).averaged(part.of_model(name))
        for name in names
    }
    found = best_models_by_intensity(part, prices, caps, np.array([30.0, 600.0]), bounds=BOX)
    low, high = found.accuracy
    both = np.isfinite(high)
    assert (np.isfinite(low) >= both).all()
    # A byte that displaces fewer FLOPs leaves more money for all else.
    assert (low[both] > high[both] - 1e-4).all()
    assert low[both].mean() > high[both].mean() + 0.01
    wanted = np.where(
        np.isfinite(found.accuracy).any(1), np.nanargmax(np.nan_to_num(found.accuracy, nan=-1.0), axis=1), -1
    )
    np.testing.assert_array_equal(found.model, wanted)
    cautious = best_models_by_intensity(part, prices, caps, np.array([30.0, 600.0]), bounds=BOX, margin=0.5)
    assert (cautious.model[np.isfinite(found.accuracy[:, 0])] == 0).all()
    with pytest.raises(ValueError, match=f"every model of the surface needs a price; {names[1]} lacks one"):
        best_models_by_intensity(part, {names[0]: prices[names[0]]}, caps, np.array([30.0]), bounds=BOX)
    with pytest.raises(ValueError, match="above the cheapest setting's price"):
        best_models_by_intensity(part, prices, np.array([1.0]), np.array([30.0]), bounds=BOX)


# What follows shares the program of nine lanes of the small law.


def test_the_balance_of_the_cache_is_where_the_least_cost_is_least(double: None):
    price = request_price(MINI, "topk", H100, prompt_len=294.0)
    factors = 2.0 ** np.linspace(-8, 8, 9)
    found = balance_cache(small_law(), price, 0.5, bounds=BOX, factors=factors)
    np.testing.assert_allclose(found.kv_per_param, factors * MINI.kv_elements_per_token / MINI.num_active_matmul_params)
    assert (found.cost_by_cache > 0).all()
    assert (found.cost_by_params > 0).all()
    # FLOPs and bytes are all there is to pay, and each scales with one of the two or both.
    np.testing.assert_allclose(found.cost_by_cache + found.cost_by_params, 1.0, rtol=1e-6)
    # The envelope theorem against solving again at other shapes: the trapezoid rule joins slopes to costs.
    fine = balance_cache(small_law(), price, 0.5, bounds=BOX, factors=2.0 ** np.linspace(-0.2, 0.2, 9))
    steps = np.diff(np.log(fine.kv_per_param))
    np.testing.assert_allclose(
        np.diff(np.log(fine.cost)), steps * (fine.slope[1:] + fine.slope[:-1]) / 2, rtol=2e-3, atol=1e-7
    )
    least = found.kv_per_param[np.argmin(found.cost)]
    assert least / 4.1 < found.best_kv_per_param < least * 4.1
    at_best = balance_cache(
        small_law(),
        price,
        0.5,
        bounds=BOX,
        factors=found.best_kv_per_param / found.kv_per_param[0] * factors[0] * 2.0 ** np.linspace(-0.4, 0.4, 9),
    )
    assert at_best.cost.min() <= found.cost.min() * (1 + 1e-9)
    none = balance_cache(small_law(), price, 0.5, bounds=BOX, factors=2.0 ** np.linspace(4, 8, 9))
    assert np.isnan(none.best_kv_per_param)


def test_the_value_of_sparsity_and_its_slope(double: None):
    accuracies = np.linspace(0.2, 0.6, 9)
    whole_len = 550.0

    def saving(factor: float) -> Any:
        dense, sparse = (
            replace(price, flops_per_byte=price.flops_per_byte * factor)
            for price in (request_price(MINI, method, H100, prompt_len=294.0) for method in ("dense", "topk"))
        )
        return sparsity_saving(small_law(), dense, sparse, accuracies, bounds=BOX, whole_len=whole_len)

    step = 1e-4
    found, more, less = saving(1.0), saving(np.exp(step)), saving(np.exp(-step))
    np.testing.assert_allclose(found.dense.accuracy, accuracies, rtol=1e-6)
    np.testing.assert_allclose(found.sparse.accuracy, accuracies, rtol=1e-6)
    assert (np.asarray(found.log_saving) > 0).all()
    # The dual: a shadow price is the slope of the accuracy, and no point of a fine grid is as good for less.
    log_cost = np.log(found.sparse.cost)
    slope = (found.sparse.shadow_price[1:] + found.sparse.shadow_price[:-1]) / 2
    np.testing.assert_allclose(np.diff(log_cost), np.diff(accuracies) / slope, rtol=0.05)
    axes = np.meshgrid(np.geomspace(8, 256, 200), np.geomspace(16, 256, 200), indexing="ij")
    length, budget = (jnp.asarray(axis.ravel()) for axis in axes)
    grid = Setting(gen_len=length, num_trials=jnp.ones(40_000), budget_len=budget, page_len=jnp.ones(40_000))
    price = request_price(MINI, "topk", H100, prompt_len=294.0)
    accuracy, cost = (np.asarray(jax.jit(jax.vmap(law))(grid)) for law in (small_law().accuracy, price))
    least = np.array([cost[accuracy >= wanted].min() for wanted in accuracies])
    assert (found.sparse.cost <= least * (1 + 1e-9)).all()
    np.testing.assert_allclose(found.sparse.cost, least, rtol=0.03)
    differences = (more.log_saving - less.log_saving) / (2 * step)
    np.testing.assert_allclose(found.by_intensity, differences, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="accuracy must be below what the upper bounds reach"):
        sparsity_saving(
            small_law(),
            request_price(MINI, "dense", H100, prompt_len=294.0),
            request_price(MINI, "topk", H100, prompt_len=294.0),
            np.linspace(0.2, 0.999, 9),
            bounds=BOX,
            whole_len=whole_len,
        )


def test_weights_that_are_read_for_one_sequence_make_the_cache_cheap(double: None):
    chips = ("H100-SXM", "H200-SXM", "A100-SXM-80GB", "L4", "TPU-v5e", "TPU-v5p", "TPU-v6e")
    prices = {name: request_price(MINI, "topk", HARDWARE[name], prompt_len=294.0) for name in chips}
    prices["alone"] = request_price(MINI, "topk", H100, prompt_len=294.0, batch_size=1)
    prices["pair"] = request_price(MINI, "topk", H100, prompt_len=294.0, batch_size=2)
    found = cheapest_by_chip(small_law(), prices, 0.5, bounds=BOX)
    for name, best in found.items():
        assert float(best.accuracy) == pytest.approx(0.5, rel=1e-6)
        assert float(prices[name](best.setting)) == pytest.approx(float(best.cost), rel=1e-6), name
    lens = {name: float(best.setting.budget_len) for name, best in found.items()}
    # Weights dominate a step of one sequence: whoever reads more of the cache needs fewer steps.
    assert lens["alone"] > lens["pair"] > lens["H100-SXM"] + 1
    assert float(found["alone"].setting.gen_len) < float(found["H100-SXM"].setting.gen_len)
    intensity = {name: prices[name].flops_per_byte for name in chips}
    order = sorted(intensity, key=intensity.__getitem__)
    assert lens[order[-1]] < lens[order[0]]
