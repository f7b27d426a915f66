"""The contract every implementation keeps, against the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import block_topk_decode as eager_block_topk_decode
from pallas_kernels import choose_pages, gather_pages
from pallas_kernels import paged_decode as eager_paged_decode
from pallas_kernels._reference import _choose, reference_block_topk_decode, reference_paged_decode

block_topk_decode = jax.jit(
    eager_block_topk_decode,
    static_argnames=(
        "num_blocks",
        "num_sink_blocks",
        "num_local_blocks",
        "scale",
        "implementation",
        "return_selection",
    ),
)
paged_decode = jax.jit(eager_paged_decode, static_argnames=("window_len", "sink_len", "scale", "implementation"))

IMPLEMENTATIONS = ["xla"]
# Around the page edges of pages of 4, beside 0 and 1, in a batch of odd size.
LENGTHS = [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 23, 24]


def as_lists(selected: jax.Array, max_pages: int) -> list[list[list[int]]]:
    return [[[m for m in pages if m < max_pages] for pages in sequence] for sequence in selected.tolist()]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("dtype", "num_kv_heads", "group", "head_dim"),
    [("float32", 2, 3, 8), ("float32", 3, 1, 7), ("bfloat16", 1, 5, 32)],
)
def test_dense_equals_the_oracle(make_case, assert_close, implementation, dtype, num_kv_heads, group, head_dim):
    case = make_case(LENGTHS, num_kv_heads=num_kv_heads, group=group, head_dim=head_dim, dtype=dtype)
    out = paged_decode(*case.dense, implementation=implementation)
    assert out.dtype == case.q.dtype
    assert_close(out, reference_paged_decode(*case.dense))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("num_blocks", "num_sinks", "num_local"), [(1, 0, 1), (3, 1, 1), (4, 0, 0), (5, 1, 2)])
def test_block_topk_equals_the_oracle(make_case, assert_close, implementation, dtype, num_blocks, num_sinks, num_local):
    case = make_case(LENGTHS, dtype=dtype, seed=1)
    kwargs = {"num_blocks": num_blocks, "num_sink_blocks": num_sinks, "num_local_blocks": num_local}
    out, selected = block_topk_decode(*case, **kwargs, implementation=implementation, return_selection=True)
    wanted, wanted_selected = reference_block_topk_decode(*case, **kwargs)
    assert as_lists(selected, 6) == wanted_selected
    assert_close(out, wanted)


@pytest.mark.parametrize(
    ("window_len", "sink_len"),
    [(1, 0), (4, 0), (5, 0), (9, 0), (99, 0), (1, 1), (4, 5), (6, 9), (3, 99)],
)
def test_window_equals_the_oracle(make_case, assert_close, window_len, sink_len):
    case = make_case(LENGTHS, seed=2)
    out = paged_decode(*case.dense, window_len=window_len, sink_len=sink_len)
    assert_close(out, reference_paged_decode(*case.dense, window_len=window_len, sink_len=sink_len))


def test_a_window_touches_its_pages_and_those_of_the_sinks_only(make_case):
    case = make_case([5, 24, 17])
    # 5 tokens lie in at most 2 pages of 4, 3 sinks in 1: 12 slots of 24.
    program = str(jax.make_jaxpr(lambda case: eager_paged_decode(*case.dense, window_len=5, sink_len=3))(case))
    assert "f32[3,2,12,8]" in program
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
    num_blocks=st.sampled_from([1, 3, 5]),
    sinks=st.integers(0, 1),
    seed=st.integers(0, 99),
)
def test_block_topk_equals_the_oracle_anywhere(lengths, num_blocks, sinks, seed):
    rng, max_pages = np.random.default_rng(seed), 6
    num_blocks = max(num_blocks, sinks + 1)
    q, keys, values = (jnp.asarray(rng.normal(size=(30, 2, 5, 8)), "float32") for _ in range(3))
    table = jnp.asarray(rng.permutation(30)[: 3 * max_pages].reshape(3, max_pages), "int32")
    # Means of whole pages: selection must follow the means it is given.
    arguments = (q[:3, 0, :4], keys, values, keys.mean(axis=2), table, jnp.asarray(lengths, "int32"))
    out, selected = block_topk_decode(*arguments, num_blocks=num_blocks, num_sink_blocks=sinks, return_selection=True)
    wanted, wanted_selected = reference_block_topk_decode(*arguments, num_blocks=num_blocks, num_sink_blocks=sinks)
    assert as_lists(selected, max_pages) == wanted_selected
    np.testing.assert_allclose(out, wanted, atol=3e-6)


def test_budget_over_the_context_is_dense(make_case, assert_close):
    case = make_case(LENGTHS)
    dense = paged_decode(*case.dense)
    for num_blocks in (6, 7, 100):  # the whole table: the same arithmetic
        np.testing.assert_array_equal(block_topk_decode(*case, num_blocks=num_blocks), dense)
    short = make_case([0, 1, 4, 7, 12], seed=3)  # at most 3 pages held of 6
    np.testing.assert_allclose(block_topk_decode(*short, num_blocks=3), paged_decode(*short.dense), atol=1e-6)


def test_ties_go_to_the_lowest_page(make_case):
    case = make_case([24] * 3, seed=4)
    tied = case._replace(key_means=jnp.zeros_like(case.key_means))
    _, selected = block_topk_decode(*tied, num_blocks=3, return_selection=True)
    assert selected.tolist() == [[[0, 1, 5]] * 2] * 3
    # 0.0 and -0.0 tie as well.
    negative = jnp.where((jnp.arange(case.key_means.shape[0]) % 2 == 0)[:, None, None], -0.0, 0.0)
    tied = case._replace(key_means=negative * jnp.ones_like(case.key_means), q=jnp.abs(case.q))
    _, selected = block_topk_decode(*tied, num_blocks=3, return_selection=True)
    assert selected.tolist() == [[[0, 1, 5]] * 2] * 3


def test_permuting_the_pool_changes_nothing(make_case):
    case = make_case([5, 24, 17], seed=5)
    num_pages = case.key_pages.shape[0]
    order = jnp.asarray(np.random.default_rng(0).permutation(num_pages))
    inside = (case.page_table >= 0) & (case.page_table < num_pages)
    moved = case._replace(
        key_pages=case.key_pages[order],
        value_pages=case.value_pages[order],
        key_means=case.key_means[order],
        page_table=jnp.where(inside, jnp.argsort(order)[jnp.clip(case.page_table, 0, num_pages - 1)], case.page_table),
    )
    np.testing.assert_array_equal(block_topk_decode(*moved, num_blocks=3), block_topk_decode(*case, num_blocks=3))
    np.testing.assert_array_equal(paged_decode(*moved.dense), paged_decode(*case.dense))


def test_vmap_equals_a_loop_and_repeats_bit_for_bit(make_case):
    cases = [make_case([5, 24, 17], seed=seed) for seed in (6, 7)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cases)
    mapped = jax.jit(jax.vmap(lambda case: block_topk_decode(*case, num_blocks=3)))
    for out, case in zip(mapped(stacked), cases, strict=True):
        np.testing.assert_allclose(out, block_topk_decode(*case, num_blocks=3), atol=1e-6)
    np.testing.assert_array_equal(mapped(stacked), mapped(stacked))


def test_scale_and_mask(make_case, assert_close):
    case = make_case([5, 24, 17], seed=8)
    assert_close(paged_decode(*case.dense, scale=0.7), reference_paged_decode(*case.dense, scale=0.7))
    newest = (jnp.arange(24)[None, :] >= case.lengths[:, None] - 1)[:, None, :] & jnp.ones((3, 2, 1), bool)
    last_value = gather_pages(case.value_pages, case.page_table)[jnp.arange(3), :, case.lengths - 1]
    wanted = jnp.repeat(last_value, 3, axis=1)
    np.testing.assert_array_equal(paged_decode(*case.dense, token_mask=newest), wanted)
    assert not paged_decode(*case.dense, token_mask=jnp.zeros((3, 2, 24), bool)).any()


def test_no_name_picks_one_that_works(make_case):
    case = make_case([5, 9])
    np.testing.assert_array_equal(paged_decode(*case.dense), paged_decode(*case.dense, implementation="xla"))
