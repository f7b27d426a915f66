"""The collector's promise under SIGKILL at any instant: what was told as done stays, nothing comes twice or changes."""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from kinetics_jax.traces import read_traces, verify_traces

# Forks one collecting process after another, each going on with the same shard. It says after every call of the engine
# how many trials are on disk, and is killed once it has said so a number of times drawn at random, some moments on; the
# last one may finish. JAX starts in the children only, and what the first of them compiles the others find on disk.
DRIVER = """
import os, random, select, signal, sys
import jax
from kinetics_jax.collect import Collector
from kinetics_jax.specs import BestOfN, Dense, SamplingSpec
from kinetics_jax.tasks import Grade, Problem
from kinetics_jax.zoo import load_zoo_model

shard, whole, cache, rounds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
jax.config.update("jax_compilation_cache_dir", cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
random.seed(7)

class Parity:
    name, revision, licence, stop_ids, max_gen_len = "parity", "1", "MIT", (20,), 4
    def problems(self, num_problems=None, *, split="held_out"):
        return [Problem(id=str(n), difficulty=n, prompt_ids=tuple(range(16, 20 + n % 5))) for n in range(15)]
    def grade(self, problem, output_ids):
        return Grade(answer=str(output_ids[-1]), score=float(output_ids[-1] % 2), solved_len=
                     len(output_ids) if output_ids[-1] % 2 else None)

def collect(pipe, paths):
    loaded = load_zoo_model("Kinetics-Mini-0.1M")
    collector = Collector(model=loaded.model, model_name="m", weights_hash="h", task=Parity(), attention=Dense(),
                          sampling=SamplingSpec(temperature=3.0), num_slots=4, num_steps=2, page_len=8)
    for path in paths:
        collector.collect(Parity().problems(), BestOfN(num_trials=4, max_gen_len=6), path,
                          on_progress=lambda progress: os.write(pipe, b"%d\\n" % progress.num_done))

for round in range(rounds):
    is_last = round == rounds - 1
    out, into = os.pipe()
    child = os.fork()
    if not child:
        os.close(out)
        collect(into, [shard, whole] if is_last else [shard])
        os._exit(0)
    os.close(into)
    said = b""
    if not is_last:
        num_lines = random.randrange(1, 16)
        while said.count(b"\\n") < num_lines:
            said += os.read(out, 8)
        select.select([], [], [], random.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
    while more := os.read(out, 1 << 16):
        said += more
    os.close(out)
    assert os.waitpid(child, 0)[1] == (0 if is_last else signal.SIGKILL)
    print(*map(bytes.decode, said.split()))
"""
NUM_TRIALS = 15 * 4


def test_a_collector_killed_many_times_ends_with_the_trials_of_an_uninterrupted_one(tmp_path: Path):
    shard, whole, rounds = tmp_path / "shard.jsonl", tmp_path / "whole.jsonl", 4
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER, shard, whole, tmp_path / "cache", str(rounds)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    acknowledged = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    assert len(acknowledged) == rounds
    assert acknowledged[-2][-1] < NUM_TRIALS  # the last kill came before the end, too
    for before, after in pairwise(acknowledged):
        assert after[0] >= before[-1], "an acknowledged trial was lost"
    assert not verify_traces(shard).issues

    def rows(path: Path) -> list:
        return sorted((replace(trace, time_s=0.0) for trace in read_traces(path)), key=lambda trace: trace.key)

    assert len(rows(shard)) == NUM_TRIALS
    assert rows(shard) == rows(whole)
