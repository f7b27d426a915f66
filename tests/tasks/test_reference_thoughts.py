"""Reference thoughts are what a teacher may say: real edges, no walk twice, FAIL and DONE where they belong."""

from collections.abc import Callable
from itertools import pairwise

import jax
import numpy as np
import pytest

from kinetics_jax.tasks import DEPTHS, Pathfind, PathfindBatch, Problem

TASK = Pathfind()
PAD, EOS, FAIL, DONE = (TASK.vocabulary.index(word) for word in ("<pad>", "<eos>", "FAIL", "DONE"))
FIRST_NODE = TASK.vocabulary.index("n0")


@pytest.fixture(scope="module")
def batch(draw: Callable):
    return draw(jax.random.key(7))


def walks_of(thought: list[int], depth: int) -> list[tuple[list[int], int]]:
    """Cut a whole thought into (nodes, closing token); fails where it is not built of whole walks and <eos>."""
    end = thought.index(EOS)
    assert set(thought[end + 1 :]) <= {PAD}
    assert end % (depth + 2) == 0
    parts = [thought[start : start + depth + 2] for start in range(0, end, depth + 2)]
    return [([token - FIRST_NODE for token in part[:-1]], part[-1]) for part in parts]


def test_walks_follow_edges_and_close_right(batch: tuple[PathfindBatch, np.ndarray, np.ndarray]):
    questions, thoughts, _ = batch
    for row, thought in enumerate(thoughts.tolist()):
        source, target, depth = (int(getattr(questions, name)[row]) for name in ("source", "target", "depth"))
        successors = questions.successors[row].tolist()
        walks = walks_of(thought, depth)
        for nodes, closing in walks:
            assert nodes[0] == source
            assert all(head in successors[tail] for tail, head in pairwise(nodes))
            assert closing == (DONE if nodes[-1] == target else FAIL)
        assert [closing for _, closing in walks].count(DONE) == 1
        assert walks[-1][1] == DONE


def test_no_teacher_tries_the_same_prefix_twice(batch: tuple[PathfindBatch, np.ndarray, np.ndarray]):
    """Even the teacher who sees one hop ahead tries each way to make the other hops once."""
    questions, thoughts, _ = batch
    num_walks = []
    for depth, thought in zip(questions.depth.tolist(), thoughts.tolist(), strict=True):
        prefixes = [tuple(nodes[:depth]) for nodes, _ in walks_of(thought, depth)]
        assert len(set(prefixes)) == len(prefixes)
        assert len(prefixes) <= 2 ** (depth - 1)
        num_walks.append(len(prefixes))
    assert max(num_walks) > 16  # some teacher sees less than four hops of eight
    assert num_walks.count(1) >= 0.3 * (questions.depth == DEPTHS[0]).sum()  # sight 4 at depth 4: at once


def test_teachers_differ_and_order_is_random(draw: Callable, batch: tuple[PathfindBatch, np.ndarray, np.ndarray]):
    _, other, _ = draw(jax.random.key(8))
    assert (other != batch[1]).any()


def test_grader_accepts_every_reference_thought(batch: tuple[PathfindBatch, np.ndarray, np.ndarray]):
    questions, thoughts, _ = batch
    for row, thought in enumerate(thoughts.tolist()):
        prompt_ids = tuple(questions.prompt_ids[row].tolist())
        problem = Problem(id="x", difficulty=int(questions.depth[row]), prompt_ids=prompt_ids)
        grade = TASK.grade(problem, thought)
        assert grade.score == 1.0
        assert grade.solved_len == thought.index(EOS)


def test_cut_thought_is_the_beginning_of_the_whole(batch: tuple[PathfindBatch, np.ndarray, np.ndarray]):
    """The limit cuts; it does not choose another thought."""
    _, thoughts, cut = batch
    np.testing.assert_array_equal(cut, thoughts[:, : cut.shape[1]])
    assert (cut[:, -1] != PAD).any()  # some were cut
