"""Where does the thought end and the answer begin? Every text task asks this first."""

THINK, END_THINK = "<think>", "</think>"


def answer_start(text: str) -> int | None:
    """Return the index of the first character after the thought; None while the thought is open.

    A text that neither opens nor closes a thought is all answer.

    Example:
        >>> answer_start("<think>2 + 2 is 4</think>4"), answer_start("<think>2 + 2"), answer_start("4")
        (25, None, 0)
    """
    closed = text.rfind(END_THINK)
    if text.rfind(THINK) > closed:
        return None
    return 0 if closed < 0 else closed + len(END_THINK)
