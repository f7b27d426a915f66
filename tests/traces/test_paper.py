"""The paper's released layout: what a file is, what a line says, and what is left out and told."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePath

import pytest

from kinetics_jax.traces import PaperImport, import_paper_traces, read_tables, write_traces
from kinetics_jax.traces._paper_names import attention_of, model_of, task_of
from kinetics_jax.traces._paper_rows import boxed_answer

SUMMARY = {"task": "aime24", "pass@1": 50.0, "total_example": 4, "pass@2": 100.0}
DENSE = "aime24/dense/aime24_qwen3-1-7b_dense.jsonl"
TOPK = "aime24/topk/aime24_qwen3-1-7b_local0_topk128.jsonl"


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def row(query: str = "1 + 1 ?", said: str = "it is \\boxed{2}", score: object = 100.0, **more: object) -> dict:
    return {"score": score, "prediction": [said], "choices": ["2"], "query": query, **more}


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path) -> Write:
    """Return a function that writes a released file: objects as JSON, texts and bytes as they are."""

    def write_file(name: str, *lines: object) -> Path:
        path = tmp_path / "released" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"\n".join(raw) + b"\n")
        return path

    return write_file


def whats(read: PaperImport) -> list[str]:
    return [str(issue) for issue in read.report.issues]


def test_a_released_folder_becomes_tables(write, tmp_path):
    lines = [
        row(said="a short one \\boxed{02}"),
        row(said="cut off before it could", score=0.0),
        row(query="2 + 3 ?", said="right by accident 5 5 5 5 5 5"),
        row(query="2 + 3 ?", said="\\boxed{5}", score=100.0),
    ]
    write(DENSE, SUMMARY, *lines)
    write(TOPK, SUMMARY, *reversed(lines))
    write("aime24/topk/aime24_qwen3-1-7b_local0_topk128_numTrials_tradeoff.csv", b"trial,coverage")
    read = import_paper_traces(tmp_path / "released", count_tokens=words, max_gen_len=6)
    assert read.report.issues == ()
    assert [(file.attention, file.num_rows, file.num_problems, file.max_trials) for file in read.report.files] == [
        ("dense", 4, 2, 2),
        ("topk:132,sinks=4,dense_layers=1", 4, 2, 2),
    ]
    file = read.report.files[0]
    assert (file.num_right, file.num_at_limit, file.num_right_without_answer, file.num_ungradable) == (3, 1, 1, 0)

    assert write_traces(read.traces, tmp_path / "aime24.parquet") == 8
    dense, sparse = read_tables(tmp_path / "aime24.parquet", answers=True)
    assert (dense.model, dense.task, dense.max_gen_len) == ("Qwen3-1.7B", "aime24", 6)
    assert dense.problems == sparse.problems  # questions have the same names in every file, whatever their order
    first = dense.problems.index(next(trace.problem for trace in read.traces if trace.answer == "2"))
    assert sorted(dense.gen_len[first]) == [4, 5]
    assert sorted(dense.solved_len[first]) == [4, float("inf")]
    assert sorted(dense.gen_len[1 - first]) == [1, 6]  # the longer one is cut to the limit
    assert dense.prompt_len[first] == 4
    assert dense.answer is not None
    assert sorted(dense.answer[first]) == [-1, 0]

    trace = read.traces[0]
    assert (trace.prompt_ids, trace.output_ids, trace.seed, trace.time_s) == (None, None, None, None)
    assert trace.run == "aime24/dense/aime24_qwen3-1-7b_dense"
    assert trace.sampling == "SamplingSpec(temperature=0.6, top_k=20, top_p=0.95, min_p=0.0)"
    assert {trace.finish_reason for trace in read.traces} == {"unknown", "length"}


def test_counts_in_the_lines_need_no_tokenizer(write, tmp_path):
    write(
        DENSE,
        row(prefix_length=90, token_length=1090),
        row(said="2", prompt_len=90, gen_len=70),
        {"query": "1 + 1 ?", "score": 0, "input_ids": [7] * 90, "output_tokens": [1, 2, 3]},
    )
    read = import_paper_traces(tmp_path / "released")
    assert read.report.issues == ()
    assert sorted((trace.prompt_len, trace.gen_len) for trace in read.traces) == [(90, 3), (90, 70), (90, 1000)]
    assert [trace.output_ids for trace in read.traces if trace.gen_len == 3] == [(1, 2, 3)]
    write(DENSE, row(gen_len=5))
    with pytest.raises(ValueError, match=r"dense.jsonl, line 1: has no token counts.*--tokenizer DIR"):
        import_paper_traces(tmp_path / "released")
    read = import_paper_traces(
        tmp_path / "released", count_tokens=words, count_prompt_tokens=lambda texts: [99] * len(texts)
    )
    assert (read.traces[0].prompt_len, read.traces[0].gen_len) == (99, 5)


def test_both_scales_of_scores_say_the_same(write, tmp_path):
    outcomes = []
    for top in (1.0, 100, True):
        lines = [row(said=f"try {i} \\boxed{{{i}}}", score=top if i % 2 else 0) for i in range(4)]
        write(DENSE, SUMMARY, *lines)
        read = import_paper_traces(tmp_path / "released", count_tokens=words)
        outcomes.append({trace.answer: trace.score for trace in read.traces})
    assert outcomes == [{"0": 0.0, "1": 1.0, "2": 0.0, "3": 1.0}] * 2 + [{"0": 0.0, "2": 0.0}]  # true is no number
    write(DENSE, row(score=None), row(said="b", score=0.0))
    read = import_paper_traces(tmp_path / "released", count_tokens=words)
    assert sorted(str(trace.score) for trace in read.traces) == ["0.0", "None"]
    assert read.report.files[0].num_ungradable == 1


def test_trials_are_numbered_whatever_the_order_in_the_file(write, tmp_path):
    """The release lists trials as they finished: its first trials are short ones."""
    lines = [row(said="word " * n, score=0) for n in range(1, 33)]
    tables = []
    for order in (lines, lines[::-1]):
        write(DENSE, *order)
        write_traces(import_paper_traces(tmp_path / "released", count_tokens=words).traces, tmp_path / "x.parquet")
        tables.append(read_tables(tmp_path / "x.parquet")[0].gen_len.tolist())
    assert tables[0] == tables[1]
    assert tables[0][0] != sorted(tables[0][0])


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"{", "not a line of JSON"),
        (b"\xff\xfe", "not a line of JSON"),
        (b"[1]", "wanted a JSON object"),
        ({"query": "?", "prediction": ["x"]}, "missing score"),
        ({"prediction": ["x"]}, "missing query and score"),
        ({"query": "?", "score": 0.0}, "missing prediction"),
        (row(score=float("nan")), "NaN is no valid value"),
        (b'{"query": "?", "prediction": ["x"], "score": 1e999}', "score must lie in 0..1 or in 0..100; got inf"),
        (row(score=-1), "score must lie in"),
        (row(score=50.0), "score must be 0 (wrong) or 100 (right) in this file; got 50"),
        (row(score="100"), "score must be a number"),
        (row(query=""), "query must be text"),
        (row(prediction=["a", "b"]), "prediction must hold one text"),
        (row(prediction=[3]), "prediction must be text"),
        (row(gen_len=-1), "gen_len must be a number of tokens"),
        (row(prefix_length=9, token_length=8), "token_length must hold the prompt's 9 tokens"),
        (row(output_ids=[1, 2.5]), "output_ids must be a list of token ids"),
        (row(output_ids=[1] * 9, prompt_len=2), "gen_len must be at most max_gen_len=8"),
    ],
)
def test_a_bad_line_is_left_out_and_told_with_file_and_line(write, tmp_path, line, what):
    path = write(DENSE, SUMMARY, row(), row(said="other words", score=0.0), line, row(said="the last", score=0.0))
    read = import_paper_traces(tmp_path / "released", count_tokens=words, max_gen_len=8)
    (issue,) = whats(read)
    assert issue.startswith(f"{path}, line 4: ")
    assert what in issue
    assert len(read.traces) == 3


@pytest.mark.parametrize(
    ("name", "lines", "what"),
    [
        ("aime24_qwen3-8b.jsonl", [row()], "neither the first line nor the file name tells the attention"),
        ("aime24/topk/aime24_qwen3-8b_local0.5.jsonl", [row()], "window_len must be at least 1"),
        ("aime24_mystery-9b_dense.jsonl", [row()], "tells the model and the task"),
        ("qwen3-8b_dense.jsonl", [row()], "tells the task"),
        (TOPK, [{**SUMMARY, "attn_local": 0, "attn_topk": 64}, row()], "attn_topk=64, the file name says attn_local=0"),
        (DENSE, [{**SUMMARY, "attn_topk": 64}, row()], "the first line says attn_topk=64, the file name says dense"),
        (
            DENSE,
            [{**SUMMARY, "model": "Qwen/Qwen3-8B"}, row()],
            "first line says Qwen3-8B, the file name says Qwen3-1.7B",
        ),
        (DENSE, [{**SUMMARY, "attn_local": "0"}, row()], "attn_local must be a whole number or null"),
        (
            DENSE,
            [{**SUMMARY, "quest_topk_blocks": 4}, row()],
            "quest_topk_blocks=4 is a method that has no attention spec",
        ),
        (DENSE, [{**SUMMARY, "gen_len": 0}, row()], "gen_len in the first line must be a positive whole number"),
        (DENSE, [SUMMARY], "holds no trial"),
        (DENSE, [b"PK\x03\x04 \xff", b"\x00\x01", b"\x02"], "holds no trial in the paper's layout: not a line of JSON"),
    ],
)
def test_a_file_that_cannot_be_told_is_left_out_in_one_sentence(write, tmp_path, name, lines, what):
    path = write(name, *lines)
    write("aime25/dense/aime25_qwen3-4b_dense.jsonl", row())
    read = import_paper_traces(tmp_path / "released", count_tokens=words)
    (issue,) = whats(read)
    assert issue.startswith(str(path))
    assert what in issue
    assert [(trace.task, trace.model) for trace in read.traces] == [("aime25", "Qwen3-4B")]


def test_a_first_trial_without_its_question_is_not_taken_for_the_summary(write, tmp_path):
    path = write(DENSE, {"choices": ["2"], "score": 100.0, "gen_len": 3}, row(said="longer than three words"))
    read = import_paper_traces(tmp_path / "released", count_tokens=words)
    assert whats(read) == [f"{path}, line 1: missing query"]
    assert [(trace.gen_len, trace.max_gen_len) for trace in read.traces] == [(4, 32_768)]


def test_what_files_do_not_tell_can_be_given(write, tmp_path):
    path = write("2025-05-01.jsonl", row())
    read = partial(import_paper_traces, count_tokens=words, model="Qwen3-8B", task="amc23", attention="local:64")
    (trace,) = read(path).traces
    assert (trace.model, trace.task, trace.attention, trace.run) == ("Qwen3-8B", "amc23", "local:64", "2025-05-01")
    write(TOPK, {**SUMMARY, "task": "aime25", "gen_len": 30_768}, row(said="other"))
    told = read(tmp_path / "released" / TOPK).traces[0]
    assert (told.model, told.task, told.max_gen_len) == ("Qwen3-1.7B", "aime25", 30_768)
    with pytest.raises(ValueError, match=r"max_gen_len must be at least 1; got 0"):
        import_paper_traces(path, count_tokens=words, max_gen_len=0)
    with pytest.raises(ValueError, match=r"unknown attention spec 'sparse'"):
        import_paper_traces(path, count_tokens=words, attention="sparse")


def test_the_same_file_twice_counts_once(write, tmp_path):
    write(DENSE, row(), row())
    twin = write(DENSE.replace(".jsonl", "_1.jsonl"), row(), row())
    more = write(DENSE.replace(".jsonl", "_2.jsonl"), row(said="something else", score=0.0))
    read = import_paper_traces(tmp_path / "released", count_tokens=words)
    assert whats(read) == [f"{twin}: has the same bytes as {tmp_path / 'released' / DENSE}: left out"]
    assert read.report.files[0].num_repeated == 1
    assert read.report.files[1].path == str(more)
    write_traces(read.traces, tmp_path / "x.parquet")
    assert read_tables(tmp_path / "x.parquet")[0].mask.sum() == 3  # files of one method are pooled


def test_folders_without_generations(tmp_path):
    with pytest.raises(ValueError, match=rf"no generations in {tmp_path}: wanted .jsonl files, found none"):
        import_paper_traces(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no generations at .*nowhere"):
        import_paper_traces(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "metadata", "exact", "paper"),
    [
        ("aime24_qwen3-8b_dense", {}, "dense", "dense"),
        ("dense/x", {}, "dense", "dense"),
        ("topk/x", {}, None, None),
        ("x_local0_topk32", {}, "topk:36,sinks=4,dense_layers=1", "topk:32"),
        ("x_local0_topk32_1", SUMMARY, "topk:36,sinks=4,dense_layers=1", "topk:32"),
        ("x_local128_topk128", {}, "topk:260,sinks=4,local=128,dense_layers=1", "topk:256,local=128"),
        ("x_local128", {}, "local:128,sinks=4,dense_layers=1", "local:128"),
        ("x_local0_block16_blocktopk64", {}, "block_topk:16x65,dense_layers=1", "block_topk:16x64"),
        ("x_local0_block128_blocktopk1", {}, "block_topk:128x2,dense_layers=1", "block_topk:128x1"),
        (
            "x_block16_block_topk64",
            {"attn_block_topk": 64, "attn_block_size": 16},
            "block_topk:16x65,dense_layers=1",
            "block_topk:16x64",
        ),
        ("x_l20_blktopk8_blk16", {}, "block_topk:16x11,local=3,dense_layers=1", "block_topk:16x10,local=2"),
        ("x", {"attn_local": 0, "attn_topk": 64}, "topk:68,sinks=4,dense_layers=1", "topk:64"),
        (
            "x_topk64",
            {"attn_local": 0, "attn_topk": 64, "attn_block_size": 16},
            "topk:68,sinks=4,dense_layers=1",
            "topk:64",
        ),
        (
            "x",
            {"attn_local": 0, "attn_block_topk": 8, "attn_block_size": 32},
            "block_topk:32x9,dense_layers=1",
            "block_topk:32x8",
        ),
        ("x", {"attn_local": None, "attn_topk": None, "attn_block_size": 16}, "dense", "dense"),
    ],
)
def test_attention_by_first_line_and_name(name, metadata, exact, paper):
    path = PurePath(f"{name}.jsonl")
    told = [attention_of(path, metadata, "exact"), attention_of(path, metadata, "paper")]
    assert [None if spec is None else str(spec) for spec in told] == [exact, paper]


@pytest.mark.parametrize(
    ("name", "metadata", "model", "task"),
    [
        (DENSE, {}, "Qwen3-1.7B", "aime24"),
        ("AIME25/dense/aime25_qwen3-0-6b_dense.jsonl", {}, "Qwen3-0.6B", "aime25"),
        ("AIME25/qwen3-14b_dense.jsonl", {}, "Qwen3-14B", "aime25"),
        ("Qwen3-8B/amc23_2025-05-01_10-00-00.jsonl", {"task": "amc23"}, "Qwen3-8B", "amc23"),
        ("math_deepseek-r1-distill-qwen-1-5b_dense.jsonl", {}, "DeepSeek-R1-Distill-Qwen-1.5B", "math"),
        ("x.jsonl", {"model": "Qwen/Qwen3-32B", "task": "gsm8k"}, "Qwen3-32B", "gsm8k"),
        ("aime24_qwen3-8b.jsonl", {"model": "checkpoints/7", "task": "AIME24"}, "Qwen3-8B", "aime24"),
        ("aime24_qwen3-80b_dense.jsonl", {}, None, None),
    ],
)
def test_model_and_task_by_first_line_and_name(name, metadata, model, task):
    path = PurePath(name)
    assert model_of(path, metadata) == model
    assert task_of(path, metadata, model) == task


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{204}. I hope it is correct", "204"),
        ("\\boxed{1} no, \\boxed{ \\frac{1}{2} }", "\\frac{1}{2}"),
        ("\\boxed{$33$}", "33"),
        ("\\boxed{000}", "0"),
        ("\\boxed{}", None),
        ("\\boxed{12", None),
        ("the answer is 12", None),
    ],
)
def test_boxed_answer(text, answer):
    assert boxed_answer(text) == answer
