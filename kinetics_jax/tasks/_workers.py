"""A few processes that answer requests and may be killed: what a grader of others' code runs in.

Called by the graders of mathematics and of reasoning-gym. A process that takes too long is killed and replaced; the
caller learns why it got no answer. Libraries' own timeouts need the main thread of the main process; these do not.
"""

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).with_name("_grading_worker.py")
_START_S = 120.0
"""A busy machine may take that long to import a library."""
_KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT")
"""Variables that Python itself may need; a worker gets no others."""


class NoAnswer(Exception):
    """Say why a worker gave none: "time limit" or "crashed"."""


class WorkerPool:
    """Keep worker processes for one library; as many as there are threads that ask, at most one a core.

    Args:
        module: The library that they import first.
        extra: The extra of this package that brings it.
    """

    def __init__(self, module: str, extra: str):
        self.module, self.extra = module, extra
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(os.cpu_count() or 1)
        self._owner = os.getpid()
        atexit.register(self.close)

    def ask(self, request: Mapping[str, Any], *, cpu_s: float, wall_s: float) -> dict[str, Any]:
        """Return a worker's reply to a request; may be called from several threads.

        Args:
            request: What to do, as JSON.
            cpu_s: Processor time it may take [s].
            wall_s: Wall time it may take [s], longer, for what waits without computing.

        Raises:
            NoAnswer: If the time was up or the worker died; the next request gets a new one.
            ImportError: If the library is missing; names the extra.
        """
        with self._slots:
            worker = self._take()
            try:
                reply = worker.ask({**request, "cpu_s": cpu_s}, wall_s)
            except BaseException:
                worker.kill()
                raise
            with self._lock:
                self._idle.append(worker)
        return reply

    def close(self) -> None:
        """End the idle workers; those of a process that this one was forked from are not its own."""
        with self._lock:
            idle, self._idle = self._idle, []
        if os.getpid() != self._owner:
            return
        for worker in idle:
            worker.kill()

    def _take(self) -> "_Worker":
        with self._lock:
            if os.getpid() != self._owner:  # after a fork the pipes are the parent's
                self._owner, self._idle = os.getpid(), []
            if self._idle:
                return self._idle.pop()
        worker = _Worker(self.module)
        try:
            missing = worker.read(_START_S)["missing"]
        except BaseException:
            worker.kill()
            raise
        if missing:
            worker.kill()
            raise ImportError(f"grading needs {self.module}: pip install 'kinetics-jax[{self.extra}]' ({missing})")
        return worker


class _Worker:
    """One process and the pipes to it."""

    def __init__(self, module: str):
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        # A fixed hash seed: the same answer meets the same order of sets, and so the same verdict, in every process.
        environment |= {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the caller
            bufsize=0,
        )
        self._unread = b""

    def ask(self, request: Mapping[str, Any], wall_s: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        data = memoryview(json.dumps(request).encode() + b"\n")
        try:
            while data:
                data = data[self._process.stdin.write(data) :]
        except BrokenPipeError as error:
            raise NoAnswer(self._how_it_died()) from error
        return self.read(wall_s)

    def read(self, wall_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + wall_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(deadline - time.monotonic(), 0.0)):
                    raise NoAnswer("time limit")
                data = os.read(self._process.stdout.fileno(), 1 << 16)
                if not data:
                    raise NoAnswer(self._how_it_died())
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _how_it_died(self) -> str:
        """Say whether the kernel took its time away: SIGPROF is 27 wherever there is one."""
        return "time limit" if self._process.wait() == -27 else "crashed"
