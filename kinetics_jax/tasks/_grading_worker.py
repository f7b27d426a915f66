"""The process in which answers are parsed and compared, so that a hostile one hangs or crashes nothing else.

Run as a script by `_workers.py`; imports nothing of this package. A request is a line of JSON on standard input, an
answer a line on standard output. Every request gets a budget of processor time, after which the kernel kills the
process: no Python code has to be interrupted for that.
"""

import contextlib
import importlib
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

MAX_MEMORY_BYTES = 4 << 30
_COUNTDOWN = re.compile(r"[0-9+\-*/() .]+")
"""All that a countdown answer may hold: its verifier hands it to an evaluator of Python expressions."""


@lru_cache(maxsize=256)
def _parse(text: str) -> Any:
    """Return what math-verify makes of an expression, None if nothing."""
    math_verify = importlib.import_module("math_verify")
    # Units are ours to leave out: its own rule takes the "ab" of "2ab" for one.
    rules = math_verify.LatexNormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
    )
    found = math_verify.parse(
        f"\\boxed{{{text}}}",
        extraction_config=[math_verify.LatexExtractionConfig(boxed_match_priority=0, normalization_config=rules)],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return found[0] if found else None


def compare(request: dict[str, Any]) -> dict[str, Any]:
    """Compare an answer with the reference by math-verify."""
    reference, answer = _parse(request["reference"]), _parse(request["answer"])
    if reference is None:
        return {"score": None, "reason": "the reference cannot be parsed"}
    if answer is None:
        return {"score": None, "reason": "the answer cannot be parsed"}
    verify = importlib.import_module("math_verify").verify
    is_right = verify(reference, answer, timeout_seconds=None, allow_set_relation_comp=True)
    return {"score": float(is_right), "reason": ""}


@lru_cache(maxsize=32)
def _gym(family: str, seed: int) -> Any:
    return importlib.import_module("reasoning_gym").create_dataset(family, seed=seed, size=1 << 20)


def pose(request: dict[str, Any]) -> dict[str, Any]:
    """Return questions of a reasoning-gym family."""
    family = _gym(request["family"], request["seed"])
    entries = [family[index] for index in range(request["start"], request["stop"])]
    return {"problems": [{"question": entry["question"], "answer": str(entry["answer"])} for entry in entries]}


def verify_gym(request: dict[str, Any]) -> dict[str, Any]:
    """Judge an answer by its family's own verifier; partial credit is none, and an exception no verdict."""
    answer = request["answer"].strip()
    if request["family"] == "countdown" and ("**" in answer or not _COUNTDOWN.fullmatch(answer)):
        return {"score": 0.0, "reason": "no arithmetic expression"}
    family = _gym(request["family"], request["seed"])
    entry = family[request["index"]]
    try:
        credit = family.score_answer(answer, entry)
    except Exception as error:
        return {"score": None, "reason": f"the verifier raised {type(error).__name__}"}
    return {"score": float(credit == 1.0), "reason": ""}


HANDLERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "compare": compare,
    "pose": pose,
    "verify_gym": verify_gym,
}


def _limit() -> None:
    """Take from this process what no grading needs: much memory, files to write, core dumps."""
    try:
        import resource
    except ImportError:  # not POSIX: the caller's limit on wall time is all there is
        return
    for kind, limit in ((resource.RLIMIT_AS, MAX_MEMORY_BYTES), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(kind)
        with contextlib.suppress(ValueError, OSError):  # macOS knows the limit on memory and refuses to set it
            resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _arm(cpu_s: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, cpu_s)  # SIGPROF, whose default is to kill


def _load(module: str) -> str:
    """Import the library that requests of this process will need; return what went wrong."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return str(error)
    return ""


def main(module: str) -> None:
    """Answer requests until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no reply
    logging.disable(logging.CRITICAL)
    problem = _load(module)
    _limit()
    print(json.dumps({"missing": problem}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        _arm(request["cpu_s"])
        try:
            reply = HANDLERS[request["kind"]](request)
        except (RecursionError, MemoryError) as error:
            reply = {"score": None, "reason": f"too large to grade ({type(error).__name__})"}
        _arm(0.0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
