"""Is this output the expected one? Asked on this side of the sandbox, of text and plain data only."""

import math
from decimal import Decimal, InvalidOperation
from typing import Any


def same_output(printed: str, expected: str, *, tolerance: float = 0.0) -> bool:
    r"""Say whether a program printed what was expected.

    Lines must be as many, blank ones at both ends of the text left out, and the words of each line must be equal one
    by one, as text or as numbers: 1.0 is 1.00, and with a tolerance also what lies that close. How much blank space
    stands between words or around them does not count. (The released grader of LiveCodeBench compares words only in
    lines of nothing but numbers, and other lines as they are.)

    Args:
        printed: Standard output of the program.
        expected: Of the test.
        tolerance: Largest difference between numbers, absolute or relative to the expected one; 0.0 asks for equality,
            as the released grader of LiveCodeBench does.

    Example:
        >>> same_output("1 2.50 \n\n", "1 2.5"), same_output("1\n2", "1 2"), same_output("0.333", "1/3")
        (True, False, False)
        >>> same_output("0.3333333", "0.33333333", tolerance=1e-6)
        True
    """
    lines, wanted = ([line.strip() for line in text.strip().split("\n")] for text in (printed, expected))
    if len(lines) != len(wanted):
        return False
    return all(
        line == want or _same_words(line.split(), want.split(), tolerance)
        for line, want in zip(lines, wanted, strict=True)
    )


def _same_words(words: list[str], wanted: list[str], tolerance: float) -> bool:
    if len(words) != len(wanted):
        return False
    return all(word == want or _close_numbers(word, want, tolerance) for word, want in zip(words, wanted, strict=True))


def _close_numbers(word: str, want: str, tolerance: float) -> bool:
    try:
        number, target = Decimal(word), Decimal(want)
    except InvalidOperation:
        return False
    if not (number.is_finite() and target.is_finite()):
        return False  # "NaN" and "Infinity" are words
    if number == target:
        return True
    return tolerance > 0 and _close(number, target, tolerance)


def _close(number: float | int | Decimal, target: float | int | Decimal, tolerance: float) -> bool:
    try:
        return math.isclose(float(number), float(target), rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # a whole number beyond all floats
        return False


def same_value(returned: Any, expected: Any, *, tolerance: float = 0.0) -> bool:
    """Say whether a function returned what was expected; a tuple is as good as a list.

    Args:
        returned: Plain data from the sandbox.
        expected: Of the test, from JSON.
        tolerance: As in `same_output`, for floats.

    Example:
        >>> same_value((1, [2.0]), [1, [2]]), same_value({1, 2}, [1, 2])
        (True, False)
    """
    if isinstance(expected, (list, tuple)):
        return (
            isinstance(returned, (list, tuple))
            and len(returned) == len(expected)
            and all(same_value(a, b, tolerance=tolerance) for a, b in zip(returned, expected, strict=True))
        )
    if isinstance(expected, dict):
        return (
            isinstance(returned, dict)
            and returned.keys() == expected.keys()
            and all(same_value(returned[key], value, tolerance=tolerance) for key, value in expected.items())
        )
    if tolerance > 0 and isinstance(expected, float) and isinstance(returned, (int, float)):
        return _close(returned, expected, tolerance)
    return bool(returned == expected)
