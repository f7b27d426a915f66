"""A task asked in words, as one model hears it: prompts in its chat format, answers decoded by its tokenizer.

The one thing that needs thought is `solved_len`: the grader says after how many characters the final answer stands,
and a few decodes of beginnings of the output turn that into tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from ._protocol import Grade, Problem
from ._text import Message, TextProblem, TextTask
from ._thought import THINK, answer_start

_TAIL_LEN = 32
"""Tokens at the end of a prompt among which the chat format may open a thought."""


@runtime_checkable
class ChatTokenizer(Protocol):
    """Turn texts and chats into token ids, and token ids into texts; what `tokenised` needs of a tokenizer."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, with BOS in front if the model was trained so."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        ...

    def apply_chat_template(self, messages: Sequence[Message], *, enable_thinking: bool = True) -> list[int]:
        """Return the token ids of a chat, up to where the model's next turn starts."""
        ...


def tokenised(task: TextTask, tokenizer: ChatTokenizer, *, enable_thinking: bool = True) -> "TokenisedTask":
    """Return the task as a model with this tokenizer hears it.

    Args:
        task: Asks and judges in words.
        tokenizer: The model's. One without a chat format (`chat_template` None) gets the question as plain text.
        enable_thinking: Whether the model is to think before it answers, where its chat format has that switch.

    Returns:
        A `Task` with the same name, revision and licence.
    """
    return TokenisedTask(task=task, tokenizer=tokenizer, enable_thinking=enable_thinking)


@final
@dataclass(frozen=True, kw_only=True)
class TokenisedTask:
    """Hold a text task and a tokenizer together; made by `tokenised`.

    Attributes:
        task: Asks and judges in words.
        tokenizer: Encodes prompts, decodes answers.
        enable_thinking: Handed to the chat format.
    """

    task: TextTask
    tokenizer: ChatTokenizer
    enable_thinking: bool = True

    @property
    def name(self) -> str:
        """The name used in tables and traces."""
        return self.task.name

    @property
    def revision(self) -> str:
        """Which version of the problems and of their grader this is."""
        return self.task.revision

    @property
    def licence(self) -> str:
        """The licence of the problems."""
        return self.task.licence

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a text, of which chat models have several."""
        return self.tokenizer.eos_token_ids

    @property
    def max_gen_len(self) -> int:
        """Full length limit on the thought [tokens]."""
        return self.task.max_gen_len

    def problems(self, num_problems: int | None = None, *, split: str = "held_out") -> list[Problem]:
        """Return the first `num_problems` problems of a split as this model reads them; None asks for all."""
        return [
            Problem(
                id=problem.id, difficulty=problem.difficulty, prompt_ids=tuple(self._prompt_ids(problem)), text=problem
            )
            for problem in self.task.problems(num_problems, split=split)
        ]

    def grade(self, problem: Problem, output_ids: Sequence[int]) -> Grade:
        """Judge the text of the generated tokens.

        `solved_len` is the smallest number of tokens whose text holds the final, right answer, the thought closed.
        An answer that only the end of the text makes final counts every token, the one that ended it included.

        Raises:
            ValueError: If the problem was not made by `problems` of such a task.
        """
        if problem.text is None:
            raise ValueError(f"problem {problem.id!r} has no text; take it from the problems() of a tokenised task")
        output_ids = list(map(int, output_ids))
        finished = bool(output_ids) and output_ids[-1] in self.stop_ids
        opening = THINK if self._opens_thought(problem.prompt_ids) else ""
        generated = self.tokenizer.decode(output_ids)
        if generated.startswith(opening):
            opening = ""
        text = opening + generated
        judged = self.task.grade(problem.text, text, finished=finished)
        answer = judged.answer
        solved_len = None
        if judged.score == 1.0:
            end = None if answer is None else answer.end
            solved_len = (
                len(output_ids)
                if end is None
                else tokens_until(self.tokenizer.decode, output_ids, generated, end - len(opening))
            )
        return Grade(
            answer=None if answer is None else answer.text,
            score=judged.score,
            solved_len=solved_len,
            reason=judged.reason,
        )

    def _prompt_ids(self, problem: TextProblem) -> list[int]:
        messages = self.task.prompt(problem)
        if getattr(self.tokenizer, "chat_template", "") is None:  # a base model: the questions as a text to continue
            return self.tokenizer.encode("\n\n".join(str(message["content"]) for message in messages) + "\n\n")
        return self.tokenizer.apply_chat_template(messages, enable_thinking=self.enable_thinking)

    def _opens_thought(self, prompt_ids: Sequence[int]) -> bool:
        """Say whether the prompt ends inside a thought, as DeepSeek's chat format does."""
        return answer_start(self.tokenizer.decode(prompt_ids[-_TAIL_LEN:])) is None


def tokens_until(decode: Callable[[Sequence[int]], str], token_ids: Sequence[int], text: str, end: int) -> int:
    r"""Return the smallest n for which the text of the first n tokens begins with the first `end` characters of `text`.

    Final answers stand near the end, so the tokens behind them are counted first, which takes decodes of short ends
    only. A beginning is not exactly the whole less its end (characters may be split among tokens), so that count is a
    guess: two decodes of beginnings confirm it, some more correct it. Never one a token.

    Args:
        decode: Token ids to text.
        token_ids: What was generated.
        text: What `decode` makes of all of it.
        end: Characters of it that must be there, at most its length.

    Example:
        >>> words = ["x", " = ", "\\boxed{", "7", "}", " indeed"]
        >>> tokens_until(lambda ids: "".join(words[i] for i in ids), range(6), "".join(words), 13)
        5
    """
    if end <= 0:
        return 0
    wanted = text[:end]

    def covers(n: int) -> bool:
        return decode(token_ids[:n]).startswith(wanted)

    guess = len(token_ids) - _num_behind(decode, token_ids, len(text) - end)
    low, high = 0, len(token_ids)  # too few tokens, and enough
    step = 1
    if covers(guess):
        high = guess
        while high - step > low and covers(high - step):
            high, step = high - step, 2 * step
        low = max(low, high - step)
    else:
        low = guess
        while low + step < high and not covers(low + step):
            low, step = low + step, 2 * step
        high = min(high, low + step)
    return _first(covers, low, high)


def _num_behind(decode: Callable[[Sequence[int]], str], token_ids: Sequence[int], num_chars: int) -> int:
    """Return the largest number of tokens at the end whose own text has at most `num_chars` characters."""

    def is_longer(num_tokens: int) -> bool:
        return len(decode(token_ids[len(token_ids) - num_tokens :])) > num_chars

    num_tokens = 1
    while num_tokens < len(token_ids) and not is_longer(num_tokens):
        num_tokens *= 2
    num_tokens = min(num_tokens, len(token_ids))
    return _first(is_longer, num_tokens // 2, num_tokens) - 1 if is_longer(num_tokens) else num_tokens


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the smallest n in low + 1..high for which it holds, given that it holds at `high` and not at `low`."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
