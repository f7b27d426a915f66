"""Answers of mathematics: a corpus of pairs with their verdicts, what must not matter, and graders that hang."""

import json
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.tasks import AIME25, Answer, TextProblem, _math_grading, grade_math
from kinetics_jax.tasks._math_answer import final_answer
from kinetics_jax.tasks._math_grading import Verdict, ask_math_verify
from kinetics_jax.tasks._workers import NoAnswer, WorkerPool

GOLDEN = json.loads((Path(__file__).parent / "golden_math.json").read_text(encoding="utf-8"))
SCORES = {"right": 1.0, "wrong": 0.0, "ungradable": None}
TASK = AIME25
GROUPS: dict[str, list[dict]] = defaultdict(list)
for row in GOLDEN:
    GROUPS[row["group"]].append(row)


def text_of(row: dict) -> str:
    return row["text"] if "text" in row else f"<think>hm</think>So it is $\\boxed{{{row['boxed']}}}$."


def score_of(reference: str, text: str, *, finished: bool = True) -> float | None:
    problem = TextProblem(id="x", difficulty=0, question="?", reference=reference)
    return TASK.grade(problem, text, finished=finished).score


def test_corpus_is_large_and_says_nothing_twice():
    assert len(GOLDEN) >= 120
    assert len({json.dumps(row, sort_keys=True) for row in GOLDEN}) == len(GOLDEN)
    assert {row["verdict"] for row in GOLDEN} == set(SCORES)


@pytest.mark.parametrize("group", GROUPS)
def test_golden_corpus(group: str):
    wrong = [
        (row["reference"], text_of(row)[:80], row["verdict"], score)
        for row in GROUPS[group]
        if (score := score_of(row["reference"], text_of(row), finished=row.get("finished", True)))
        != SCORES[row["verdict"]]
    ]
    assert not wrong


def test_order_and_threads_change_no_verdict():
    rows = [row for group in ("fractions", "surds", "sets", "algebra") for row in GROUPS[group]]
    grade_math.cache_clear()
    _math_grading._remembered.cache_clear()
    with ThreadPoolExecutor(4) as threads:
        scores = list(threads.map(lambda row: score_of(row["reference"], text_of(row)), rows[::-1]))
    assert scores[::-1] == [SCORES[row["verdict"]] for row in rows]


prose = st.text(st.characters(codec="utf-8", exclude_characters="\\{}<>#"), max_size=60).filter(
    lambda text: "answer" not in text.lower()
)
simple = st.sampled_from([row for group in ("integers", "fractions", "tuples", "percent") for row in GROUPS[group]])


@given(simple, prose, prose, st.booleans())
def test_prose_around_the_answer_does_not_matter(row: dict, before: str, after: str, thinks: bool):
    text = f"{before}\\boxed{{{row['boxed']}}}{after}"
    text = f"<think>{after} \\boxed{{0}}</think>{text}" if thinks else text
    assert score_of(row["reference"], text) == SCORES[row["verdict"]]
    assert score_of(row["reference"], text, finished=False) == SCORES[row["verdict"]]


rationals = st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=10**4)


def notations(value: Fraction, scale: int) -> list[str]:
    """Ways to write a rational number exactly."""
    sign, top, bottom = "-" * (value < 0), abs(value.numerator), value.denominator
    ways = [
        f"{sign}{top}/{bottom}",
        f"\\frac{{{value.numerator}}}{{{bottom}}}",
        f"{sign}\\dfrac{{{scale * top}}}{{{scale * bottom}}}",
        f"$x = {sign}\\tfrac{{{top}}}{{{bottom}}}$",
    ]
    if bottom == 1:
        ways += [f"{value.numerator}", f"{value.numerator}.0", f"{sign}{top:,}", f"{sign}0{top}\\text{{ cm}}"]
    if 10**8 % bottom == 0:
        digits = f"{top * 10**8 // bottom:09d}"
        ways.append(f"{sign}{digits[:-8]}.{digits[-8:]}")
    return ways


