"""How does a Hugging Face model become ours, and back? Folders of safetensors, config and tokenizer, without torch."""

from ._gguf import GgufSource as GgufSource
from ._gguf import load_gguf as load_gguf
from ._gguf_tokenizer import load_gguf_tokenizer as load_gguf_tokenizer
from ._hash import weights_hash as weights_hash
from ._load import load_checkpoint as load_checkpoint
from ._save import save_checkpoint as save_checkpoint
from ._tokenizer import HfTokenizer as HfTokenizer
from ._tokenizer import Tokenizer as Tokenizer
from ._tokenizer import load_tokenizer as load_tokenizer
from ._tokenizer import word_tokenizer as word_tokenizer
