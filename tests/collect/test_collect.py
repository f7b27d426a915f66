"""Collecting: every trial once, on disk for good, the same however often it was interrupted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kinetics_jax.collect import Collector, Progress
from kinetics_jax.specs import BestOfN, BlockTopK, Dense, LongCoT, SamplingSpec
from kinetics_jax.tasks import Grade, Problem, Task
from kinetics_jax.traces import Trace, read_traces
from kinetics_jax.zoo import load_zoo_model

STRATEGY = BestOfN(num_trials=3, max_gen_len=5)


@dataclass(frozen=True, kw_only=True)
class FirstWord:
    """A task with prompts short enough to sample in no time: right is who starts with an even word."""

    name: str = "first-word"
    vocabulary: tuple[str, ...] = ("<pad>", "<bos>", "<eos>")
    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 20
    max_gen_len: int = 5

    def problems(self, num_problems: int, *, split: str = "held_out") -> list[Problem]:
        prompts = [tuple(range(16 + at, 22 + at)) for at in range(num_problems)]
        return [Problem(id=f"{split}-{at}", difficulty=at, prompt_ids=prompt) for at, prompt in enumerate(prompts)]

    def grade(self, problem: Problem, output_ids: Sequence[int]) -> Grade:
        is_right = output_ids[0] % 2 == 0
        return Grade(answer=str(output_ids[0]), score=float(is_right), solved_len=1 if is_right else None)


TASK = FirstWord()
PROBLEMS = TASK.problems(5)


@pytest.fixture(scope="module")
def collector() -> Collector:
    loaded = load_zoo_model("Kinetics-Mini-0.1M")
    return Collector(
        model=loaded.model,
        model_name="Kinetics-Mini-0.1M",
        weights_hash=loaded.weights_hash,
        task=TASK,
        attention=Dense(),
        sampling=SamplingSpec(temperature=3.0),
        seed=11,
        batch_problems=2,
    )


@pytest.fixture(scope="module")
def wanted(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> list[Trace]:
    """The rows of a run that nothing interrupts."""
    shard = tmp_path_factory.mktemp("whole") / "shard.jsonl"
    assert collector.collect(PROBLEMS, STRATEGY, shard) == 15
    return rows(shard)


def rows(shard: Path) -> list[Trace]:
    """All rows but for the time they took, in order of (problem, trial)."""
    return sorted((replace(trace, time_s=0.0) for trace in read_traces(shard)), key=lambda trace: trace.key)


class Interruption(Exception):
    pass


def stop_after(num_done: int) -> Callable[[Progress], None]:
    def stop(progress: Progress) -> None:
        if progress.num_done >= num_done:
            raise Interruption

    return stop


def test_rows_tell_everything(wanted: list[Trace], collector: Collector):
    assert [trace.key for trace in wanted] == [
        ("first-word/Kinetics-Mini-0.1M/dense/seed11", f"held_out-{at}", trial) for at in range(5) for trial in range(3)
    ]
    for trace in wanted:
        assert trace.prompt_ids == PROBLEMS[trace.difficulty].prompt_ids
        assert trace.output_ids is not None
        assert (trace.attention, trace.seed, trace.max_gen_len) == ("dense", 11, 5)
        assert trace.sampling == "SamplingSpec(temperature=3.0, top_k=0, top_p=1.0, min_p=0.0)"
        assert trace.weights_hash == collector.weights_hash
        assert trace.finish_reason == ("eos" if trace.output_ids[-1] == TASK.eos_id else "length")
        assert trace.finish_reason == "eos" or trace.gen_len == 5
        assert trace.score == float(trace.output_ids[0] % 2 == 0)
    assert isinstance(TASK, Task)
    assert len({trace.output_ids for trace in wanted}) == len(wanted)


@pytest.mark.parametrize("num_done", [6, 12])
def test_interrupted_and_resumed_equals_uninterrupted(
    num_done: int, collector: Collector, wanted: list[Trace], tmp_path: Path
):
    shard = tmp_path / "new folder" / "shard.jsonl"
    with pytest.raises(Interruption):
        collector.collect(PROBLEMS, STRATEGY, shard, on_progress=stop_after(num_done))
    assert len(rows(shard)) == num_done
    assert collector.collect(PROBLEMS, STRATEGY, shard) == 15 - num_done
    assert rows(shard) == wanted


def test_torn_line_is_sampled_again(collector: Collector, wanted: list[Trace], tmp_path: Path):
    shard = tmp_path / "shard.jsonl"
    collector.collect(PROBLEMS, STRATEGY, shard)
    shard.write_bytes(shard.read_bytes()[:-40])
    assert collector.collect(PROBLEMS, STRATEGY, shard) == 1
    assert rows(shard) == wanted


def test_complete_shard_is_left_alone(collector: Collector, tmp_path: Path):
    shard = tmp_path / "shard.jsonl"
    collector.collect(PROBLEMS, STRATEGY, shard)
    before = shard.read_bytes()
    assert collector.collect(PROBLEMS, STRATEGY, shard) == 0
    assert shard.read_bytes() == before


def test_order_and_company_of_the_problems_do_not_matter(collector: Collector, wanted: list[Trace], tmp_path: Path):
    shard = tmp_path / "shard.jsonl"
    collector.collect(PROBLEMS[3:4], STRATEGY, shard)
    collector.collect(PROBLEMS[::-1], STRATEGY, shard)
    assert rows(shard) == wanted


def test_progress_counts_what_is_on_disk(collector: Collector, tmp_path: Path):
    shard = tmp_path / "shard.jsonl"
    collector.collect(PROBLEMS[:2], STRATEGY, shard)
    seen: list[Progress] = []
    collector.collect(PROBLEMS, STRATEGY, shard, on_progress=seen.append)
    assert [(progress.num_done, progress.num_total) for progress in seen] == [(12, 15), (15, 15)]
    assert seen[-1].num_tokens == sum(trace.gen_len for trace in rows(shard)[6:])


def test_another_seed_says_something_else(collector: Collector, wanted: list[Trace], tmp_path: Path):
    shard = tmp_path / "shard.jsonl"
    replace(collector, seed=12).collect(PROBLEMS, STRATEGY, shard)
    assert sum(one.output_ids == other.output_ids for one, other in zip(rows(shard), wanted, strict=True)) <= 1


def test_changed_run_of_the_same_name_is_refused(collector: Collector, tmp_path: Path):
    shard = tmp_path / "shard.jsonl"
    collector.collect(PROBLEMS[:1], STRATEGY, shard)
    before = shard.read_bytes()
    retrained = replace(collector, weights_hash="another")
    with pytest.raises(ValueError, match=r"changed: weights_hash .* became 'another'\. Give the new run another name"):
        retrained.collect(PROBLEMS, STRATEGY, shard)
    assert shard.read_bytes() == before


@pytest.mark.parametrize(
    ("problems", "max_gen_len", "message"),
    [
        (PROBLEMS, 1020, r"must fit the context of 1024 tokens; got 1026\. Use a limit of 1018 or less"),
        (
            [Problem(id="long", difficulty=0, prompt_ids=(16,) * 1030)],
            5,
            r"must fit the context of 1024 tokens; got 1035\. The prompt alone",
        ),
        ([*PROBLEMS, Problem(id="x", difficulty=0, prompt_ids=(16,))], 5, r"share one prompt length; got \[1, 6\]"),
        ([], 5, "at least one problem"),
    ],
)
def test_what_cannot_be_sampled_leaves_no_file(
    problems: list[Problem], max_gen_len: int, message: str, collector: Collector, tmp_path: Path
):
    with pytest.raises(ValueError, match=message):
        collector.collect(problems, LongCoT(max_gen_len=max_gen_len), tmp_path / "shard.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_bad_settings_are_refused(collector: Collector, tmp_path: Path):
    with pytest.raises(ValueError, match="batch_problems must be at least 1; got 0"):
        replace(collector, batch_problems=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot open a trace shard for writing"):
        collector.collect(PROBLEMS, STRATEGY, tmp_path / "file" / "shard.jsonl")


def test_sparse_runs_have_names_of_their_own(collector: Collector):
    assert replace(collector, attention=BlockTopK(page_len=4, num_pages=2)).run == (
        "first-word/Kinetics-Mini-0.1M/block_topk:4x2/seed11"
    )
