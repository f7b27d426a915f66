"""Which model, hardware, attention, strategy? Frozen data, pure Python; everything else in the house reads it."""

from ._attention import DEFAULT_PAGE_LEN as DEFAULT_PAGE_LEN
from ._attention import AttentionSpec as AttentionSpec
from ._attention import BlockTopK as BlockTopK
from ._attention import Dense as Dense
from ._attention import Local as Local
from ._attention import TopK as TopK
from ._attention import parse_attention as parse_attention
from ._hardware import DTYPE_BYTES as DTYPE_BYTES
from ._hardware import HARDWARE as HARDWARE
from ._hardware import HardwareSpec as HardwareSpec
from ._model import MODELS as MODELS
from ._model import ModelSpec as ModelSpec
from ._strategy import BestOfN as BestOfN
from ._strategy import LongCoT as LongCoT
from ._strategy import SamplingSpec as SamplingSpec
from ._strategy import Strategy as Strategy
