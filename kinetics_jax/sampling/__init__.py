"""How are N trials drawn? `generate`: one prompt, many trials, under `jit` and `vmap`; `Engine`: the large runs."""

from ._engine import Engine as Engine
from ._generate import Generation as Generation
from ._generate import LanguageModel as LanguageModel
from ._generate import generate as generate
from ._penalty import seen_tokens as seen_tokens
from ._request import Completion as Completion
from ._request import EngineStats as EngineStats
from ._request import FinishReason as FinishReason
from ._request import Request as Request
from ._speculate import Speculation as Speculation
from ._speculate import speculate as speculate
from ._stopping import BudgetForcing as BudgetForcing
from ._stopping import Repetition as Repetition
from ._stopping import RepetitionWatch as RepetitionWatch
from ._stopping import Stopping as Stopping
from ._stopping import forced_token as forced_token
from ._stopping import repetition_len as repetition_len
from ._stopping import thought_closed as thought_closed
from ._timing import DecodeTimer as DecodeTimer
from ._timing import DecodeTiming as DecodeTiming
from ._timing import random_model as random_model
from ._token import allowed_tokens as allowed_tokens
from ._token import sample_token as sample_token
from ._token import token_log_probs as token_log_probs
from ._token import token_probs as token_probs
