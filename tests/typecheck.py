"""Types checked by beartype, compiled when first needed and once for all closures of one definition.

At every `def` that runs, a closure's too, jaxtyping hands over two empty functions, generated from the signature.
beartype takes a millisecond to compile the checks of each: most functions are never called by one worker, and those of
equal signatures are equal.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

from beartype import beartype

Function = Callable[..., Any]

_CHECKED: dict[Any, Function] = {}


def check_types(function: Function) -> Function:
    """Return the function with its arguments and its result checked."""
    # A function with a body of its own has a file.
    if not isinstance(function, FunctionType) or function.__code__.co_filename != "<string>":
        return beartype(function)
    checked = None

    def check_and_call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if checked is None:
            checked = _compiled(function)
        return checked(*args, **kwargs)

    return check_and_call


def _compiled(function: FunctionType) -> Function:
    code = function.__code__
    parameters = code.co_varnames, code.co_posonlyargcount, code.co_argcount, code.co_kwonlyargcount, code.co_flags
    key = function.__module__, function.__qualname__, parameters, tuple(function.__annotations__.items())
    if key not in _CHECKED:
        _CHECKED[key] = beartype(function)
    return _CHECKED[key]
