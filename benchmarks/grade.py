"""How long does grading stored traces take? Makes the traces, times `kinetics grade` on them, prints the seconds.

`python benchmarks/grade.py [--rows N] [--tokens N] [--workers N] [--out out/benchmarks/grade.json]`

The traces are those of a study of mathematics: problems x 32 trials, half of the problems with a number for an answer
and half with an expression that only math-verify can compare; a trial gives one of five answers to its problem, behind
a thought of `--tokens` tokens on average. They lie in one Parquet file, with the token ids of a byte-pair tokenizer
trained on the thoughts. Timed is the whole command, Python's start included: reading, decoding, finding the answer and
its token, comparing, and writing the file anew. A second grading, which changes nothing, is timed beside it. The target
is 10 minutes for 100,000 traces on 2 cores. On a busy machine the processor time tells more than the seconds.
"""

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tokenizers
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from tokenizers import decoders, models, pre_tokenizers, trainers

from kinetics_jax.traces import Trace, write_traces

NUM_TRIALS = 32
TARGET_ROWS, TARGET_S = 100_000, 600.0
THOUGHT = (
    "so wait we need the sum of all integers such that each term divides let me check again first factor then "
    "consider modulo seven therefore x plus y equals two times the product hence this case fails and we try another"
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One grading of all traces.

    Attributes:
        what: Which.
        num_rows: Traces graded.
        num_changed: Traces of which something changed.
        seconds: How long it took.
        cpu_s: Processor time of the command and its workers [s]: what would remain of a busy machine's seconds.
    """

    what: str
    num_rows: int
    num_changed: int
    seconds: float
    cpu_s: float


def answers(rng: random.Random, problem: int) -> tuple[str, list[str]]:
    """Return the reference of a problem and five answers to it, two of them right."""
    a, b, c = rng.randint(2, 60), rng.randint(2, 60), rng.randint(2, 9)
    if problem % 2 == 0:
        return str(a * b), [str(a * b), f"0{a * b}", str(a + b), str(a * b + 1), f"{a}/{b}"]
    root = f"{a}+{b}\\sqrt{{{c}}}"
    kinds = (
        (root, [f"\\sqrt{{{c}}}\\cdot {b}+{a}", root, f"{a}-{b}\\sqrt{{{c}}}", f"{b}+{a}\\sqrt{{{c}}}", str(a)]),
        (f"x^2+{a}x+{b}", [f"x^2+{b}+{a}x", f"{b}+x(x+{a})", f"x^2+{b}x+{a}", f"(x+{a})^2", "x^2"]),
        (f"\\frac{{\\pi}}{{{a}}}", [f"\\pi/{a}", f"\\frac{{2\\pi}}{{{2 * a}}}", f"\\frac{{{a}}}{{\\pi}}", "\\pi", "3"]),
        (f"({a},{b}\\pi)", [f"({a},\\pi\\cdot {b})", f"({a}, {b}\\pi)", f"({b}\\pi,{a})", f"({a},{b})", str(b)]),
    )
    return kinds[problem // 2 % len(kinds)]


def write_study(folder: Path, num_rows: int, mean_len: int) -> None:
    """Write problems.jsonl, traces.parquet and the tokenizer of the traces into a folder."""
    rng = random.Random(0)
    thoughts = [" ".join(rng.choices(THOUGHT.split(), k=mean_len)) for _ in range(64)]
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    backend.train_from_iterator(thoughts, trainer)
    end = int(str(backend.token_to_id("<end>")))
    backend.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    rows = []
    with (folder / "problems.jsonl").open("w", encoding="utf-8") as file:
        for problem in range(-(-num_rows // NUM_TRIALS)):
            reference, said = answers(rng, problem)
            row = {"problem": f"Question {problem}?", "answer": reference, "level": 1, "unique_id": f"p{problem}"}
            file.write(json.dumps(row) + "\n")
            for trial in range(min(NUM_TRIALS, num_rows - problem * NUM_TRIALS)):
                thought = rng.choice(thoughts)[: rng.randint(1, 2 * 5 * mean_len)]
                text = f"<think>{thought}</think>So the answer is $\\boxed{{{rng.choice(said)}}}$."
                rows.append(
                    Trace(
                        run="math500/m/dense/seed0",
                        model="m",
                        weights_hash="c0ffee",
                        task="math500",
                        problem=f"p{problem}",
                        difficulty=1,
                        trial=trial,
                        seed=0,
                        attention="dense",
                        sampling="greedy",
                        max_gen_len=32_768,
                        prompt_ids=(1, 2, 3),
                        output_ids=(*backend.encode(text).ids, end),
                        finish_reason="eos",
                        answer=None,
                        score=None,
                        solved_len=None,
                        time_s=0.5,
                    )
                )
    write_traces(rows, folder / "traces.parquet")


def time_grading(what: str, folder: Path, workers: int) -> Row:
    """Run the command once."""
    source = [folder / "traces.parquet", "--task", "math500", "--data", folder / "problems.jsonl"]
    options = ["--tokenizer", folder, "--workers", str(workers), "--json"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "kinetics_jax.cli", "grade", *source, *options],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(done.stdout)
    return Row(
        what=what,
        num_rows=report["num_graded"],
        num_changed=report["num_changed"],
        seconds=seconds,
        cpu_s=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=TARGET_ROWS)
    parser.add_argument("--tokens", type=int, default=1024, help="mean length of a thought")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/grade.json"))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_study(folder, options.rows, options.tokens)
        size = (folder / "traces.parquet").stat().st_size
        rows = [time_grading(what, folder, options.workers) for what in ("first grading", "second")]
    table = Table(
        title=f"{options.rows:,} traces of {options.tokens:,} tokens on average", box=SIMPLE, title_justify="left"
    )
    for column in ("", "graded", "changed", "seconds", "CPU s", f"seconds for {TARGET_ROWS:,}"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        scaled = f"{row.seconds * TARGET_ROWS / row.num_rows:.0f}"
        table.add_row(
            row.what, f"{row.num_rows:,}", f"{row.num_changed:,}", f"{row.seconds:.1f}", f"{row.cpu_s:.1f}", scaled
        )
    Console().print(table)
    report = {
        "num_rows": options.rows,
        "mean_thought_len": options.tokens,
        "file_bytes": size,
        "workers": options.workers,
        "cores": os.cpu_count(),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_1min": os.getloadavg()[0],
        "target_s": TARGET_S,
        "rows": [asdict(row) for row in rows],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"load {report['load_1min']:.1f} on {report['cores']} cores; {options.out}")


if __name__ == "__main__":
    main()
