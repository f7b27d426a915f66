"""How does a Hugging Face model become ours, and back? Folders of safetensors, config and tokenizer, without torch."""

from ._convert import convert_checkpoint as convert_checkpoint
from ._export import export_checkpoint as export_checkpoint
from ._gguf import GgufSource as GgufSource
from ._gguf import load_gguf as load_gguf
from ._gguf_tokenizer import load_gguf_tokenizer as load_gguf_tokenizer
from ._golden import Reference as Reference
from ._golden import read_golden as read_golden
from ._golden import write_golden as write_golden
from ._hash import weights_hash as weights_hash
from ._int8 import quantise as quantise
from ._int8 import quantise_leaf as quantise_leaf
from ._load import load_checkpoint as load_checkpoint
from ._logit_error import LogitError as LogitError
from ._logit_error import logit_error as logit_error
from ._manifest import Manifest as Manifest
from ._save import save_checkpoint as save_checkpoint
from ._source import local_source as local_source
from ._tokenizer import HfTokenizer as HfTokenizer
from ._tokenizer import Tokenizer as Tokenizer
from ._tokenizer import load_tokenizer as load_tokenizer
from ._tokenizer import word_tokenizer as word_tokenizer
from ._verify import VerifyReport as VerifyReport
from ._verify import verify_checkpoint as verify_checkpoint
