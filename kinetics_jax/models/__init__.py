"""What is the next-token distribution? One decoder in Flax NNX, driven by a `ModelSpec`."""

from ._decoder import Decoder as Decoder
from ._decoder import abstract_decoder as abstract_decoder
from ._layer import DecoderLayer as DecoderLayer
