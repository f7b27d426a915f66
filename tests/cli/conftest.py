"""Run the command line in this process, the way the installed `kinetics` does."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from kinetics_jax.cli import main


class Finished(NamedTuple):
    code: int
    out: str
    err: str


Kinetics = Callable[..., Finished]


@pytest.fixture
def kinetics(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kinetics:
    """Return a function that runs `kinetics ARGS` and returns exit code, standard output and standard error."""

    def run(*args: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["kinetics", *map(str, args)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return run
