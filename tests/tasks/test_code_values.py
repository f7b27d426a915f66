"""What crosses the pipes of the sandbox, what is read out of an answer, and what counts as the same output."""

import enum
import math
import sys
from collections import Counter, OrderedDict, namedtuple
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.tasks import Answer, _sandbox_values, extract_program
from kinetics_jax.tasks._code_compare import same_output, same_value
from kinetics_jax.tasks._sandbox_values import Opaque, decode_value, encode_value

HASHABLE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(max_size=9)
)
PLAIN = st.recursive(
    HASHABLE | st.frozensets(HASHABLE, max_size=4) | st.sets(HASHABLE, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
    ),
    max_leaves=20,
)


def kinds(value: Any) -> Any:
    """Return the types in a value, so that True and 1, or a list and a tuple, are told apart."""
    if isinstance(value, (list, tuple)):
        return type(value), [kinds(item) for item in value]
    if isinstance(value, dict):
        return dict, [(kinds(key), kinds(item)) for key, item in value.items()]
    return type(value)


@given(PLAIN)
def test_plain_values_come_back_as_they_were(value: Any):
    back = decode_value(encode_value(value))
    assert back == value
    assert kinds(back) == kinds(value)


def test_numbers_that_text_would_spoil():
    huge = 7**20_000  # more digits than int() reads
    back = decode_value(encode_value([huge, -huge, math.inf, -math.inf, -0.0, 5e-324, "\ud800", range(3, 9, 2)]))
    assert back[:4] == [huge, -huge, math.inf, -math.inf]
    assert math.copysign(1, back[4]) == -1
    assert back[5:] == [5e-324, "\ud800", range(3, 9, 2)]
    assert math.isnan(decode_value(encode_value(math.nan)))


def test_subclasses_become_what_they_extend_and_the_rest_opaque():
    point = namedtuple("point", "x y")(1, 2)
    colour = enum.IntEnum("colour", "red")

    class Equal(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    back = decode_value(encode_value([point, colour["red"], Counter("aab"), OrderedDict(a=1), Equal(5), object()]))
    assert back[:5] == [(1, 2), 1, {"a": 2, "b": 1}, {"a": 1}, 5]
    assert back[4] != 6
    assert isinstance(back[5], Opaque)
    assert back[5] != back[5]
    assert repr(back[5]) == "<object>"


@given(st.binary(max_size=40))
def test_any_bytes_are_a_value_or_an_error(data: bytes):
    try:
        value = decode_value(data)
    except ValueError:
        return
    assert type(value) in (type(None), bool, int, float, str, bytes, list, tuple, set, frozenset, dict, range, Opaque)


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"i1", b"iz;", b"s5:ab", b"s-1:", b"l2:N", b"NN", b"l999:N", b"S1:l0:", b"d1:l0:N", b"f;", b"rNNN",
     b"l-1:", b"S-9:"],
)  # fmt: skip
def test_broken_bytes(data: bytes):
    with pytest.raises(ValueError):  # noqa: PT011 - of several parsers
        decode_value(data)


def test_small_messages_do_not_become_large_values(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="nested more than 100 levels"):
        decode_value(b"l1:" * 300 + b"N")
    monkeypatch.setattr(_sandbox_values, "_MAX_ITEMS", 1000)
    with pytest.raises(ValueError, match="more than 1000 items"):
        decode_value(b"l2000:" + b"S0:" * 2000)


def test_sets_that_would_take_for_ever_to_make_are_not_read():
    """All members have the hash 0, so each is compared with all before it."""
    members = b"".join(b"i%x;" % (n * sys.hash_info.modulus) for n in range(9000))
    tuple_of_them = decode_value(b"t9000:" + members)
    assert {hash(member) for member in tuple_of_them} == {0}
    for data in (b"S9000:" + members, b"d9000:" + members * 2, b"l2:S-9000:Z9000:" + members):
        with pytest.raises(ValueError, match="no plain value"):
            decode_value(data)


def test_a_value_within_itself_has_no_bytes():
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(RecursionError):
        encode_value(endless)


