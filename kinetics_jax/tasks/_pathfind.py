"""Pathfind: find a path of exactly d hops in a random directed graph that the prompt lists edge by edge.

    <bos> n4 n9 ; n2 n4 ; ... ? n4 n7 @3 :          thought: n4 n9 n1 n5 FAIL n4 n2 n0 n7 DONE <eos>

Every hop retrieves an edge from the prompt, and the target is one that few walks reach, so a thought is a
search: more tokens or more trials solve more, and each extra hop doubles the walks to try. Questions and reference
thoughts are vectorised JAX, so that training draws its batches on the device; the checker here is plain Python.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from ._pathfind_questions import problem_key, sample_questions
from ._pathfind_tokens import BOS, DEPTHS, DONE, EOS, FAIL, HOPS_BASE, PAD, VOCABULARY
from ._protocol import Grade, Problem


@jax.jit  # a problem at a time: one compilation, however many problems are asked for
def _prompt(key: PRNGKeyArray, depth: Int[Array, ""]) -> Int[Array, " prompt_len"]:
    return sample_questions(key, depth[None]).prompt_ids[0]


@dataclass(frozen=True, kw_only=True)
class Pathfind:
    """Pose and check pathfind problems; depths 4 to 8 in turn.

    Example:
        >>> task = Pathfind()
        >>> problem = task.problems(1)[0]
        >>> problem.id, problem.difficulty, len(problem.prompt_ids)
        ('held_out-0', 4, 294)
        >>> task.grade(problem, [DONE, EOS]).score
        0.0
    """

    name: str = "pathfind"
    revision: str = "1"
    licence: str = "Apache-2.0"
    vocabulary: tuple[str, ...] = VOCABULARY
    pad_id: int = PAD
    bos_id: int = BOS
    eos_id: int = EOS
    max_gen_len: int = 256

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The token that ends an answer."""
        return (self.eos_id,)

    def problems(self, num_problems: int | None = None, *, split: str = "held_out") -> list[Problem]:
        """Return the first `num_problems` of a split ("held_out" by default), depths in turn.

        Raises:
            ValueError: If the number is missing or below one, or the split unknown.
        """
        if num_problems is None:
            raise ValueError("pathfind never runs out of problems: say how many")
        if num_problems < 1:
            raise ValueError(f"num_problems must be at least 1; got {num_problems}")
        depths = [DEPTHS[index % len(DEPTHS)] for index in range(num_problems)]
        prompts = [_prompt(problem_key(split, index), jnp.asarray(depth)) for index, depth in enumerate(depths)]
        return [
            Problem(id=f"{split}-{index}", difficulty=depth, prompt_ids=tuple(prompt.tolist()))
            for index, (depth, prompt) in enumerate(zip(depths, jax.device_get(prompts), strict=True))
        ]

    def grade(self, problem: Problem, output_ids: Sequence[int]) -> Grade:
        """Judge the last walk that the thought closes with DONE.

        The walk must start at the source, end at the target, take exactly the asked number of hops, and use only
        edges of the prompt. A thought without DONE is wrong, not ungradable: the question was left unanswered.
        """
        tokens = [int(token) for token in output_ids]
        if DONE not in tokens:
            return Grade(answer=None, score=0.0, solved_len=None)
        end = len(tokens) - 1 - tokens[::-1].index(DONE)
        start = max((at for at in range(end) if tokens[at] in (FAIL, DONE)), default=-1) + 1
        walk = tokens[start:end]
        right = _is_path(walk, problem.prompt_ids)
        answer = " ".join(self.vocabulary[token] for token in walk)
        return Grade(answer=answer, score=float(right), solved_len=end + 1 if right else None)


def _is_path(walk: Sequence[int], prompt_ids: Sequence[int]) -> bool:
    edge_tokens, (_, source, target, hops, _) = prompt_ids[1:-5], prompt_ids[-5:]
    edges = set(zip(edge_tokens[0::3], edge_tokens[1::3], strict=True))
    if len(walk) != hops - HOPS_BASE + 1 or walk[0] != source or walk[-1] != target:
        return False
    return all(hop in edges for hop in pairwise(walk))
