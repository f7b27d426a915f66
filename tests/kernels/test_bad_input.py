"""Wrong arguments: one sentence each, the same from the oracle and the implementations."""

import jax.numpy as jnp
import pytest

from pallas_kernels import append_kv, block_topk_decode, choose_pages, paged_decode
from pallas_kernels._reference import reference_block_topk_decode
from pallas_kernels._validate import check_implementation, check_pages, check_scores


@pytest.mark.parametrize("decode", [block_topk_decode, reference_block_topk_decode])
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"num_blocks": 0}, "num_blocks >= 1"),
        ({"num_blocks": 2, "num_sink_blocks": 2}, "num_blocks >= 3"),
        ({"num_blocks": 2, "num_sink_blocks": -1}, "must not be negative"),
        ({"num_blocks": 2, "scale": 0.0}, "scale must be positive"),
    ],
)
def test_counts_and_scale(make_case, decode, counts, message):
    with pytest.raises(ValueError, match=message):
        decode(*make_case([5, 9]), **counts)


def test_shapes(make_case):
    case = make_case([5, 9])
    with pytest.raises(ValueError, match="query heads must be a multiple of the KV heads; got N=5, K=2"):
        paged_decode(case.q[:, :5], *case.dense[1:])
    with pytest.raises(ValueError, match="pages must be floating point"):
        check_pages(case.key_pages.astype("int8"), case.value_pages.astype("int8"), case.page_table, case.lengths)
    with pytest.raises(ValueError, match="share the dtype"):
        paged_decode(case.q, case.key_pages, case.value_pages.astype("bfloat16"), *case.dense[3:])
    with pytest.raises(ValueError, match="window_len must be at least 1"):
        paged_decode(*case.dense, window_len=0)
    with pytest.raises(ValueError, match="token_mask must have shape"):
        paged_decode(*case.dense, token_mask=jnp.ones((2, 2, 5), bool))
    with pytest.raises(ValueError, match="a window and a mask exclude each other"):
        paged_decode(*case.dense, token_mask=jnp.ones((2, 2, 24), bool), window_len=4)
    with pytest.raises(ValueError, match="got sink_len=4, window_len=None"):
        paged_decode(*case.dense, sink_len=4)
    with pytest.raises(ValueError, match="got sink_len=-1, window_len=4"):
        paged_decode(*case.dense, window_len=4, sink_len=-1)


def test_scores():
    scores, num_held = jnp.ones((3, 2, 5)), jnp.array([5, 1, 0])
    with pytest.raises(ValueError, match=r"num_held must have shape \[B\] of scores = \(3,\); got \(2,\)"):
        check_scores(scores, num_held[:2])
    with pytest.raises(ValueError, match=r"scores must be \[B, K, M\]; got shape \(3, 2\)"):
        check_scores(scores[:, :, 0], num_held)
    with pytest.raises(ValueError, match="num_blocks >= 3"):
        choose_pages(scores, num_held, num_blocks=2, num_sink_blocks=2)


@pytest.mark.parametrize("name", ["mosaic_gpu", "triton", "mosaic_tpu"])
def test_a_named_implementation_never_falls_back(make_case, name):
    case = make_case([5, 9])
    token = case.key_means[:2]
    with pytest.raises(NotImplementedError, match="Use 'xla'"):
        paged_decode(*case.dense, implementation=name)
    with pytest.raises(NotImplementedError, match="Use 'xla'"):
        block_topk_decode(*case, num_blocks=2, implementation=name)
    with pytest.raises(NotImplementedError, match="Use 'xla'"):
        append_kv(
            case.key_pages,
            case.value_pages,
            case.key_means,
            case.page_table,
            case.lengths,
            token,
            token,
            implementation=name,
        )


def test_unknown_implementation():
    with pytest.raises(ValueError, match="unknown implementation 'cuda'"):
        check_implementation("cuda")
