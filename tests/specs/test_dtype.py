"""Number formats: bits, and one bfloat16 scale beside each vector of fewer than 16 bits an element."""

import pytest

from kinetics_jax.specs import DTYPES


@pytest.mark.parametrize(
    ("name", "element_bytes", "vector_bytes"),  # of a vector of 128
    [
        ("float32", 4, 512),
        ("bfloat16", 2, 256),
        ("float16", 2, 256),
        ("float8", 1, 130),
        ("int8", 1, 130),
        ("int4", 0.5, 66),
    ],
)
def test_bytes_of_an_element_and_of_a_vector(name: str, element_bytes: float, vector_bytes: float):
    assert DTYPES[name].name == name
    assert DTYPES[name].element_bytes == element_bytes
    assert DTYPES[name].vector_bytes(128) == vector_bytes


def test_unknown_format_lists_the_known():
    with pytest.raises(
        ValueError, match=r"unknown dtype 'fp8'\. Known: float32, bfloat16, float16, float8, int8, int4"
    ):
        DTYPES["fp8"]
