"""Collecting: every trial once, on disk for good, the same however often it was interrupted."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kinetics_jax.collect import Collector, Progress, Shard
from kinetics_jax.sampling import BudgetForcing, Repetition
from kinetics_jax.specs import BestOfN, BlockTopK, Dense, LongCoT, SamplingSpec
from kinetics_jax.tasks import Grade, Problem, Task
from kinetics_jax.traces import Trace, read_traces
from kinetics_jax.zoo import load_zoo_model

STRATEGY = BestOfN(num_trials=3, max_gen_len=5)


@dataclass(frozen=True, kw_only=True)
class FirstWord:
    """A task with prompts short enough to sample in no time: right is who starts with an even word."""

    name: str = "first-word"
    revision: str = "7"
    licence: str = "MIT"
    stop_ids: tuple[int, ...] = (20,)
    max_gen_len: int = 5

    def problems(self, num_problems: int | None = None, *, split: str = "held_out") -> list[Problem]:
        prompts = [tuple(range(16 + at, 22 + at)) for at in range(num_problems or 5)]
        return [Problem(id=f"{split}-{at}", difficulty=at, prompt_ids=prompt) for at, prompt in enumerate(prompts)]

    def grade(self, problem: Problem, output_ids: Sequence[int]) -> Grade:
        is_right = output_ids[0] % 2 == 0
        return Grade(answer=str(output_ids[0]), score=float(is_right), solved_len=1 if is_right else None)


TASK = FirstWord()
PROBLEMS = TASK.problems(5)
SAID = {
    "held_out-0": [(29, 61, 9, 2, 2), (17, 63, 1, 2, 2), (13, 2, 2, 2, 2)],
    "held_out-1": [(30, 20), (17, 58, 63, 45, 39), (63, 31, 22, 21, 53)],
    "held_out-2": [(57, 55, 43, 36, 28), (21, 22, 8, 2, 2), (21, 52, 0, 2, 2)],
    "held_out-3": [(54, 35, 40, 19, 57), (41, 20), (21, 22, 50, 45, 50)],
    "held_out-4": [(20,), (22, 21, 63, 49, 18), (22, 21, 49, 14, 8)],
}
"""What the collector said when it sampled by `generate`, a batch of problems at a time."""
LONG = Problem(id="long", difficulty=9, prompt_ids=(16,) * 1030)


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
        num_slots=4,
        num_steps=3,
        max_len=16,
        page_len=4,
        price=lambda prompt_len, gen_len: prompt_len + 100.0 * gen_len,
    )


@pytest.fixture(scope="module")
def wanted(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> list[Trace]:
    """The rows of a run that nothing interrupts."""
    shard = tmp_path_factory.mktemp("whole") / "shard.jsonl"
    assert collector.collect(PROBLEMS, STRATEGY, shard).num_written == 15
    return rows(shard)


def rows(shard: Path) -> list[Trace]:
    """All rows but for the time they took, in order of (problem, trial)."""
    return sorted((replace(trace, time_s=0.0) for trace in read_traces(shard)), key=lambda trace: trace.key)


class Interruption(Exception):
    pass


def twin(collector: Collector, **changes: Any) -> Collector:
    """Change what the engine knows nothing of; it stays compiled."""
    other = replace(collector, **changes)
    other._engines.update(collector._engines)
    return other


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
        assert trace.finish_reason == ("eos" if trace.output_ids[-1] in TASK.stop_ids else "length")
        assert trace.finish_reason == "eos" or trace.gen_len == 5
        assert trace.score == float(trace.output_ids[0] % 2 == 0)
    assert isinstance(TASK, Task)
    assert len({trace.output_ids for trace in wanted}) == len(wanted)


def test_the_engine_says_what_generate_said(wanted: list[Trace]):
    assert {trace.key[1:]: trace.output_ids for trace in wanted} == {
        (problem, trial): said for problem, trials in SAID.items() for trial, said in enumerate(trials)
    }


def test_interrupted_and_resumed_equals_uninterrupted(collector: Collector, wanted: list[Trace], tmp_path: Path):
    shard = tmp_path / "new folder" / "shard.jsonl"
    with pytest.raises(Interruption):
        collector.collect(PROBLEMS, STRATEGY, shard, on_progress=stop_after(5))
    num_there = len(rows(shard))
    assert 5 <= num_there < 15
    report = collector.collect(PROBLEMS, STRATEGY, shard)
    assert (report.num_there, report.num_written, report.num_missing) == (num_there, 15 - num_there, 0)
    assert rows(shard) == wanted


def test_torn_line_is_sampled_again(collector: Collector, wanted: list[Trace], tmp_path: Path):
    shard = tmp_path / "shard.jsonl"
    collector.collect(PROBLEMS, STRATEGY, shard)
    shard.write_bytes(shard.read_bytes()[:-40])
    assert collector.collect(PROBLEMS, STRATEGY, shard).num_written == 1
    assert rows(shard) == wanted


def test_complete_shard_is_left_alone(collector: Collector, tmp_path: Path):
    shard = tmp_path / "shard.jsonl"
    collector.collect(PROBLEMS, STRATEGY, shard)
    before = shard.read_bytes()
    report = collector.collect(PROBLEMS, STRATEGY, shard)
    assert (report.num_there, report.num_written, report.num_tokens) == (15, 0, 0)
    assert shard.read_bytes() == before


def test_more_trials_later_are_the_same_trials(collector: Collector, wanted: list[Trace], tmp_path: Path):
    shard = tmp_path / "shard.jsonl"
    collector.collect(PROBLEMS, LongCoT(max_gen_len=5), shard)
    assert collector.collect(PROBLEMS, STRATEGY, shard).num_written == 10
    assert rows(shard) == wanted


def test_order_and_company_of_the_problems_do_not_matter(collector: Collector, wanted: list[Trace], tmp_path: Path):
    shard = tmp_path / "shard.jsonl"
    collector.collect(PROBLEMS[3:4], STRATEGY, shard)
    collector.collect(PROBLEMS[::-1], STRATEGY, shard)
    assert rows(shard) == wanted


def test_shards_of_the_problems_make_the_whole(collector: Collector, wanted: list[Trace], tmp_path: Path):
    for index in range(3):
        shard = Shard(index=index, count=3)
        collector.collect(shard.of(PROBLEMS), STRATEGY, tmp_path / f"part-{shard}.jsonl")
    assert rows(tmp_path) == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"part-{index}of3.jsonl" for index in range(3)]


def test_progress_and_report_count_what_is_on_disk(collector: Collector, wanted: list[Trace], tmp_path: Path):
    shard = tmp_path / "shard.jsonl"
    collector.collect(PROBLEMS[:2], STRATEGY, shard)
    seen: list[Progress] = []

    def look(progress: Progress) -> None:
        assert progress.num_done == len(rows(shard))
        assert (progress.seconds_left is None) == (progress.num_written == 0)
        seen.append(progress)

    report = collector.collect(PROBLEMS, STRATEGY, shard, on_progress=look)
    new = [trace for trace in wanted if trace.difficulty >= 2]
    num_tokens, eflops = sum(trace.gen_len for trace in new), sum(6 + 100.0 * trace.gen_len for trace in new)
    last = seen[-1]
    assert (last.num_done, last.num_total, last.num_written, last.seconds_left) == (15, 15, 9, 0)
    assert (last.num_tokens, last.eflops) == (num_tokens, eflops)
    assert (report.num_there, report.num_written, report.num_tokens, report.eflops) == (6, 9, num_tokens, eflops)
    assert last.tokens_per_s == pytest.approx(num_tokens / last.seconds)
    assert [each.num_tokens for each in seen] == sorted(each.num_tokens for each in seen)


def test_estimate_counts_what_is_missing_and_writes_nothing(collector: Collector, tmp_path: Path):
    shard = tmp_path / "shard.jsonl"
    whole = collector.estimate(PROBLEMS, STRATEGY, shard)
    assert (whole.num_trials, whole.num_prompt_tokens, whole.max_tokens) == (15, 30, 75)
    assert whole.max_eflops == 15 * (6 + 500)
    assert list(tmp_path.iterdir()) == []
    collector.collect(PROBLEMS[:2], STRATEGY, shard)
    rest = collector.estimate([*PROBLEMS, LONG], STRATEGY, shard)
    assert (rest.num_total, rest.num_there, rest.num_trials, rest.max_tokens) == (18, 6, 9, 45)
    assert list(rest.failed) == ["long"]


def test_prompts_of_any_length_go_together(collector: Collector, wanted: list[Trace], tmp_path: Path):
    shard = tmp_path / "shard.jsonl"
    short = Problem(id="short", difficulty=9, prompt_ids=(16,))
    assert collector.collect([short, *PROBLEMS], STRATEGY, shard).num_written == 18
    assert [trace for trace in rows(shard) if trace.problem != "short"] == wanted


def test_a_problem_that_does_not_fit_is_reported_and_the_others_go_on(
    collector: Collector, wanted: list[Trace], tmp_path: Path
):
    shard = tmp_path / "shard.jsonl"
    foreign = Problem(id="foreign", difficulty=9, prompt_ids=())
    report = collector.collect([LONG, *PROBLEMS, foreign], STRATEGY, shard)
    assert (report.num_total, report.num_written, report.num_missing) == (21, 15, 6)
    assert "must fit the context of 16 tokens; got 1035. The prompt alone is too long" in report.failed["long"]
    assert report.failed["foreign"] == "problem foreign has an empty prompt"
    assert rows(shard) == wanted


def test_an_answer_that_cannot_be_graded_is_kept_and_reported(
    collector: Collector, wanted: list[Trace], tmp_path: Path
):
    @dataclass(frozen=True, kw_only=True)
    class Picky(FirstWord):
        def grade(self, problem: Problem, output_ids: Sequence[int]) -> Grade:
            if problem.id == "held_out-1":
                raise ValueError("its tests are broken")
            return super().grade(problem, output_ids)

    shard = tmp_path / "shard.jsonl"
    report = twin(collector, task=Picky()).collect(PROBLEMS, STRATEGY, shard)
    (said,) = report.failed.values()
    assert said.endswith("could not be graded: its tests are broken")
    blank = {"answer": None, "score": None, "solved_len": None}
    assert rows(shard) == [replace(trace, **blank) if trace.difficulty == 1 else trace for trace in wanted]


def test_slow_graders_work_side_by_side_while_sampling_goes_on(
    collector: Collector, wanted: list[Trace], tmp_path: Path
):
    """Every grade waits until three are under way, which would never be if one waited for another."""
    together = threading.Barrier(3, timeout=60)

    @dataclass(frozen=True, kw_only=True)
    class Slow(FirstWord):
        def grade(self, problem: Problem, output_ids: Sequence[int]) -> Grade:
            together.wait()
            return super().grade(problem, output_ids)

    shard = tmp_path / "shard.jsonl"
    twin(collector, task=Slow(), num_graders=3).collect(PROBLEMS, STRATEGY, shard)
    assert rows(shard) == wanted


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(collector: Collector, wanted: list[Trace], tmp_path: Path):
    def press(progress: Progress) -> None:
        if progress.num_tokens > 20:
            raise KeyboardInterrupt

    shard = tmp_path / "shard.jsonl"
    with pytest.raises(KeyboardInterrupt, match=r"of 15 trials are in .*shard\.jsonl; the same call goes on") as stop:
        collector.collect(PROBLEMS, STRATEGY, shard, on_progress=press)
    assert str(stop.value).startswith(f"{len(rows(shard))} of 15")
    assert len(rows(shard)) >= 4
    collector.collect(PROBLEMS, STRATEGY, shard)
    assert rows(shard) == wanted


def test_loops_and_thoughts_are_ended_and_the_run_says_so(collector: Collector, tmp_path: Path):
    shard = tmp_path / "shard.jsonl"
    watchful = replace(collector, repetition=Repetition(window_len=2, block_len=1, num_repeats=2))
    assert watchful.run == "first-word/Kinetics-Mini-0.1M/dense/seed11/repetition2x1x2"
    watchful.collect(PROBLEMS[:1], STRATEGY, shard)
    traces = rows(shard)
    assert [(trace.output_ids, trace.finish_reason) for trace in traces] == [
        ((29, 61, 9, 2, 2), "repetition"),
        ((17, 63, 1, 2, 2), "repetition"),
        ((13, 2, 2), "repetition"),
    ]
    closing = BudgetForcing(think_len=2, closing_ids=(9, 7), end_think_id=7, answer_len=1)
    assert replace(collector, closing=closing, time_s=1.5).run.endswith("/dense/seed11/think2+1/time1.5")


def test_another_seed_says_something_else(collector: Collector, wanted: list[Trace], tmp_path: Path):
    shard = tmp_path / "shard.jsonl"
    twin(collector, seed=12).collect(PROBLEMS, STRATEGY, shard)
    assert sum(one.output_ids == other.output_ids for one, other in zip(rows(shard), wanted, strict=True)) <= 1


def test_changed_run_of_the_same_name_is_refused(collector: Collector, tmp_path: Path):
    shard = tmp_path / "shard.jsonl"
    collector.collect(PROBLEMS[:1], STRATEGY, shard)
    before = shard.read_bytes()
    retrained = twin(collector, weights_hash="another")
    with pytest.raises(ValueError, match=r"changed: weights_hash .* became 'another'\. Give the new run another name"):
        retrained.collect(PROBLEMS, STRATEGY, shard)
    assert shard.read_bytes() == before


@pytest.mark.parametrize(
    ("problems", "max_gen_len", "message"),
    [
        (PROBLEMS, 1020, r"must fit the context of 1024 tokens; got 1026\. Use a limit of 1018 or less"),
        ([LONG], 5, r"must fit the context of 1024 tokens; got 1035\. The prompt alone"),
        ([], 5, "at least one problem"),
        ([PROBLEMS[0], PROBLEMS[0]], 5, "got one id twice"),
    ],
)
def test_what_cannot_be_sampled_leaves_no_file(
    problems: list[Problem], max_gen_len: int, message: str, collector: Collector, tmp_path: Path
):
    whole = replace(collector, max_len=None)
    with pytest.raises(ValueError, match=message):
        whole.collect(problems, LongCoT(max_gen_len=max_gen_len), tmp_path / "shard.jsonl")
    with pytest.raises(ValueError, match=message):
        whole.estimate(problems, LongCoT(max_gen_len=max_gen_len), tmp_path / "shard.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_bad_settings_are_refused(collector: Collector, tmp_path: Path):
    with pytest.raises(ValueError, match="num_graders must be at least 1; got 0"):
        replace(collector, num_graders=0)
    with pytest.raises(ValueError, match=r"the pool must hold one sequence: 6 \+ 5 tokens .* Use num_pages="):
        replace(collector, num_pages=3).collect(PROBLEMS, STRATEGY, tmp_path / "shard.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot open a trace shard for writing"):
        collector.collect(PROBLEMS, STRATEGY, tmp_path / "file" / "shard.jsonl")


@pytest.mark.parametrize(("text", "message"), [("3", "written i/n"), ("3/3", "go from 0 to 2"), ("0/0", "got 0")])
def test_shards_that_do_not_exist_are_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        Shard.parse(text)


def test_sparse_runs_have_names_of_their_own(collector: Collector):
    assert replace(collector, attention=BlockTopK(page_len=4, num_pages=2)).run == (
        "first-word/Kinetics-Mini-0.1M/block_topk:4x2/seed11"
    )
