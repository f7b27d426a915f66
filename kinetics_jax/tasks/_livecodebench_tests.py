"""The tests of LiveCodeBench as they are published, read without trusting them.

Public tests are JSON. Hidden ones are JSON text, pickled, compressed and written in base64; a pickle is a program, so
it is never loaded: its instructions are listed, and only the few that spell out one text are accepted.
"""

import base64
import binascii
import json
import pickletools
import zlib
from typing import Any

from ._code_judge import CallTests, OutputTests, Tests

_MAX_BYTES = 1 << 30
_TEXT_CODES = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")
_SILENT_CODES = ("PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP")

_STARRED = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json", "typing", "builtins",
)  # fmt: skip
PRELOAD = "".join(
    [
        *(f"import {name}\n" for name in _STARRED),
        *(f"from {name} import *\n" for name in _STARRED),  # builtins last: math and operator have a pow of their own
        "sys.setrecursionlimit(50_000)\n",
    ]
)
"""What the released grader puts before every program: starter code says List and leaves its import to the site."""


def contest_tests(public: str, private: str, *, function: str) -> Tests:
    r"""Return the tests of a problem, public ones first.

    Args:
        public: Column `public_test_cases`.
        private: Column `private_test_cases`.
        function: What is called, "" for a whole program.

    Raises:
        ValueError: If they are malformed, of two kinds, or there is none.

    Example:
        >>> contest_tests('[{"input": "1\\n2", "output": "3", "testtype": "functional"}]', "[]", function="add")
        CallTests(function='add', pairs=(((1, 2), 3),), tolerance=0.0)
    """
    cases = [*_cases("public_test_cases", public), *_cases("private_test_cases", unpacked_text(private))]
    kinds = {case["testtype"] for case in cases}
    wanted = "functional" if function else "stdin"
    if kinds != {wanted}:
        raise ValueError(f"wanted tests of the kind {wanted!r}; got {sorted(kinds) or 'no test'}")
    pairs = [(case["input"], case["output"]) for case in cases]
    if not function:
        return OutputTests(pairs=tuple(pairs))
    return CallTests(
        function=function,
        pairs=tuple((tuple(_json(line) for line in given.split("\n")), _json(wanted)) for given, wanted in pairs),
    )


def unpacked_text(private: str) -> str:
    """Return the JSON of hidden tests, which is either there as it is or pickled, compressed and in base64.

    Raises:
        ValueError: If it is neither.
    """
    if private.lstrip().startswith("["):
        return private
    try:
        packed = base64.b64decode(private, validate=True)
        unpacker = zlib.decompressobj()
        pickled = unpacker.decompress(packed, _MAX_BYTES)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(f"private_test_cases: neither JSON nor compressed base64 ({error})") from error
    if not unpacker.eof:
        raise ValueError(f"private_test_cases: cut short, or more than {_MAX_BYTES} bytes")
    return pickled_text(pickled)


def pickled_text(data: bytes) -> str:
    """Return the text in a pickle of one text, without loading it.

    Raises:
        ValueError: If it holds anything else.

    Example:
        >>> import pickle
        >>> pickled_text(pickle.dumps("[]"))
        '[]'
        >>> pickled_text(pickle.dumps(print))
        Traceback (most recent call last):
            ...
        ValueError: private_test_cases: a pickle of one text was wanted; this one has the instruction STACK_GLOBAL
    """
    texts = []
    try:
        for code, argument, _ in pickletools.genops(data):
            if code.name in _TEXT_CODES:
                texts.append(argument)
            elif code.name not in _SILENT_CODES:
                raise ValueError(f"a pickle of one text was wanted; this one has the instruction {code.name}")
    except ValueError as error:  # of our own or of pickletools
        raise ValueError(f"private_test_cases: {error}") from None
    if len(texts) != 1:
        raise ValueError(f"private_test_cases: a pickle of one text was wanted; this one has {len(texts)}")
    return texts[0]


def _cases(column: str, text: str) -> list[dict[str, str]]:
    cases = _json(text)
    if not isinstance(cases, list):
        raise ValueError(f"{column}: wanted a list of tests; got {type(cases).__name__}")
    for case in cases:
        fields = ("input", "output", "testtype")
        if not isinstance(case, dict) or not all(isinstance(case.get(name), str) for name in fields):
            raise ValueError(f"{column}: a test needs texts for {', '.join(fields)}; got {case!r:.80}")
    return cases


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {text[:80]!r} ({error})") from None
