"""The recorded traces: complete, truly said by these weights, rightly graded, and as good as the house promises.

Thresholds are those of the job ("Quality of the result"): where one fails, the task or the recipe must change.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

from kinetics_jax.accuracy import accuracy_at_len, pass_at_k
from kinetics_jax.models import Decoder
from kinetics_jax.specs import parse_attention
from kinetics_jax.tasks import Pathfind
from kinetics_jax.traces import TraceTable
from kinetics_jax.zoo import MINI_MODELS, RECORDED_TRACES, load_zoo_model, recorded_tables

TASK = Pathfind()
ROWS_PER_FILE = 1000
LARGEST = MINI_MODELS[-1]


@pytest.fixture(scope="module")
def tables() -> dict[tuple[str, str], TraceTable]:
    return {(table.model, table.attention): table for table in recorded_tables()}


@cache
def rows_of(model: str) -> dict[str, list]:
    """The columns of one model's file, spread over all its rows."""
    file = RECORDED_TRACES / f"{model}.parquet"
    columns = ["model", "weights_hash", "problem", "difficulty", "attention", "sampling", "prompt_ids", "output_ids"]
    table = pq.read_table(file, columns=[*columns, "answer", "score", "solved_len", "finish_reason"])
    return table.take(np.linspace(0, table.num_rows - 1, ROWS_PER_FILE).astype(int)).to_pydict()


def accuracy(table: TraceTable, limit: int = TASK.max_gen_len) -> float:
    return float(accuracy_at_len(table.solved_len, np.array([limit]), table.mask).mean())


def budget_of(attention: str) -> int:
    return getattr(parse_attention(attention), "budget_len", 0)


@pytest.mark.parametrize("model", MINI_MODELS)
def test_every_method_was_recorded_at_several_budgets(model: str, tables: dict):
    recorded = [attention for name, attention in tables if name == model]
    assert "dense" in recorded
    for method in ("topk", "block_topk", "local"):
        assert len({budget_of(text) for text in recorded if text.startswith(f"{method}:")}) >= 4
    for attention in recorded:
        table = tables[model, attention]
        num_problems, num_trials = table.mask.shape
        assert num_problems >= 64
        assert num_trials >= 16
        assert table.mask.all()
        assert table.max_gen_len == TASK.max_gen_len


@pytest.mark.parametrize("model", MINI_MODELS)
def test_traces_come_from_these_weights_and_the_held_out_problems(model: str):
    rows = rows_of(model)
    assert set(rows["model"]) == {model}
    assert set(rows["weights_hash"]) == {load_zoo_model(model).weights_hash}
    problems = {problem.id: problem for problem in TASK.problems(80)}
    for name, difficulty, prompt_ids in zip(rows["problem"], rows["difficulty"], rows["prompt_ids"], strict=True):
        assert problems[name].prompt_ids == tuple(prompt_ids)
        assert problems[name].difficulty == difficulty


@pytest.mark.parametrize("model", MINI_MODELS)
def test_regrading_the_tokens_gives_the_recorded_grades(model: str):
    rows = rows_of(model)
    problems = {problem.id: problem for problem in TASK.problems(80)}
    for row in range(ROWS_PER_FILE):
        grade = TASK.grade(problems[rows["problem"][row]], rows["output_ids"][row])
        assert grade.score == rows["score"][row]
        assert grade.answer == rows["answer"][row]
        assert grade.solved_len == rows["solved_len"][row]
        ended = rows["output_ids"][row][-1] == TASK.eos_id
        assert rows["finish_reason"][row] == ("eos" if ended else "length")
    assert 0 < sum(rows["score"]) < ROWS_PER_FILE


def test_the_smallest_model_would_say_what_was_recorded():
    """At temperature 1 the mean surprise of sampled tokens is the mean entropy of the model that sampled them."""
    name = MINI_MODELS[0]
    rows = rows_of(name)
    picked = [row for row, text in enumerate(rows["attention"]) if text == "dense"][:12]
    longest = len(rows["prompt_ids"][0]) + TASK.max_gen_len
    token_ids = np.zeros((len(picked), longest), np.int32)
    said = np.zeros(token_ids.shape, bool)
    for at, row in enumerate(picked):
        both = [*rows["prompt_ids"][row], *rows["output_ids"][row]]
        token_ids[at, : len(both)] = both
        said[at, len(rows["prompt_ids"][row]) : len(both)] = True

    @jax.jit
    def surprise_and_entropy(model: Decoder, token_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_probs = jax.nn.log_softmax(model(token_ids)[:, :-1])
        entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
        return -jnp.take_along_axis(log_probs, token_ids[:, 1:, None], axis=-1)[..., 0], entropy

    surprise, entropy = surprise_and_entropy(load_zoo_model(name).model, jnp.asarray(token_ids))
    gap = np.asarray(surprise - entropy)[said[:, 1:]]
    assert len(gap) > 1000
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap))


def test_accuracy_rises_with_size(tables: dict):
    by_size = [accuracy(tables[model, "dense"]) for model in MINI_MODELS]
    assert by_size == sorted(by_size)
    assert len(set(by_size)) == len(by_size)


def test_the_largest_solves_the_easiest_depth_and_half_of_all(tables: dict):
    table = tables[LARGEST, "dense"]
    easiest = table.difficulty == table.difficulty.min()
    assert np.isfinite(table.solved_len[easiest]).mean() >= 0.9
    assert accuracy(table) >= 0.5


def test_length_buys_accuracy(tables: dict):
    table = tables[LARGEST, "dense"]
    assert accuracy(table) >= 1.5 * accuracy(table, TASK.max_gen_len // 8)


@pytest.mark.parametrize("model", MINI_MODELS)
def test_trials_buy_accuracy(model: str, tables: dict):
    num_correct = np.isfinite(tables[model, "dense"].solved_len).sum(axis=1)
    one, sixteen = (float(pass_at_k(num_correct, 16, k).mean()) for k in (1, 16))
    assert one > 0
    assert sixteen >= one + 0.2


@pytest.mark.parametrize("model", MINI_MODELS)
def test_a_window_that_cannot_see_the_prompt_is_lost(model: str, tables: dict):
    local, block = accuracy(tables[model, "local:128"]), accuracy(tables[model, "block_topk:4x64"])
    assert local < 0.05
    assert local < 0.1 * block
    for attention in ("block_topk:4x32", "block_topk:8x16"):  # the same budget of 128 tokens
        assert local < 0.5 * accuracy(tables[model, attention])


@pytest.mark.parametrize("model", MINI_MODELS)
def test_block_top_k_approaches_oracle_top_k(model: str, tables: dict):
    oracle = accuracy(tables[model, "topk:256"])
    for page_len in (4, 8):
        specs = [f"block_topk:{page_len}x{budget // page_len}" for budget in (64, 128, 256, 384)]
        gaps = [oracle - accuracy(tables[model, attention]) for attention in specs]
        assert gaps == sorted(gaps, reverse=True)
        assert gaps[-1] < 0.05
    assert abs(oracle - accuracy(tables[model, "dense"])) < 0.05
