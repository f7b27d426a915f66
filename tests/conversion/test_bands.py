"""Chunks filled row by row hold what turning the whole tensor gives, however the leaf is cut and the file is read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints_conversion._bands import Band, Banding
from checkpoints_conversion._rules import TensorRule

RULES = {
    "as it is": TensorRule(hf_name="t", path=("t",), inputs=None, outputs=(11, 6)),
    "norm": TensorRule(hf_name="t", path=("t",), inputs=None, outputs=(7,)),
    "bias": TensorRule(hf_name="t", path=("t",), inputs=(), outputs=(5, 4)),
    "D | F": TensorRule(hf_name="t", path=("t",), inputs=(6,), outputs=(300,)),
    "D | N H": TensorRule(hf_name="t", path=("t",), inputs=(7,), outputs=(5, 4)),
    "N H | D": TensorRule(hf_name="t", path=("t",), inputs=(5, 4), outputs=(9,)),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_bands_hold_the_turned_tensor(rule: TensorRule, data: st.DataObject):
    chunk = tuple(data.draw(st.integers(1, size)) for size in rule.part_shape)
    banding = Banding(rule=rule, chunk=chunk)
    stored = np.random.default_rng(0).normal(size=rule.hf_shape).astype(np.float32)
    dtype = np.dtype(data.draw(st.sampled_from(["float32", "float16"])))
    wanted = rule.to_leaf(stored).astype(dtype)
    rows = stored.reshape(banding.stored_shape)
    got = np.zeros(rule.part_shape, dtype)
    filled = np.zeros(rule.part_shape, int)
    first = 0
    while first < len(rows):
        band = Band(banding, first, dtype)
        assert (band.first, band.last) == (first, min(first + banding.num_rows, len(rows)))
        assert sum(part.nbytes for _, part in band.chunks) == banding.num_bytes(first, dtype)
        assert banding.num_bytes(first, dtype) <= banding.num_bytes(0, dtype)
        while first < band.last:
            after = data.draw(st.integers(first + 1, band.last))
            band.fill(first, rows[first:after])
            first = after
        for region, part in band.chunks:
            assert part.flags.c_contiguous  # else TensorStore would copy it
            assert all(axis.start % size == 0 for axis, size in zip(region, chunk, strict=True))
            got[region] = part
            filled[region] += 1
    assert (filled == 1).all()
    np.testing.assert_array_equal(got, wanted)
