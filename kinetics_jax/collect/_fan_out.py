"""Independent jobs over many machines with Ray: shards of one collection, or many (model, attention) pairs.

A job does all of its work or, redone, the rest of it: the shard of traces is the record. So a lost worker's job is
simply given to another, as often as it takes, and running everything twice changes nothing.
"""

import importlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

_Result = TypeVar("_Result")


def fan_out(
    jobs: Sequence[Callable[[], _Result]], *, num_workers: int, num_cpus: int | float = 1, num_gpus: int | float = 0
) -> list[_Result]:
    """Run jobs on the machines of a Ray cluster, `num_workers` at a time, and return what they returned, in order.

    A job whose worker is lost (preempted, out of memory) is redone without limit. One that raises is not: the others
    are finished first, and then one error names all that raised.

    Args:
        jobs: Functions without arguments that can be pickled, `functools.partial` of a module's function say. Each
            must be idempotent and write to a folder that every machine sees.
        num_workers: Jobs at a time.
        num_cpus: CPU cores that Ray sets aside for a job.
        num_gpus: GPUs that Ray sets aside for a job; it hides the others from it.

    Returns:
        The jobs' results.

    Raises:
        ImportError: If Ray is not installed.
        ValueError: If `num_workers` is below one.
        RuntimeError: If jobs raised, with their numbers and what the first one said.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1; got {num_workers}")
    ray = _import_ray()
    if not ray.is_initialized():
        ray.init(log_to_driver=False)  # joins the cluster that RAY_ADDRESS names, else makes one of this machine
    run = ray.remote(max_retries=-1, num_cpus=num_cpus, num_gpus=num_gpus)(_run)
    waiting, running = deque(enumerate(jobs)), {}
    results: dict[int, _Result] = {}
    errors: dict[int, str] = {}
    while waiting or running:
        while waiting and len(running) < num_workers:
            number, job = waiting.popleft()
            running[run.remote(job)] = number
        for ended in ray.wait(list(running), num_returns=1)[0]:
            number = running.pop(ended)
            try:
                results[number] = ray.get(ended)
            except ray.exceptions.RayTaskError as error:  # the job's own; a lost worker's is redone by Ray
                errors[number] = f"{type(error.cause).__name__}: {error.cause}"
    if errors:
        first = min(errors)
        raise RuntimeError(
            f"{len(errors)} of {len(jobs)} jobs raised ({', '.join(map(str, sorted(errors)))}); job {first} said: "
            f"{errors[first]}. The others are done; once that is mended, run the same jobs again."
        )
    return [results[number] for number in range(len(jobs))]


def _run(job: Callable[[], _Result]) -> _Result:
    return job()


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ImportError("fanning out needs Ray: pip install 'kinetics-jax[ray]'") from error
