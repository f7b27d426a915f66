"""Decode steps timed by several processes: all compile at the same time, then one after another has the device.

Compiling a model takes a minute of one core, timing it takes seconds. Called by `kinetics bench decode`.
"""

import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, pairwise
from multiprocessing.connection import Connection
from typing import Any

from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from kinetics_jax.sampling import DecodeTimer, DecodeTiming, random_model
from kinetics_jax.specs import MODELS, parse_attention

from ._mesh import parse_mesh


@dataclass(frozen=True, kw_only=True)
class DecodeJob:
    """Name a batch to time: a model, an attention, a mesh such as "1x2" or none, and the sizes of `DecodeTimer`."""

    model: str
    attention: str
    context_len: int
    batch_size: int
    num_steps: int
    num_runs: int
    mesh: str | None = None

    def __str__(self) -> str:
        where = "" if self.mesh is None else f", mesh {self.mesh}"
        return f"{self.model} {self.attention}, {self.batch_size:,} x {self.context_len:,} tokens{where}"


Timed = tuple[DecodeJob, DecodeTiming | str]
"""A job with its time, or with what the device said when it failed: a lack of memory mostly."""


def time_jobs(jobs: Sequence[DecodeJob], num_processes: int = 1) -> Iterator[Timed]:
    """Yield what each job took, in their order; one that fails on the device does not end the others.

    Raises:
        ChildProcessError: After the last, if a process failed; it has told why on standard error.
    """
    if num_processes == 1:
        yield from _time(jobs, map(_timer, jobs))
        return
    workers: list[_Worker] = []
    try:
        for share in _shares(jobs, num_processes):
            workers.append(_Worker(share))
        for worker in workers:
            worker.receive()
        for worker in workers:
            worker.send_go()
            while (timed := worker.receive()) is not None:
                yield timed
            worker.process.join()  # the next one needs its memory
    finally:
        for worker in workers:
            worker.process.kill()
    num_failed = sum(worker.process.exitcode != 0 for worker in workers)
    if num_failed:
        raise ChildProcessError(f"{num_failed} of {len(workers)} processes failed, and their jobs are missing")


def _shares(jobs: Sequence[DecodeJob], num_shares: int) -> list[Sequence[DecodeJob]]:
    bounds = [len(jobs) * part // num_shares for part in range(num_shares + 1)]
    return [jobs[low:high] for low, high in pairwise(bounds) if low < high]


class _Worker:
    """A process that compiles, says so, waits for its turn, and sends what it times."""

    def __init__(self, share: Sequence[DecodeJob]):
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self.process = context.Process(target=_work, args=(share, there))
        asked = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for the parent, which ends them
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, asked)
        there.close()  # so that its end is the end of the connection

    def send_go(self) -> None:
        with suppress(BrokenPipeError):
            self._here.send(None)

    def receive(self) -> Any:
        """Return what the process sent, None once it has ended."""
        try:
            return self._here.recv()
        except EOFError:
            return None


def _work(share: Sequence[DecodeJob], there: Connection) -> None:
    try:
        timers = [_timer(job) for job in share]
    except ValueError as error:
        raise SystemExit(f"Error: {error}") from None
    there.send("compiled")
    there.recv()
    for timed in _time(share, timers):
        there.send(timed)


def _timer(job: DecodeJob) -> DecodeTimer:
    return DecodeTimer(
        MODELS[job.model],
        parse_attention(job.attention),
        context_len=job.context_len,
        batch_size=job.batch_size,
        num_steps=job.num_steps,
        mesh=_mesh_of(job.mesh),
    )


def _time(jobs: Iterable[DecodeJob], timers: Iterable[DecodeTimer]) -> Iterator[Timed]:
    for (name, mesh), pairs in groupby(zip(jobs, timers, strict=True), lambda pair: (pair[0].model, pair[0].mesh)):
        try:
            model = random_model(MODELS[name], mesh=_mesh_of(mesh))
        except JaxRuntimeError as error:
            yield from ((job, _first_line(error)) for job, _ in pairs)
            continue
        for job, timer in pairs:
            try:
                timed = timer.time(model, num_runs=job.num_runs)
            except JaxRuntimeError as error:
                timed = _first_line(error)
            yield job, timed
        del model


def _mesh_of(text: str | None) -> Mesh | None:
    return None if text is None else parse_mesh(text)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
