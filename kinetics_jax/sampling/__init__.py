"""How are N trials drawn? `generate`: one prompt, many trials, under `jit` and `vmap`."""

from ._generate import Generation as Generation
from ._generate import LanguageModel as LanguageModel
from ._generate import generate as generate
from ._token import allowed_tokens as allowed_tokens
from ._token import sample_token as sample_token
