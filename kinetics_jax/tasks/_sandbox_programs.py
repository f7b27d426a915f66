"""What a forked process of the sandbox does: run a program, answer calls of its function, or judge such answers.

Everything here runs after the limits are set and the system calls closed; the first two functions run the judged
program, the third runs the tests of a data set. Loaded inside the sandbox.
"""

import builtins
import os
import sys

from ._sandbox_values import EXIT_MEMORY, encode_value, read_value, write_bytes, write_value

TYPE_CHECKING = False  # as in `_sandbox_values.py`
if TYPE_CHECKING:
    from typing import Any
else:
    Any = object

_REASON_CHARS = 500
_MAX_CALL_BYTES = 1 << 30


def run_program(request: dict[str, Any], preloaded: dict[str, Any]) -> None:
    """Run the program; with "function", call that and leave its value in file 3."""
    function = request["function"]
    names = _fresh_module("solution" if function else "__main__", preloaded)
    _execute(request["program"], names, "program")
    if not function:
        return
    try:
        data = encode_value(_look_up(function, names)(*request["args"]))
    except MemoryError:
        os._exit(EXIT_MEMORY)
    write_bytes(3, data)
    os._exit(0)


def answer_calls(request: dict[str, Any]) -> None:
    """Run the program, then call its function with what file 3 brings and answer on file 4."""
    names = _fresh_module("solution", {})
    for source in request["programs"]:
        _execute(source, names, "program")
    function = _look_up(request["function"], names)
    while True:
        try:
            args, named = read_value(3, max_bytes=_MAX_CALL_BYTES)
        except EOFError:
            return
        try:
            answer = ("value", function(*args, **named))
        except MemoryError:
            os._exit(EXIT_MEMORY)
        except BaseException as error:  # whatever it raises is its answer, SystemExit too
            answer = ("raised", type(error).__name__)
        write_value(4, answer)


def judge_calls(text: dict[str, Any], max_bytes: int) -> None:
    """Run the tests against a stand-in for the function, which asks the program; file 5 gets the verdict."""
    sys.set_int_max_str_digits(0)

    def candidate(*args: Any, **named: Any) -> Any:
        try:
            write_value(4, (args, named))
            answer = read_value(3, max_bytes=max_bytes)
        except (EOFError, BrokenPipeError):
            return _leave_verdict("gone", "the program ended before it answered")
        except (ValueError, TypeError) as error:
            return _leave_verdict("wrong", str(error))
        # Written by the program: only its value goes on, never a word that could be a verdict.
        if type(answer) is tuple and len(answer) == 2 and answer[0] == "value":
            return answer[1]
        named_error = answer[1] if type(answer) is tuple and len(answer) == 2 else answer
        return _leave_verdict("raised", f"the program raised {named_error!s:.100}")

    import random

    names = _fresh_module("judge", {})
    for source in text["sources"]:
        _execute(source, names, "tests")
    names[text["function"]] = candidate  # some tests call it by its name
    random.seed(0)  # some tests draw their inputs: the same ones every time
    check = names[text["check"]]
    try:
        check(candidate)
    except AssertionError as error:
        _leave_verdict("wrong", str(error) or "an assertion does not hold")
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        _leave_verdict("wrong", f"{type(error).__name__}: {error}")  # the tests could not work with an answer
    _leave_verdict("pass", "")


def _leave_verdict(verdict: str, reason: str) -> None:
    """Report and end this process."""
    write_bytes(5, encode_value((verdict, reason[:_REASON_CHARS])))
    os._exit(0)


def _fresh_module(name: str, preloaded: dict[str, Any]) -> dict[str, Any]:
    """Make the module that a program runs in, and take this package out of its sight."""
    builtins.exit = builtins.quit = sys.exit  # as every program expects; `site` makes them, which is not loaded
    module = type(sys)(name)
    module.__dict__.update(preloaded | {"__name__": name})
    for loaded in [key for key in sys.modules if key.partition(".")[0] == "kinetics_jax"]:
        del sys.modules[loaded]
    sys.modules[name] = module
    return module.__dict__


def _execute(source: str, names: dict[str, Any], what: str) -> None:
    try:
        exec(compile(source, f"<{what}>", "exec", dont_inherit=True), names)
    except MemoryError:
        os._exit(EXIT_MEMORY)


def _look_up(path: str, names: dict[str, Any]) -> Any:
    """Find "function", or "Class.method" of a new instance."""
    first, _, method = path.partition(".")
    return getattr(names[first](), method) if method else names[first]
