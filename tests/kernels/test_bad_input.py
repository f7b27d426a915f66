"""Wrong arguments: one sentence each, the same from the oracle and the implementations."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import checkify

from pallas_kernels import (
    append_bounds,
    append_kv,
    block_topk_decode,
    check_page_ids,
    choose_pages,
    merge_partials,
    paged_decode,
    quantise_pages,
    quest_decode,
)
from pallas_kernels._reference import reference_block_topk_decode, reference_quest_decode
from pallas_kernels._validate import (
    check_implementation,
    check_key_bounds,
    check_key_means,
    check_new_bounds,
    check_not_quantised,
    check_pages,
    check_partials,
    check_query,
    check_rotation,
    check_scores,
)
from tests.kernels.cases import make_case

CASE = make_case([5, 9])
MEANS, BOUNDS, DENSE = (
    CASE.arguments(operation) for operation in ("block_topk_decode", "quest_decode", "paged_decode")
)


@pytest.mark.parametrize(
    ("decode", "arguments"),
    [
        (block_topk_decode, MEANS),
        (reference_block_topk_decode, MEANS),
        (quest_decode, BOUNDS),
        (reference_quest_decode, BOUNDS),
    ],
)
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"num_blocks": 0}, "num_blocks >= 1"),
        ({"num_blocks": 2, "num_sink_blocks": 2}, "num_blocks >= 3"),
        ({"num_blocks": 2, "num_sink_blocks": -1}, "must not be negative"),
        ({"num_blocks": 2, "scale": 0.0}, "scale must be positive"),
    ],
)
def test_counts_and_scale(decode, arguments, counts, message):
    with pytest.raises(ValueError, match=message):
        decode(*arguments, **counts)


def test_shapes():
    with pytest.raises(ValueError, match="query heads must be a multiple of the KV heads; got N=5, K=2"):
        check_query(CASE.q[:, :5], CASE.key_pages, CASE.page_table, None)
    with pytest.raises(ValueError, match="share the dtype"):
        paged_decode(*CASE._replace(value_pages=CASE.value_pages.astype("bfloat16")).arguments("paged_decode"))
    with pytest.raises(ValueError, match="window_len must be at least 1"):
        paged_decode(*DENSE, window_len=0)
    with pytest.raises(ValueError, match="token_mask must have shape"):
        paged_decode(*DENSE, token_mask=jnp.ones((2, 2, 5), bool))
    with pytest.raises(ValueError, match="a window and a mask exclude each other"):
        paged_decode(*DENSE, token_mask=jnp.ones((2, 2, 24), bool), window_len=4)
    with pytest.raises(ValueError, match="got sink_len=4, window_len=None"):
        paged_decode(*DENSE, sink_len=4)
    with pytest.raises(ValueError, match="got sink_len=-1, window_len=4"):
        paged_decode(*DENSE, window_len=4, sink_len=-1)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "float8_e5m2"])
def test_dtypes_of_pages(dtype):
    pages = jnp.zeros((15, 2, 4, 8), dtype)
    with pytest.raises(ValueError, match=rf"floating point .* or int8 or float8_e4m3fn with scales; got {dtype}"):
        check_pages(pages, pages, CASE.page_table, CASE.lengths)
    pages, scales = pages.astype("int8"), jnp.ones((15, 2, 4))
    with pytest.raises(ValueError, match=r"value_scales must have shape \[R, K, P\] of key_pages = \(15, 2, 4\)"):
        check_pages(pages, pages, CASE.page_table, CASE.lengths, scales, scales[:, :, :2])
    with pytest.raises(ValueError, match=f"quantised pages are int8 or float8_e4m3fn; got dtype={dtype}"):
        quantise_pages(CASE.q, dtype)


@pytest.mark.parametrize(
    "operation", [block_topk_decode, quest_decode, paged_decode, append_kv, reference_block_topk_decode]
)
def test_scales(operation):
    pages, scales = CASE.key_pages.astype("float8_e4m3fn"), jnp.ones((15, 2, 4))
    quantised = CASE._replace(key_pages=pages, value_pages=pages)
    name = operation.__name__.removeprefix("reference_")

    def call(case, key_scales, value_scales):
        new = (CASE.key_means[:2],) * 2 if name == "append_kv" else ()
        counts = {} if name in ("append_kv", "paged_decode") else {"num_blocks": 2}
        arguments = case.arguments("block_topk_decode" if name == "append_kv" else name)
        if name == "append_kv":
            arguments = arguments[1:]
        operation(*arguments, *new, **counts, key_scales=key_scales, value_scales=value_scales)

    with pytest.raises(ValueError, match=r"come together; got shape \(15, 2, 4\) and None"):
        call(quantised, scales, None)
    with pytest.raises(ValueError, match="pages of float8_e4m3fn need key_scales and value_scales; got none"):
        call(quantised, None, None)
    with pytest.raises(ValueError, match="scales belong to pages of int8 or float8_e4m3fn; got pages of float32"):
        call(CASE, scales, scales)
    with pytest.raises(ValueError, match="key_scales must be bfloat16 or float32; got float16"):
        call(quantised, scales.astype("float16"), scales)


def test_rotation():
    q, keys, angles, norm = CASE.q, CASE.key_means[:2], jnp.ones((2, 4)), jnp.ones(8)
    with pytest.raises(ValueError, match=r"sin must have shape \[B, H / 2\] = \(2, 4\); got \(2, 8\)"):
        check_rotation(angles, jnp.ones((2, 8)), None, q, keys, keys)
    with pytest.raises(ValueError, match="cos must be float32; got bfloat16"):
        check_rotation(angles.astype("bfloat16"), angles, None, q, keys, keys)
    with pytest.raises(ValueError, match=r"norms must have shape \[H\] each = \(8,\); got \(4,\)"):
        check_rotation(angles, angles, (norm, jnp.ones(4)), q, keys, keys)
    with pytest.raises(ValueError, match="norms are two, of queries and of keys, or None; got 1"):
        check_rotation(angles, angles, (norm,), q, keys, keys)
    with pytest.raises(ValueError, match="must share a dtype; got float32, float32 and bfloat16"):
        check_rotation(angles, angles, None, q, keys, keys.astype("bfloat16"))
    with pytest.raises(ValueError, match="the two halves of a head; got head_dim=7"):
        check_rotation(angles, angles, None, q[..., :7], keys, keys)
    with pytest.raises(ValueError, match=r"not quantised; got int8\. Use rms_norm and rotate, then append_kv"):
        check_not_quantised(CASE.key_pages.astype("int8"))


def test_summaries():
    key_bounds, table, lengths = CASE.key_bounds, CASE.page_table, CASE.lengths
    with pytest.raises(ValueError, match=r"key_means must have shape \[R, K, H\] of key_pages = \(15, 2, 8\)"):
        check_key_means(CASE.key_means[:, :, :4], CASE.key_pages)
    with pytest.raises(ValueError, match=r"key_bounds must have shape \[R, K, 2, H\] of key_pages = \(15, 2, 2, 8\)"):
        check_key_bounds(key_bounds[:, :, :1], CASE.key_pages)
    with pytest.raises(ValueError, match=r"key_bounds must be \[R, K, 2, H\]; got shape \(15, 2, 1, 8\)"):
        check_new_bounds(key_bounds[:, :, :1], table, lengths, CASE.key_means[:2], 4)
    with pytest.raises(ValueError, match="page_len must be at least 1 token; got 0"):
        append_bounds(key_bounds, table, lengths, CASE.key_means[:2], page_len=0)
    with pytest.raises(ValueError, match=r"keys must have shape \[B, K, H\] = \(2, 2, 8\); got \(3, 2, 8\)"):
        check_new_bounds(key_bounds, table, lengths, CASE.key_means[:3], 4)


def test_partials():
    out, lse = jnp.ones((2, 3, 4, 8)), jnp.ones((2, 3, 4))
    with pytest.raises(ValueError, match=r"lse must have shape \[X, B, N\] of out = \(2, 3, 4\); got \(1, 3, 4\)"):
        check_partials(out, lse[:1])
    with pytest.raises(ValueError, match=r"X >= 1 parts; got shape \(0, 3, 4, 8\)"):
        merge_partials(out[:0], lse[:0])


def test_scores():
    scores, num_held = jnp.ones((3, 2, 5)), jnp.array([5, 1, 0])
    with pytest.raises(ValueError, match=r"num_held must have shape \[B\] of scores = \(3,\); got \(2,\)"):
        check_scores(scores, num_held[:2])
    with pytest.raises(ValueError, match=r"scores must be \[B, K, M\]; got shape \(3, 2\)"):
        check_scores(scores[:, :, 0], num_held)
    with pytest.raises(ValueError, match="num_blocks >= 3"):
        choose_pages(scores, num_held, num_blocks=2, num_sink_blocks=2)


@pytest.mark.parametrize(
    ("table", "lengths", "message"),
    [
        ([[2, 0, -1], [1, 9, 9]], [8, 4], None),
        ([[2, 0, -1], [1, 9, 9]], [8, 0], None),
        ([[2, 0, -1], [1, 9, 9]], [9, 4], r"0 <= id < 3; got page_table\[0, 2\]=-1 with lengths\[0\]=9"),
        ([[2, 0, -1], [1, 3, 9]], [8, 5], r"0 <= id < 3; got page_table\[1, 1\]=3 with lengths\[1\]=5"),
        ([[2, 0, 1], [1, 2, 0]], [12, 13], r"0\.\.12 = M \* P; got lengths\[1\]=13. Use a wider page_table"),
        ([[2, 0, 1], [1, 2, 0]], [-1, 3], r"got lengths\[0\]=-1"),
    ],
)
def test_page_ids_are_checked_outside_jit_and_by_checkify_inside(table, lengths, message):
    arguments = (jnp.array(table, "int32"), jnp.array(lengths, "int32"))

    def check(table, lengths):
        check_page_ids(table, lengths, num_pages=3, page_len=4)
        return lengths

    error, _ = checked(check)(*arguments)
    if message is None:
        check(*arguments)
        assert error.get() is None
    else:
        with pytest.raises(ValueError, match=message):
            check(*arguments)
        with pytest.raises(checkify.JaxRuntimeError, match=message):
            error.throw()


def checked(function):
    return jax.jit(checkify.checkify(function))


def test_the_check_of_page_ids_says_what_it_lacks_inside_jit():
    with pytest.raises(ValueError, match="checkify"):
        jax.jit(lambda table, lengths: check_page_ids(table, lengths, 3, 4))(*DENSE[3:])


def test_unknown_implementation():
    with pytest.raises(ValueError, match=r"unknown implementation 'cuda'\. Known: 'xla', 'mosaic_gpu', 'triton'"):
        check_implementation("cuda")
