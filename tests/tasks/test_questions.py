"""Pathfind's questions: what the prompt says, that the graph allows it, and that held-out graphs are held out."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kinetics_jax.tasks import DEPTHS, Pathfind, Problem, problem_key

TASK = Pathfind()
NUM_NODES = 48
LONGEST_RUN = 200_000
"""Training steps; no recipe of the zoo has as many."""


def words(problem: Problem) -> list[str]:
    return [TASK.vocabulary[token] for token in problem.prompt_ids]


def edges_of(problem: Problem) -> frozenset[tuple[str, str]]:
    text = words(problem)[1:-5]
    return frozenset(zip(text[0::3], text[1::3], strict=True))


def num_walks(problem: Problem) -> np.ndarray:
    """Walks of exactly the asked depth from the source to each node, by powers of the adjacency matrix."""
    adjacency = np.zeros((NUM_NODES, NUM_NODES), int)
    for tail, head in edges_of(problem):
        adjacency[int(tail[1:]), int(head[1:])] += 1
    return np.linalg.matrix_power(adjacency, problem.difficulty)[int(words(problem)[-4][1:])]


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return TASK.problems(40)


def test_prompt_lists_every_edge_once_then_the_question(problems: list[Problem]):
    for problem in problems:
        text = words(problem)
        assert text[0] == "<bos>"
        assert text[3:-5:3] == [";"] * 96
        assert len(edges_of(problem)) == 96
        assert text[-5] == "?"
        assert text[-2:] == [f"@{problem.difficulty}", ":"]
        tails = [tail for tail, _ in edges_of(problem)]
        assert all(tails.count(f"n{node}") == 2 for node in range(NUM_NODES))
        assert all(tail != head for tail, head in edges_of(problem))


def test_edges_come_in_random_order(problems: list[Problem]):
    tails = words(problems[0])[1:-5:3]
    assert tails != sorted(tails)
    assert words(problems[0])[1:-5] != words(problems[5])[1:-5]


def test_target_is_reached_by_as_few_walks_as_any_node(problems: list[Problem]):
    for problem in problems:
        source, target = (int(word[1:]) for word in words(problem)[-4:-2])
        walks = num_walks(problem)
        assert source != target
        others = np.delete(walks, source)
        assert walks[target] == others[others > 0].min()


def test_depths_come_in_turn_and_names_are_stable(problems: list[Problem]):
    assert [problem.difficulty for problem in problems[:6]] == [4, 5, 6, 7, 8, 4]
    assert [problem.id for problem in problems[:2]] == ["held_out-0", "held_out-1"]
    assert len({len(problem.prompt_ids) for problem in problems}) == 1


def test_fewer_problems_are_the_first_of_more(problems: list[Problem]):
    assert TASK.problems(3) == problems[:3]


def test_splits_never_share_a_seed():
    keys = {}
    for split, num_keys in (("train", LONGEST_RUN), ("held_out", 2_000)):
        indices = jnp.arange(num_keys)
        data = jax.vmap(lambda index, split=split: jax.random.key_data(problem_key(split, index)))(indices)
        keys[split] = {tuple(row) for row in np.asarray(data).tolist()}
        assert len(keys[split]) == num_keys
    assert keys["train"].isdisjoint(keys["held_out"])


def test_held_out_graphs_do_not_occur_in_training(problems: list[Problem], draw: Callable):
    held_out = {edges_of(problem) for problem in problems}
    assert len(held_out) == len(problems)
    for step in range(8):
        questions, _, _ = draw(jax.random.split(problem_key("train", step), 3)[1])
        trained_on = {
            frozenset((f"n{tail}", f"n{head}") for tail, heads in enumerate(graph) for head in heads)
            for graph in questions.successors.tolist()
        }
        assert len(trained_on) == len(questions.successors)
        assert held_out.isdisjoint(trained_on)


def test_batch_and_prompt_tell_the_same_question(draw: Callable, key: jax.Array):
    questions, _, _ = draw(key)
    for row in range(10):
        problem = Problem(
            id="x", difficulty=int(questions.depth[row]), prompt_ids=tuple(questions.prompt_ids[row].tolist())
        )
        assert words(problem)[-4:-1] == [
            f"n{questions.source[row]}",
            f"n{questions.target[row]}",
            f"@{questions.depth[row]}",
        ]
        assert edges_of(problem) == {
            (f"n{tail}", f"n{head}") for tail, heads in enumerate(questions.successors[row]) for head in heads
        }
    assert set(questions.depth.tolist()) == set(DEPTHS)


def test_unknown_split_and_number_are_refused():
    with pytest.raises(ValueError, match=r"unknown split 'test'\. Known: train, held_out"):
        TASK.problems(1, split="test")
    with pytest.raises(ValueError, match="num_problems must be at least 1; got 0"):
        TASK.problems(0)