FENCED = "```python\nprint(1)\n```"


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (FENCED, "print(1)\n"),
        ("~~~py\nprint(1)\n~~~", "print(1)\n"),
        ("```\nprint(1)\n```", "print(1)\n"),
        ("```Python 3\nprint(1)\n```", "print(1)\n"),
        (f"```python\nx\n```\nBetter:\n{FENCED}\nDone.", "print(1)\n"),
        (f"{FENCED}\nIt prints\n```\n1\n```", "print(1)\n"),
        (f"{FENCED}\nIt prints\n```text\n1\n```", "print(1)\n"),
        ("```python\nprint(1)", "print(1)"),
        ("```python\nx = (\nNo, like this:\n```python\nprint(1)\n```", "print(1)\n"),
        ("````python\nprint('''\n```\n''')\n````", "print('''\n```\n''')\n"),
        ("  ```python\nprint(1)\n  ```  \nDone", "print(1)\n"),
        ("```python\nprint(1)\n```\n```python\n\n```", "print(1)\n"),
        (f"<think>```python\nwrong\n```</think>{FENCED}", "print(1)\n"),
        (f"```python\nwrong\n```</think>{FENCED}", "print(1)\n"),
        ("```c++\nint main() {}\n```", None),
        ("```python\n```", None),
        ("print(1)", None),
        ("`print(1)`", None),
        (f"<think>{FENCED}</think>No.", None),
        (f"<think>{FENCED}", None),
        ("", None),
    ],
)
def test_the_program_of_an_answer(text: str, program: str | None):
    found = extract_program(text)
    assert (None if found is None else found.text) == program


@given(st.text(alphabet="a`\n~ "), st.text(alphabet="b \n"))
def test_prose_around_a_program_changes_nothing(before: str, after: str):
    before = before.replace("`", "'").replace("~", "-")
    text = f"{before}\n{FENCED}\n{after}"
    found = extract_program(text)
    assert found == Answer(text="print(1)\n", end=len(before) + 1 + len(FENCED))
    assert extract_program(text[: len(before) + 1 + len(FENCED)]) == found


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("1 2\n3", "1 2\n3", True),
        ("1 2  \n3\n\n", "1 2\n3\n", True),
        ("  1 2\r\n3", "1 2\n3", True),
        ("1  2", "1 2", True),
        ("a  b 1.0", "a b 1", True),
        ("ab", "a b", False),
        ("1.0", "1", True),
        ("1e3", "1000.00", True),
        ("0.30000000000000004", "0.3", False),
        ("1\n2", "1 2", False),
        ("1\n\n2", "1\n2", False),
        ("Yes", "YES", False),
        ("", "", True),
        ("", "0", False),
        ("nan", "nan", True),
        ("nan", "NaN", False),
        ("inf", "Infinity", False),
        ("007", "7", True),
        ("1" + "0" * 400, "1" + "0" * 400, True),
        ("1_0", "10", True),
    ],
)
def test_the_same_output(printed: str, expected: str, same: bool):
    assert same_output(printed, expected) is same


def test_a_tolerance_is_absolute_or_relative():
    assert same_output("0.00000001 1000000.1", "0 1000000", tolerance=1e-6)
    assert not same_output("0.001", "0", tolerance=1e-6)
    assert not same_output("1" + "0" * 400, "1", tolerance=1e-6)
    assert same_value([1.0000001, {"a": 2}], [1.0, {"a": 2}], tolerance=1e-6)
    assert not same_value(1.0000001, 1.0)
    assert not same_value(10**400, 1.0, tolerance=1e-6)


@pytest.mark.parametrize(
    ("returned", "expected", "same"),
    [
        ((1, (2, 3)), [1, [2, 3]], True),
        ([1, 2], [2, 1], False),
        ([1], [1, 2], False),
        (True, 1, True),
        (1.0, 1, True),
        ("1", 1, False),
        (None, [], False),
        ({"a": (1,)}, {"a": [1]}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        (Opaque("x"), None, False),
        ({1}, [1], False),
        (math.nan, 1.0, False),
    ],
)
def test_the_same_value(returned: Any, expected: Any, same: bool):
    assert same_value(returned, expected) is same
