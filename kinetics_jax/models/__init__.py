"""What is the next-token distribution? One decoder in Flax NNX, driven by a `ModelSpec`."""

from ._decoder import Decoder as Decoder
from ._decoder import abstract_decoder as abstract_decoder
from ._layer import DecoderLayer as DecoderLayer
from ._load import load_model as load_model
from ._model_file import MODEL_FILE as MODEL_FILE
from ._model_file import WEIGHTS_FOLDER as WEIGHTS_FOLDER
from ._model_file import ModelFile as ModelFile
from ._model_file import WeightDType as WeightDType
from ._model_file import leaf_name as leaf_name
from ._sharding import decoder_shardings as decoder_shardings
from ._sharding import leaf_shardings as leaf_shardings
from ._sharding import shard_decoder as shard_decoder
