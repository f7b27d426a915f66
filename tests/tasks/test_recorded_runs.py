"""The run of a pretrained model on the page on tasks: its numbers are those of the stored traces, judged again."""

import re
from pathlib import Path

import pytest

from kinetics_jax.cli._sampling import price_of
from kinetics_jax.models import ModelFile
from kinetics_jax.specs import HARDWARE, parse_attention
from kinetics_jax.tasks import HumanEval, Judge
from kinetics_jax.tasks._humaneval import program_tests
from kinetics_jax.tasks._sandbox import Isolation
from kinetics_jax.traces import Trace, read_traces

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "runs" / "SmolLM2-135M-Instruct"
FILES = ("humaneval",)
ROW = re.compile(
    r"^\| `([\w-]+)` \| `(\S+)` \| (\d+) of (\d+) \| (\d+) of (\d+) \| (\d+) \| ([\d,]+) \| (\S+) \|$", re.M
)


@pytest.fixture(scope="module", params=FILES)
def rows(request: pytest.FixtureRequest) -> dict[str, list[Trace]]:
    """The traces of a task by attention."""
    traces = read_traces(FOLDER / f"{request.param}.parquet")
    return {
        text: [trace for trace in traces if trace.attention == text] for text in {each.attention for each in traces}
    }


def test_the_page_says_what_the_traces_say(rows: dict[str, list[Trace]]):
    (task,) = {trace.task for traces in rows.values() for trace in traces}
    said = {
        match[2]: match.groups()[2:]
        for match in (re.match(ROW, line) for line in (DOCS / "tasks.md").read_text(encoding="utf-8").splitlines())
        if match is not None and match[1] == task
    }
    spec = ModelFile.read(FOLDER).spec
    assert said.keys() == rows.keys()
    for attention, traces in rows.items():
        problems = {trace.problem for trace in traces}
        solved = {trace.problem for trace in traces if trace.score}
        num_trials = len(traces) // len(problems)
        price = price_of(spec, parse_attention(attention), HARDWARE["H100-SXM"], num_trials)
        assert said[attention] == (
            str(sum(trace.score == 1.0 for trace in traces)),
            str(len(traces)),
            str(len(solved)),
            str(len(problems)),
            str(sum(trace.finish_reason == "eos" for trace in traces)),
            f"{sum(trace.gen_len for trace in traces):,}",
            f"{sum(price(trace.prompt_len, trace.gen_len) for trace in traces):.2e}",
        )
        assert len(problems) >= 20
        assert num_trials >= 4
        assert {trace.model for trace in traces} == {spec.name}


def test_right_programs_of_the_run_pass_again_and_wrong_ones_do_not(isolation: Isolation):
    task = HumanEval(judge=Judge())
    problems = {problem.id: problem for problem in task.problems(32)}
    traces = [trace for trace in read_traces(FOLDER / "humaneval.parquet") if trace.answer]
    assert {trace.task_revision for trace in traces} == {task.revision}
    right = [trace for trace in traces if trace.score]
    assert right
    shown = [*right, *[trace for trace in traces if not trace.score][::20]]
    jobs = [program_tests(problems[trace.problem], trace.answer or "") for trace in shown]
    passed = [verdict.kind == "pass" for verdict in task.judge.judge_many(jobs)]
    assert passed == [trace.score == 1.0 for trace in shown]
