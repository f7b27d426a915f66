"""A text task with a tokenizer: prompts of its chat format, and the token after which the right answer stands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.tasks import AIME25, ChatTokenizer, Problem, Task, TextProblem, TextTask, tokenised
from kinetics_jax.tasks._tokenised import tokens_until

BYTES_A_TOKEN = 3
EOS, THINK = 2, 3
FIRST = 8


@dataclass(frozen=True, kw_only=True)
class ByteTokenizer:
    """Up to three bytes a token, so that a character may be split; ids below eight are special."""

    eos_token_ids: tuple[int, ...] = (EOS, 1)
    chat_template: str | None = "a template"
    opens_thought: bool = False
    decoded: list[int] = field(default_factory=list)
    """How many tokens each decode was given."""

    def encode(self, text: str) -> list[int]:
        data = text.encode()
        chunks = [data[at : at + BYTES_A_TOKEN] for at in range(0, len(data), BYTES_A_TOKEN)]
        return [FIRST + int.from_bytes(b"\1" + chunk, "big") for chunk in chunks]

    def decode(self, token_ids: Sequence[int]) -> str:
        self.decoded.append(len(token_ids))
        data = bytearray()
        for token in token_ids:
            if token == THINK:
                data += b"<think>"
            elif token >= FIRST:
                data += (token - FIRST).to_bytes(BYTES_A_TOKEN + 1, "big").lstrip(b"\0")[1:]
        return data.decode(errors="replace")

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], *, enable_thinking: bool = True) -> list[int]:
        text = "".join(f"[{message['role']}]{message['content']}" for message in messages)
        return [7, *self.encode(text + ("" if enable_thinking else "<think></think>")), *[THINK] * self.opens_thought]


MATH = AIME25
PROBLEM = TextProblem(id="p", difficulty=3, question="6 · 7?", reference="42")


def pose(tokenizer: ByteTokenizer, **options: bool) -> Problem:
    task = tokenised(MATH, tokenizer, **options)
    return Problem(id="p", difficulty=3, prompt_ids=tuple(task._prompt_ids(PROBLEM)), text=PROBLEM)


def solved_by_definition(task: Task, problem: Problem, output_ids: list[int]) -> int:
    """The smallest n from which on every beginning is right: the definition, a grading a token."""
    right = [task.grade(problem, output_ids[:n]).score == 1.0 for n in range(len(output_ids) + 1)]
    return len(right) - next((n for n, is_right in enumerate(right[::-1]) if not is_right), len(right))


def test_it_is_a_task_and_tells_what_the_text_task_tells():
    tokenizer = ByteTokenizer()
    assert isinstance(tokenizer, ChatTokenizer)
    assert isinstance(MATH, TextTask)
    task = tokenised(MATH, tokenizer)
    assert isinstance(task, Task)
    assert not isinstance(task, TextTask)
    assert not isinstance(MATH, Task)
    assert (task.name, task.revision, task.licence) == (MATH.name, MATH.revision, MATH.licence)
    assert (task.stop_ids, task.max_gen_len) == ((2, 1), 32_768)


def test_prompts_follow_the_chat_format_or_are_plain_text():
    tokenizer = ByteTokenizer()
    asked = tokenizer.decode(pose(tokenizer).prompt_ids)
    assert asked.startswith("[user]6 · 7?\n\n")
    assert "\\boxed{}" in asked
    assert tokenizer.decode(pose(tokenizer, enable_thinking=False).prompt_ids).endswith("<think></think>")
    plain = tokenizer.decode(pose(ByteTokenizer(chat_template=None)).prompt_ids)
    assert plain.startswith("6 · 7?")
    assert plain.endswith("\n\n")


pieces = st.lists(
    st.sampled_from(
        ["\\boxed{42}", "\\boxed{41}", "\\boxed{042}", "</think>", "<think>", "é→🙂", " so ", "42", "{", "}"]
    ),
    max_size=7,
)


@given(pieces, st.booleans(), st.booleans())
@settings(max_examples=30)
def test_solved_len_is_what_the_definition_says(said: list[str], opens_thought: bool, ends: bool):
    tokenizer = ByteTokenizer(opens_thought=opens_thought)
    task, problem = tokenised(MATH, tokenizer), pose(tokenizer)
    output_ids = [*tokenizer.encode("".join(said)), *[EOS] * ends]
    grade = task.grade(problem, output_ids)
    if grade.score == 1.0:
        assert grade.solved_len == solved_by_definition(task, problem, output_ids)
    else:
        assert grade.solved_len is None
    assert grade == task.grade(problem, output_ids)


@pytest.mark.parametrize("opens_thought", [True, False])
def test_an_open_thought_holds_no_answer(opens_thought: bool):
    tokenizer = ByteTokenizer(opens_thought=opens_thought)
    task, problem = tokenised(MATH, tokenizer), pose(tokenizer)
    stray = task.grade(problem, tokenizer.encode("it is \\boxed{42}"))
    assert (stray.score, stray.solved_len) == ((0.0, None) if opens_thought else (1.0, 6))
    closed = task.grade(problem, tokenizer.encode("\\boxed{41}</think>\\boxed{42}"))
    assert (closed.score, closed.answer, closed.solved_len) == (1.0, "42", 10)
    repeated = task.grade(problem, [THINK, *tokenizer.encode("a</think>\\boxed{42}")])
    assert repeated.score == 1.0


def test_a_sentence_is_final_only_when_the_text_ends():
    tokenizer = ByteTokenizer()
    task, problem = tokenised(MATH, tokenizer), pose(tokenizer)
    said = tokenizer.encode("The answer is 42.")
    assert task.grade(problem, said).score == 0.0
    ended = task.grade(problem, [*said, EOS])
    assert (ended.score, ended.solved_len) == (1.0, len(said) + 1)


def test_long_thoughts_are_decoded_a_few_times():
    tokenizer = ByteTokenizer()
    task, problem = tokenised(MATH, tokenizer), pose(tokenizer)
    output_ids = tokenizer.encode("<think>" + "é wait " * 9_000 + "</think>" + "\\boxed{42}" + " indeed" * 900)
    tokenizer.decoded.clear()
    grade = task.grade(problem, output_ids)
    assert sum(tokenizer.decoded) < 5 * len(output_ids)
    assert grade.solved_len is not None
    assert "\\boxed{42}" in tokenizer.decode(output_ids[: grade.solved_len])
    assert "\\boxed{42}" not in tokenizer.decode(output_ids[: grade.solved_len - 1])


@given(st.lists(st.sampled_from(["a", "bc", "", "🙂", "d" * 16]), min_size=1, max_size=40), st.integers(0, 99))
def test_tokens_until_is_the_smallest_that_covers(words: list[str], end: int):
    text = "".join(words)
    end = min(end, len(text))
    found = tokens_until(lambda ids: "".join(words[at] for at in ids), range(len(words)), text, end)
    wanted = next(n for n in range(len(words) + 1) if "".join(words[:n]).startswith(text[:end]))
    assert found == wanted


def test_a_problem_without_text_is_refused():
    task = tokenised(MATH, ByteTokenizer())
    with pytest.raises(ValueError, match="problem 'p' has no text"):
        task.grade(Problem(id="p", difficulty=0, prompt_ids=(1,)), [3])
