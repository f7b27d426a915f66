"""The words of pathfind and their token ids."""

NUM_NODES = 48
OUT_DEGREE = 2
DEPTHS = (4, 5, 6, 7, 8)
MAX_DEPTH = max(DEPTHS)

_SPECIALS = ("<pad>", "<bos>", "<eos>", ";", "?", ":", "FAIL", "DONE")
PAD, BOS, EOS, SEMICOLON, QUERY, COLON, FAIL, DONE = range(len(_SPECIALS))
HOPS_BASE = len(_SPECIALS) - 1
"""Token id of a depth minus the depth: @1 follows the specials."""
NODE_BASE = HOPS_BASE + MAX_DEPTH + 1
VOCABULARY = (
    *_SPECIALS,
    *(f"@{depth}" for depth in range(1, MAX_DEPTH + 1)),
    *(f"n{node}" for node in range(NUM_NODES)),
)
PROMPT_LEN = 1 + 3 * NUM_NODES * OUT_DEGREE + 5