@given(rationals, rationals, st.integers(1, 99), st.data())
@settings(max_examples=150)
def test_rationals_are_compared_as_exactly_as_fractions(
    value: Fraction, other: Fraction, scale: int, data: st.DataObject
):
    one = data.draw(st.sampled_from(notations(value, scale)))
    near = data.draw(st.sampled_from([value, other, value + Fraction(1, 10**9), -value]))
    two = data.draw(st.sampled_from(notations(near, 3)))
    assert grade_math(one, two) == Verdict(score=float(value == near))
    assert grade_math(two, one) == grade_math(one, two)


@pytest.mark.parametrize(
    ("text", "finished", "answer"),
    [
        ("\\boxed{4}", True, ("4", 9)),
        ("no \\boxed{3}, \\boxed{4} so \\boxed{4}", True, ("4", 23)),  # it stands from the first that says so
        ("no \\boxed{4}, \\boxed{3} so \\boxed{4}", True, ("4", 36)),
        ("\\boxed{\\text{a \\} b}} \\boxed{", True, ("\\text{a \\} b}", 21)),
        ("} \\boxed{f(\\{1\\})} {", True, ("f(\\{1\\})", 18)),
        ("\\boxed{ \\boxed{4} } \\boxed{4", True, ("4", 19)),
        ("\\boxed{ open \\boxed{4}", False, ("4", 22)),
        ("The answer is 12.5. Really.", True, ("12.5", None)),  # final only because the text ended
        ("The answer is 12.5. Really.", False, None),
        ("<think>\\boxed{4}</think> \\boxed{5} <think>", True, None),
        ("stray 12", True, None),
    ],
)
def test_where_the_final_answer_stands(text: str, finished: bool, answer: tuple[str, int | None] | None):
    wanted = None if answer is None else Answer(text=answer[0], end=answer[1])
    assert final_answer(text, finished=finished) == wanted


def test_a_thousand_open_boxes_take_one_pass():
    text = "\\boxed{" * 20_000 + "4" + "}" * 20_000 + "\\boxed{" * 20_000
    assert final_answer("{" * 20_000 + text) == Answer(text="4", end=20_000 + 20_000 * 8 + 1)


def test_a_grader_that_hangs_is_killed_and_replaced():
    hangs = "\\binom{1000000}{500000}"
    assert ask_math_verify("5", hangs, cpu_s=0.2) == Verdict(score=None, reason="time limit")
    assert ask_math_verify("\\sqrt{8}", "2\\sqrt{2}") == Verdict(score=1.0)


def test_workers_that_die_or_wait_give_no_answer():
    pool = WorkerPool("json", "grade")  # any module: the library is not asked for
    with pytest.raises(NoAnswer, match="crashed"):
        pool.ask({"kind": "no such kind"}, cpu_s=5.0, wall_s=60.0)
    with pytest.raises(NoAnswer, match="time limit"):
        pool.ask({"kind": "compare", "reference": "1", "answer": "2"}, cpu_s=5.0, wall_s=0.0)
    pool.close()


def test_threads_that_ask_the_same_compare_once(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, str]] = []
    verdicts: list[Verdict] = []
    pair = ("u+v", "v+u+w")  # of no other test
    second = threading.Thread(target=lambda: verdicts.append(grade_math(*pair)))

    def ask(reference: str, answer: str) -> Verdict:
        asked.append((reference, answer))
        if len(asked) == 1:  # while the first is at it, another thread asks
            second.start()
            second.join(timeout=0.1)
        return Verdict(score=0.0)

    monkeypatch.setattr(_math_grading, "ask_math_verify", ask)
    verdicts.append(grade_math(*pair))
    second.join()
    assert (asked, verdicts) == ([pair], [Verdict(score=0.0)] * 2)


def test_missing_library_names_the_extra():
    pool = WorkerPool("no_such_library", "grade")
    with pytest.raises(ImportError, match=r"grading needs no_such_library: pip install 'kinetics-jax\[grade\]'"):
        pool.ask({"kind": "compare"}, cpu_s=5.0, wall_s=60.0)
