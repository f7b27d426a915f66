"""The repetition rule against its definition, however the tokens arrive; budget forcing token by token."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kinetics_jax.sampling import (
    BudgetForcing,
    Repetition,
    RepetitionWatch,
    Stopping,
    forced_token,
    repetition_len,
    thought_closed,
)

rules = st.builds(Repetition, window_len=st.integers(2, 12), block_len=st.integers(1, 5), num_repeats=st.integers(2, 4))
few_words = st.lists(st.integers(0, 2), max_size=40)
looping = st.builds(  # something, then a block over and over, then something else
    lambda start, block, repeats, end: start + block * repeats + end,
    few_words,
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
    st.integers(1, 9),
    few_words,
)


def holds_at_the_end(token_ids: list[int], rule: Repetition) -> bool:
    """The definition, word for word."""
    for b in range(1, rule.block_len + 1):
        span = max(rule.window_len, rule.num_repeats * b)
        if span <= len(token_ids):
            last = token_ids[-span:]
            if all(last[i] == last[i - b] for i in range(b, span)):
                return True
    return False


@given(token_ids=few_words | looping, rule=rules)
@example(token_ids=[1] * 8, rule=Repetition(window_len=8, block_len=1, num_repeats=2))
@example(token_ids=[1, 2, 3, 4, 5] * 3, rule=Repetition(window_len=2, block_len=5, num_repeats=3))
def test_the_rule_fires_at_the_shortest_output_that_it_holds_for(token_ids: list[int], rule: Repetition):
    lengths = (n for n in range(1, len(token_ids) + 1) if holds_at_the_end(token_ids[:n], rule))
    assert repetition_len(token_ids, rule) == next(lengths, None)


@given(token_ids=looping, rule=rules, cuts=st.lists(st.integers(0, 60), max_size=6))
def test_it_does_not_matter_how_many_tokens_arrive_at_once(token_ids: list[int], rule: Repetition, cuts: list[int]):
    wanted, watch, bounds = repetition_len(token_ids, rule), RepetitionWatch(rule), [0, *sorted(cuts), len(token_ids)]
    for start, end in pairwise(bounds):
        known = wanted is not None and wanted <= end
        assert watch.extend(token_ids[start:end]) == (wanted if known else None)


def test_four_equal_digits_are_no_loop_and_a_loop_is_found_soon():
    rule = Repetition()
    text = list(range(100, 400))
    assert repetition_len([*text, 7, 7, 7, 7, *text[:50]], rule) is None
    assert repetition_len(text * 3, rule) is None  # longer than any block
    assert repetition_len([*text, *[1, 2, 3] * 100], rule) == 300 + rule.window_len
    assert repetition_len([*text, *range(64), *range(64), *range(64), *range(64), 5], rule) == 300 + 4 * 64


def test_budget_forcing_writes_its_closing_once_and_leaves_a_closed_thought_alone():
    """Three rows draw 1, 1, 9, 1, ...: nothing, the end of a thought within its limit, and the end one token late."""
    closing = BudgetForcing(think_len=4, closing_ids=(7, 9, 8), end_think_id=9, answer_len=3)
    drawn = np.array([[1] * 10, [1, 1, 9] + [1] * 7, [1] * 4 + [9] + [1] * 5])
    said, closed = np.zeros((3, 10), int), jnp.zeros(3, bool)
    for place in range(closing.max_gen_len):
        gen_len = jnp.full(3, place)
        forced = forced_token(gen_len, closed, closing)
        tokens = jnp.where(forced < 0, drawn[:, place], forced)
        closed = thought_closed(gen_len, closed, tokens, closing)
        said[:, place] = tokens
    assert said.tolist() == [
        [1, 1, 1, 1, 7, 9, 8, 1, 1, 1],
        [1, 1, 9, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 7, 9, 8, 1, 1, 1],
    ]
    assert closed.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Repetition(window_len=1), "window_len must be at least 2; got 1"),
        (lambda: Repetition(block_len=0), "block_len must be at least 1; got 0"),
        (lambda: Repetition(num_repeats=1), "num_repeats must be at least 2; got 1"),
        (lambda: Stopping(stop_ids=(1,), time_s=0.0), "time_s must be positive, or None for no limit; got 0.0"),
        (
            lambda: Stopping(stop_ids=(8,), closing=closing()),
            r"a stop token would end.*\(7, 9, 8\) with stop_ids=\(8,\)",
        ),
        (lambda: closing(closing_ids=(7,)), r"closing_ids must hold end_think_id=9, else .* got \(7,\)"),
        (lambda: closing(think_len=0), "think_len and answer_len must be at least 1; got 0, 3"),
        (lambda: closing(answer_len=0), "think_len and answer_len must be at least 1; got 4, 0"),
    ],
)
def test_rules_out_of_range_are_named(build, message: str):
    with pytest.raises(ValueError, match=message):
        build()


def closing(**changes) -> BudgetForcing:
    fields = {"think_len": 4, "closing_ids": (7, 9, 8), "end_think_id": 9, "answer_len": 3}
    return BudgetForcing(**fields | changes)
