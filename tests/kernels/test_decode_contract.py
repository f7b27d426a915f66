"""The contract every implementation keeps, against the oracle; on a device named on the command line, at real sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import block_topk_decode as eager_block_topk_decode
from pallas_kernels import choose_pages as eager_choose_pages
from pallas_kernels import gather_pages
from pallas_kernels import paged_decode as eager_paged_decode
from pallas_kernels._reference import _choose, reference_block_topk_decode, reference_paged_decode
from tests.kernels import contract
from tests.kernels.cases import COUNTS, Layout, make_case, make_large_case

block_topk_decode = jax.jit(
    eager_block_topk_decode,
    static_argnames=("num_blocks", "num_sink_blocks", "num_local_blocks", "scale", "return_residuals"),
)
choose_pages = jax.jit(eager_choose_pages, static_argnames=("num_blocks", "num_sink_blocks", "num_local_blocks"))
paged_decode = jax.jit(eager_paged_decode, static_argnames=("window_len", "sink_len", "scale"))


def test_decodes_equal_the_oracle(implementation, layout, effort):
    case = effort.case(layout)
    for counts in effort.counts("block_topk_decode", layout):
        contract.check_block_topk(implementation, case, **counts)
    for counts in effort.counts("quest_decode", layout):
        contract.check_quest(implementation, case, **counts)
    contract.check_paged(implementation, case)


def test_window_equals_the_oracle(implementation, one_layout, effort):
    quarter = one_layout.page_len // 4
    for window_len, sink_len in effort.windows(one_layout):
        window = {"window_len": window_len * quarter, "sink_len": sink_len * quarter}
        contract.check_paged(implementation, effort.case(one_layout, seed=2), scale=0.05, **window)


def test_ties_go_to_the_lowest_page(implementation, one_layout, effort):
    contract.check_ties(implementation, effort.case(one_layout), operations=effort.selecting, **COUNTS[0])


def test_budget_over_the_context_is_dense(implementation, one_layout, effort):
    case = effort.case(one_layout, seed=1)
    if effort.level > 0:
        contract.check_full_budget(implementation, case)
    lengths = [min(length, COUNTS[0]["num_blocks"] * one_layout.page_len) for length in case.lengths.tolist()]
    short = make_case(lengths, one_layout, max_pages=case.max_pages, seed=3)
    contract.check_short(implementation, short, operations=effort.selecting, **COUNTS[0])


def test_nothing_but_what_is_read_counts_and_repeats_are_equal(implementation, one_layout, effort):
    operations = (*effort.selecting, "paged_decode")
    contract.check_same_bits(implementation, effort.case(one_layout, seed=5), operations=operations, **COUNTS[0])


def test_quantised_pages_keep_the_contract(implementation, quantised_layout, effort):
    """What the others check for one layout: a window, repeats, NaN in scales not held; and a budget over the table."""
    case, page_len = effort.case(quantised_layout, seed=6), quantised_layout.page_len
    if effort.runs(quantised_layout, window_len=1):
        contract.check_paged(implementation, case, window_len=page_len + 1, sink_len=page_len // 2)
    if effort.level == 0:
        contract.check_block_topk(implementation, case, **COUNTS[0])
        contract.check_same_bits(implementation, case, operations=("block_topk_decode",), **COUNTS[0])
        return
    contract.check_full_budget(implementation, case, operations=("block_topk_decode",))
    contract.check_same_bits(implementation, case, operations=("block_topk_decode", "paged_decode"), **COUNTS[0])


def test_real_sizes_equal_xla(implementation, real_size, key):
    batch_size, context_len, layout = real_size
    max_pages = context_len // layout.page_len
    case = make_large_case(key, batch_size=batch_size, layout=layout, max_pages=max_pages)
    contract.check_against_xla("paged_decode", implementation, case)
    for budget_len in (256, 1024, 4096):
        counts = {"num_blocks": budget_len // layout.page_len, "num_sink_blocks": 1}
        for operation in contract.SELECTING if budget_len < context_len else ():
            contract.check_against_xla(operation, implementation, case, **counts)


def test_the_check_at_real_sizes_finds_what_is_wrong(key):
    """The check itself, on a small case: right results pass; a page left out, or another one read, does not."""
    case = make_large_case(key, batch_size=3, layout=Layout(8, 2, 3, 16, "float32"), max_pages=12, min_len=48)
    contract.check_against_xla("paged_decode", "xla", case)
    contract.check_against_xla("block_topk_decode", "xla", case, num_blocks=5)
    selected = contract.run("block_topk_decode", "xla", case, num_blocks=5).selected

    def lost(case, selected):
        return float(contract._score_lost("block_topk_decode", case, selected, num_blocks=5).max())

    assert lost(case, selected) <= 1
    assert lost(case, selected.at[:, :, 0].set(selected[:, :, 1])) == np.inf
    assert lost(case._replace(key_means=-case.key_means), selected) > 1
    with pytest.raises(AssertionError, match=r"out: .* off by more than 3e-06; quantiles .* got .*, wanted"):
        contract.check_against_xla("paged_decode", "xla", case._replace(lengths=case.lengths - 1), scale=0.3)


def test_a_window_touches_its_pages_and_those_of_the_sinks_only():
    case = make_case([5, 24, 17])
    # 5 tokens lie in at most 2 pages of 4, 3 sinks in 1: 12 slots of 24.
    read = jax.make_jaxpr(lambda *arguments: eager_paged_decode(*arguments, window_len=5, sink_len=3))
    program = str(read(*case.arguments("paged_decode")))
    assert "f32[3,2,12,8]" in program
    assert ",24,8]" not in program


def test_selection_copies_no_more_than_the_pages_it_reads():
    case = make_case([5, 24, 17])
    read = jax.make_jaxpr(lambda *arguments: eager_block_topk_decode(*arguments, num_blocks=2))
    program = str(read(*case.arguments("block_topk_decode")))
    assert "f32[3,2,8,8]" in program  # 2 pages of 4
    assert ",24]" not in program.replace("i32[3,24]", "")
    assert ",24,8]" not in program


@pytest.mark.parametrize(("num_blocks", "num_sinks", "num_local"), [(2, 0, 0), (3, 1, 2), (5, 2, 1), (9, 0, 1)])
def test_pages_of_any_score_are_chosen_as_by_the_oracle(num_blocks, num_sinks, num_local):
    rng = np.random.default_rng(num_blocks)
    num_held = np.arange(8)
    scores = rng.integers(-2, 3, (8, 2, 7)) * rng.choice([-0.0, 1.0], (8, 2, 7))  # many ties, zeros of both signs
    poisoned = np.where(np.arange(7) < num_held[:, None, None], scores, np.nan)
    chosen = choose_pages(
        jnp.asarray(poisoned, "float32"),
        jnp.asarray(num_held, "int32"),
        num_blocks=num_blocks,
        num_sink_blocks=num_sinks,
        num_local_blocks=num_local,
    )
    wanted = [
        [_choose(score_M[:held], num_blocks, num_sinks, num_local) for score_M in score_KM]
        for score_KM, held in zip(scores, num_held.tolist(), strict=True)
    ]
    assert chosen.shape == (8, 2, min(num_blocks, 7))
    assert chosen.tolist() == [[pages + [7] * (chosen.shape[2] - len(pages)) for pages in row] for row in wanted]


@settings(max_examples=25)
@given(
    lengths=st.tuples(*[st.integers(0, 30)] * 3),  # one batch size: every example runs the compiled operations
    counts=st.sampled_from([(1, 0), (3, 1)]),
    seed=st.integers(0, 99),
)
def test_block_topk_equals_the_oracle_anywhere(lengths, counts, seed):
    rng, max_pages = np.random.default_rng(seed), 6
    num_blocks, sinks = counts
    q, keys, values = (jnp.asarray(rng.normal(size=(30, 2, 5, 8)), "float32") for _ in range(3))
    table = jnp.asarray(rng.permutation(30)[: 3 * max_pages].reshape(3, max_pages), "int32")
    # Means of whole pages: selection must follow the means it is given.
    arguments = (q[:3, 0, :4], keys, values, keys.mean(axis=2), table, jnp.asarray(lengths, "int32"))
    result = block_topk_decode(*arguments, num_blocks=num_blocks, num_sink_blocks=sinks, return_residuals=True)
    wanted = reference_block_topk_decode(*arguments, num_blocks=num_blocks, num_sink_blocks=sinks)
    assert contract._as_lists(result.selected, max_pages) == wanted.read
    np.testing.assert_allclose(result.out, wanted.out, atol=3e-6)
    np.testing.assert_allclose(result.lse, wanted.lse, atol=3e-6)


def test_mask():
    case = make_case([5, 24, 17], seed=8)
    arguments = case.arguments("paged_decode")
    newest = np.arange(24) >= np.asarray(case.lengths)[:, None] - 1
    newest = jnp.asarray(np.broadcast_to(newest[:, None], (3, 2, 24)))
    last_value = np.asarray(gather_pages(case.value_pages, case.page_table))[np.arange(3), :, case.lengths - 1]
    wanted = np.repeat(last_value, 3, axis=1)
    np.testing.assert_array_equal(paged_decode(*arguments, token_mask=newest), wanted)
    assert not paged_decode(*arguments, token_mask=jnp.zeros((3, 2, 24), bool)).any()
    everything = paged_decode(*arguments, token_mask=jnp.ones((3, 2, 24), bool))
    np.testing.assert_allclose(everything, reference_paged_decode(*arguments).out, atol=3e-6)
