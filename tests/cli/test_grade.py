"""`kinetics grade` and `kinetics tasks`: scores follow the grader, everything else stays as it was recorded."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from checkpoints_conversion import HfTokenizer
from kinetics_jax.tasks import AIME24, Pathfind, get_task, tokenised
from kinetics_jax.traces import Trace, TraceWriter, read_traces, write_traces
from kinetics_jax.zoo import RECORDED_TRACES

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_tokenizer() -> HfTokenizer:
    """A real tokenizer with a token a byte."""
    backend = Tokenizer(models.BPE(vocab={char: at for at, char in enumerate(BYTES)} | {"<end>": 256}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return HfTokenizer(backend=backend, eos_token_ids=(256,))


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    byte_tokenizer().backend.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text('{"eos_token_id": [256]}')
    return folder


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "aime.jsonl"
    rows = [{"id": 60 + at, "problem": f"{at} plus 40?", "answer": f"{40 + at:03d}"} for at in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def build(task: str, problem: str, trial: int, **changes: object) -> Trace:
    fields: dict = {
        "run": f"{task}/m",
        "model": "m",
        "weights_hash": "c0ffee",
        "task": task,
        "problem": problem,
        "difficulty": 0,
        "trial": trial,
        "seed": 0,
        "attention": "dense",
        "sampling": "greedy",
        "max_gen_len": 256,
        "prompt_ids": (1, 2),
        "output_ids": (3,),
        "finish_reason": "eos",
        "answer": None,
        "score": None,
        "solved_len": None,
        "time_s": 0.5,
    }
    return Trace(**{**fields, **changes})


def said(text: str) -> tuple[int, ...]:
    return (*byte_tokenizer().encode(text), 256)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Ungraded trials of two problems, one that holds no ids, and one of a task nobody knows."""
    folder = tmp_path / "traces"
    traces = [
        build("aime24", "60", 0, output_ids=said("<think>41?</think>It is \\boxed{40}.")),
        build("aime24", "60", 1, output_ids=said("<think>\\boxed{40}"), score=1.0, solved_len=3),
        build("aime24", "61", 0, output_ids=said("\\boxed{9^{9^{9^9}}}")),
        build("aime24", "61", 1, output_ids=None, gen_len=7),
    ]
    with TraceWriter(folder / "a.jsonl") as writer:
        writer.append(traces)
    write_traces([build("chess", "e4", 0)], folder / "b.parquet")
    return folder


def test_words_are_graded_anew_and_once(kinetics, shards: Path, tokenizer_folder: Path, problems: Path):
    before = read_traces(shards)
    command = ("grade", shards, "--task", "aime24", "--tokenizer", tokenizer_folder, "--data", problems, "--json")
    done = kinetics(*command, "--workers", 2)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert (report["num_rows"], report["num_graded"], report["num_without_ids"], report["num_changed"]) == (5, 3, 1, 3)
    assert {(row["before"], row["after"]): row["num_rows"] for row in report["verdicts"]} == {
        ("ungradable", "right"): 1,
        ("right", "wrong"): 1,
        ("ungradable", "ungradable"): 1,
    }
    assert report["reasons"] == {"no answer": 1, "too large to compute": 1}
    after = read_traces(shards)
    assert [trace.score for trace in after] == [1.0, 0.0, None, None, None]
    assert after[0].answer == "40"
    assert after[0].solved_len == len("<think>41?</think>It is \\boxed{40}")
    assert after[0].task_revision == get_task("aime24", data=problems).revision
    kept = ("answer", "score", "solved_len", "task_revision", "task_licence")
    blank = [replace(trace, **dict.fromkeys(kept)) for trace in after]
    assert blank == [replace(trace, **dict.fromkeys(kept)) for trace in before]
    stamps = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards.iterdir()}
    again = json.loads(kinetics(*command).out)
    assert again["num_changed"] == 0
    assert stamps == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards.iterdir()}


def test_recorded_trials_keep_their_scores(kinetics, tmp_path: Path):
    """Rows as the zoo ships them, of an older version; the embedded task finds its question in the prompt."""
    table = pq.read_table(RECORDED_TRACES / "Kinetics-Mini-7M.parquet").take(list(range(0, 3200, 40)))
    pq.write_table(table, tmp_path / "a.parquet")
    traces = read_traces(tmp_path)
    assert {trace.score for trace in traces} == {0.0, 1.0}
    done = kinetics("grade", tmp_path)
    assert done.code == 0, done.err
    assert "80 rows written anew" in done.out
    task = Pathfind()
    graded = [replace(trace, task_revision=task.revision, task_licence=task.licence) for trace in traces]
    assert read_traces(tmp_path) == graded
    assert "nothing changed" in kinetics("grade", tmp_path).out


def test_what_cannot_be_graded_is_told(kinetics, shards: Path, tokenizer_folder: Path, problems: Path):
    for arguments, sentence in [
        (["--data", problems], "--data belongs to one task"),
        (["--task", "pathfind"], "no traces to grade of task 'pathfind': got traces of none"),
        ([], "give --tokenizer, the folder of m that has tokenizer.json"),
        (["--model", "n", "--tokenizer", tokenizer_folder], "no traces to grade"),
    ]:
        done = kinetics("grade", shards, *arguments)
        assert done.code == 2
        assert sentence in done.err
    rows = problems.read_text().splitlines()
    problems.write_text(rows[0] + "\n")
    before = (shards / "a.jsonl").read_bytes()
    done = kinetics("grade", shards, "--task", "aime24", "--tokenizer", tokenizer_folder, "--data", problems)
    assert done.code == 2
    assert "task aime24 has no problem 61; give the data that the traces were sampled from" in done.err
    assert (shards / "a.jsonl").read_bytes() == before
    with TraceWriter(shards / "c.jsonl") as writer:
        writer.append([build("aime24", "60", 0, run="other", model="n")])
    done = kinetics("grade", shards, "--task", "aime24", "--tokenizer", tokenizer_folder)
    assert "traces of aime24 are from m, n, and one tokenizer reads one model" in done.err


def test_token_ids_are_decoded_by_the_real_tokenizer():
    """The protocol that `tokenised` asks for is the one that the tokenizer of a checkpoint has."""
    task = tokenised(AIME24, byte_tokenizer())
    assert task.stop_ids == (256,)


def test_tasks_are_listed(kinetics):
    listed = json.loads(kinetics("tasks", "--json").out)
    rows = {row["name"]: row for row in listed}
    assert rows["aime25"]["num_problems"] == 30
    assert rows["aime25"]["offline"] == "--data FILE"
    assert rows["pathfind"] == {
        "name": "pathfind",
        "num_problems": None,
        "max_gen_len": 256,
        "asked_in": "tokens",
        "licence": "Apache-2.0",
        "revision": "1",
        "offline": "nothing",
    }
    shown = kinetics("tasks").out
    assert "gym-countdown" in shown
    assert "endless" in shown
