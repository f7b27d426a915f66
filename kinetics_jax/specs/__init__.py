"""Which model, hardware, attention, strategy? Frozen data, pure Python; everything else in the house reads it."""

from ._attention import DEFAULT_PAGE_LEN as DEFAULT_PAGE_LEN
from ._attention import AttentionSpec as AttentionSpec
from ._attention import BlockTopK as BlockTopK
from ._attention import Dense as Dense
from ._attention import Local as Local
from ._attention import PageSelection as PageSelection
from ._attention import Quest as Quest
from ._attention import TopK as TopK
from ._attention import attention_by_layer as attention_by_layer
from ._attention import parse_attention as parse_attention
from ._chips import HARDWARE as HARDWARE
from ._dtype import DTYPES as DTYPES
from ._dtype import DTypeSpec as DTypeSpec
from ._hardware import HardwareSpec as HardwareSpec
from ._model import ModelSpec as ModelSpec
from ._models import MODELS as MODELS
from ._rope import Llama3Rope as Llama3Rope
from ._rope import RopeScaling as RopeScaling
from ._rope import YarnRope as YarnRope
from ._strategy import BestOfN as BestOfN
from ._strategy import LongCoT as LongCoT
from ._strategy import SamplingSpec as SamplingSpec
from ._strategy import Strategy as Strategy
