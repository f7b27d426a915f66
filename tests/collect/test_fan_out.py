"""Fanning out: every job once, `num_workers` at a time, redone where a worker is lost; against a Ray made of lists."""

import functools
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kinetics_jax.collect import Shard, fan_out


class RayTaskError(Exception):
    def __init__(self, cause: Exception):
        self.cause = cause


class LostWorker(BaseException):
    """What Ray sees and its caller does not: it runs the task again."""


class ListRay(ModuleType):
    """The five calls of Ray that are used; tasks run when they are waited for, the newest first."""

    exceptions = SimpleNamespace(RayTaskError=RayTaskError)

    def __init__(self):
        super().__init__("ray")
        self.options: dict[str, Any] = {}
        self.most_running = 0

    def is_initialized(self) -> bool:
        return True

    def remote(self, **options: Any) -> Any:
        self.options = options
        return lambda function: SimpleNamespace(remote=lambda *args: functools.partial(function, *args))

    def wait(self, tasks: list[Any], *, num_returns: int) -> tuple[list[Any], list[Any]]:
        self.most_running = max(self.most_running, len(tasks))
        return tasks[-num_returns:], tasks[:-num_returns]

    def get(self, task: Any) -> Any:
        while True:
            try:
                return task()
            except LostWorker:
                assert self.options["max_retries"] == -1
            except ValueError as error:
                raise RayTaskError(error) from error


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> ListRay:
    fake = ListRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def test_results_come_in_order_and_workers_are_not_exceeded(ray: ListRay):
    jobs = [functools.partial(pow, number, 2) for number in range(7)]
    assert fan_out(jobs, num_workers=3, num_gpus=1) == [0, 1, 4, 9, 16, 25, 36]
    assert ray.most_running == 3
    assert ray.options == {"max_retries": -1, "num_cpus": 1, "num_gpus": 1}
    assert fan_out([], num_workers=3) == []


def test_lost_workers_are_replaced_and_shards_come_out_whole(ray: ListRay):
    """A job does what is missing, dies on the way, and goes on: together the shards hold each problem once."""
    items, kept = list(range(20)), {index: [] for index in range(4)}

    def job(shard: Shard) -> int:
        mine = shard.of(items)
        for item in mine[len(kept[shard.index]) :]:
            kept[shard.index].append(item)
            if item % 3 == 0:
                raise LostWorker
        return len(mine)

    jobs = [functools.partial(job, Shard(index=index, count=4)) for index in range(4)]
    assert fan_out(jobs, num_workers=2) == [5, 5, 5, 5]
    assert sorted(item for values in kept.values() for item in values) == items
    before = {index: list(values) for index, values in kept.items()}
    assert fan_out(jobs, num_workers=2) == [5, 5, 5, 5]
    assert kept == before


def test_jobs_that_raise_are_named_after_the_others_are_done(ray: ListRay):
    done = []

    def job(number: int) -> None:
        if number in (1, 3):
            raise ValueError(f"no model {number}")
        done.append(number)

    with pytest.raises(RuntimeError, match=r"2 of 5 jobs raised \(1, 3\); job 1 said: ValueError: no model 1\."):
        fan_out([functools.partial(job, number) for number in range(5)], num_workers=2)
    assert sorted(done) == [0, 2, 4]


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'kinetics-jax\[ray\]'"):
        fan_out([], num_workers=1)
    with pytest.raises(ValueError, match="num_workers must be at least 1; got 0"):
        fan_out([], num_workers=0)
