"""How does a Hugging Face model become ours, and back? Folders of safetensors, config and tokenizer, without torch."""

from ._config import spec_from_hf_config as spec_from_hf_config
from ._config import spec_to_hf_config as spec_to_hf_config
from ._hash import weights_hash as weights_hash
from ._load import load_checkpoint as load_checkpoint
from ._save import save_checkpoint as save_checkpoint
from ._tokenizer import load_tokenizer as load_tokenizer
from ._tokenizer import word_tokenizer as word_tokenizer
