"""Chats become the text a model was tuned on: thinking on and off, one BOS, and a template that can do no harm."""

import importlib.util
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from checkpoints_conversion import HfTokenizer, Tokenizer, load_tokenizer
from checkpoints_conversion._chat import _compile, render_chat
from checkpoints_conversion._tokenizer import save_tokenizer

SPECIAL = ["<|text|>", "<|end|>", "<|turn|>"]
BOS, EOS, TURN = 256, 257, 258

# The switches of the published Qwen3 template: system turn, reasoning kept in the last answer alone, thinking shut off
# by an empty thought.
THINKING = """\
{%- if messages[0].role == 'system' %}
    {{- '<|turn|>system\\n' + messages[0].content + '<|end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_question=0) %}
{%- for message in messages if message.role == 'user' %}
    {%- set ns.last_question = messages.index(message) %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|turn|>user\\n' + message.content + '<|end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set answer = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- set thought = '' %}
        {%- if loop.index0 > ns.last_question and message.reasoning_content is string %}
            {%- set thought = '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' %}
        {%- endif %}
        {{- '<|turn|>assistant\\n' + thought + answer + '<|end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|turn|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
# The switches of the published Llama 3 and DeepSeek templates: BOS written by the template, turns that must alternate.
STRICT = """\
{{- bos_token -}}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('turns must alternate') -}}
    {% endif %}
    {{- '<|turn|>' + message['role'] + ': ' + message['content'] | trim + eos_token -}}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|turn|>assistant: ' -}}
{% endif %}
"""
QUESTION = [{"role": "user", "content": " Which way? "}]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\n2", "reasoning_content": "Easy."},
    {"role": "user", "content": "And 2 + 2?"},
]


def byte_tokenizer(*, adds_bos: bool = False, **options: Any) -> HfTokenizer:
    """Return a tokenizer of single bytes and three special tokens."""
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<|text|> $A", special_tokens=[("<|text|>", BOS)])
    special_tokens = {"bos_token": "<|text|>", "eos_token": "<|end|>"}
    return HfTokenizer(backend=backend, special_tokens=special_tokens, eos_token_ids=(EOS,), **options)


def render(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    options = {"special_tokens": {}, "enable_thinking": True, "add_generation_prompt": True} | options
    return render_chat(template, messages, **options)


def test_thinking_on_leaves_the_thought_to_the_model():
    wanted = (
        "<|turn|>system\nBe brief.<|end|>\n<|turn|>user\n1 + 1?<|end|>\n<|turn|>assistant\n2<|end|>\n"
        "<|turn|>user\nAnd 2 + 2?<|end|>\n<|turn|>assistant\n"
    )
    assert byte_tokenizer(chat_template=THINKING).chat_text(CHAT) == wanted


def test_thinking_off_writes_an_empty_thought():
    tokenizer = byte_tokenizer(chat_template=THINKING)
    on, off = tokenizer.chat_text(QUESTION), tokenizer.chat_text(QUESTION, enable_thinking=False)
    assert on == "<|turn|>user\n Which way? <|end|>\n<|turn|>assistant\n"
    assert off == on + "<think>\n\n</think>\n\n"
    assert tokenizer.apply_chat_template(QUESTION, enable_thinking=False) == tokenizer.encode(off)


def test_without_generation_prompt_the_last_thought_stays():
    text = byte_tokenizer(chat_template=THINKING).chat_text(CHAT[:3], add_generation_prompt=False)
    assert text.endswith("<|turn|>assistant\n<think>\nEasy.\n</think>\n\n2<|end|>\n")


@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer_config.json", "nowhere"])
def test_bos_comes_once(place: str):
    tokenizer = byte_tokenizer(adds_bos=place == "tokenizer.json", chat_template=STRICT)
    if place == "tokenizer_config.json":
        tokenizer = replace(tokenizer, adds_bos=True)
    chat_ids = tokenizer.apply_chat_template(QUESTION)
    assert chat_ids[:2] == [BOS, TURN]
    assert chat_ids.count(BOS) == 1
    assert tokenizer.encode(tokenizer.chat_text(QUESTION)) == chat_ids
    assert tokenizer.encode("abc").count(BOS) == (place != "nowhere")
    assert tokenizer.decode(tokenizer.encode("abc")) == "abc"
    assert tokenizer.encode("a<|text|>b").count(BOS) == 1 + (place != "nowhere"), "one in the middle is the user's"


def test_a_chat_template_without_bos_gets_none():
    assert BOS not in byte_tokenizer(adds_bos=True, chat_template=THINKING).apply_chat_template(QUESTION)


def test_special_tokens_and_filters_follow_transformers():
    assert render(STRICT, QUESTION, special_tokens={"bos_token": "<|text|>", "eos_token": "<|end|>"}) == (
        "<|text|><|turn|>user: Which way?<|end|><|turn|>assistant: "
    )
    assert render("{{ messages[0] | tojson }}", [{"role": "user", "content": "<é & 'b'>"}]) == (
        '{"role": "user", "content": "<é & \'b\'>"}'
    )
    assert render("{{ {'b': [1], 'a': 2} | tojson(indent=1, sort_keys=true) }}", QUESTION) == (
        '{\n "a": 2,\n "b": [\n  1\n ]\n}'
    )
    blocks = "  {% for word in 'abc' %}\n{% if word == 'b' %}{% continue %}{% endif %}\n{{ word }}\n  {% endfor %}\n"
    assert render(blocks, QUESTION) == "a\nc\n"
    assert render("{% generation %}{{ messages[0].role }}{% endgeneration %}!", QUESTION) == "user!"
    assert len(render("{{ strftime_now('%Y-%m-%d') }}", QUESTION)) == 10
    assert render("{{ tools is none }} {{ documents is none }} {{ nothing is defined }}", QUESTION) == "True True False"


def test_a_field_that_is_none_is_absent():
    message = {"role": "user", "content": "x", "tool_calls": None}
    assert render("{{ messages[0].tool_calls is defined }}", [message]) == "False"


def test_a_template_may_refuse_messages():
    turns = [{"role": "assistant", "content": "Hello"}]
    with pytest.raises(ValueError, match="the chat template refuses these messages: turns must alternate"):
        byte_tokenizer(chat_template=STRICT).chat_text(turns)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__ }}{{ raise_exception.__globals__.x }}",
        "{{ namespace(__call__=1) }}",
        "{% set ns = namespace() %}{% set ns.__call__ = 1 %}",
        "{% for i in range(10 ** 7) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{% include 'secrets' %}",
    ],
)
def test_a_template_can_do_no_harm(template: str):
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(ValueError, match="the chat template refuses these messages"):
        render(template, messages)
    assert messages == [{"role": "user", "content": "x"}]


def test_messages_are_plain_data():
    with pytest.raises(TypeError, match=r"messages\[0\]\['content'\]\[1\] must be a text, number.*got PosixPath"):
        render("", [{"role": "user", "content": ["a", Path("x")]}])
    with pytest.raises(ValueError, match="at least one message"):
        render("", [])


def test_a_malformed_template_is_named():
    with pytest.raises(ValueError, match=r"the chat template is malformed: .*endfor"):
        render("{% for message in messages %}", QUESTION)
    with pytest.raises(ValueError, match="has no chat template"):
        byte_tokenizer().apply_chat_template(QUESTION)


def test_without_jinja_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    _compile.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install 'kinetics-jax\[hf\]'"):
        render("x", QUESTION)


def test_it_is_the_protocol():
    assert isinstance(byte_tokenizer(), Tokenizer)
    assert not isinstance(byte_tokenizer().backend, Tokenizer)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tokenizer(byte_tokenizer(adds_bos=True, chat_template=STRICT), tmp_path)
    return tmp_path


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(content | changes), encoding="utf-8")


def test_a_saved_tokenizer_comes_back(folder: Path):
    loaded, saved = load_tokenizer(folder), byte_tokenizer(adds_bos=True, chat_template=STRICT)
    assert loaded.apply_chat_template(QUESTION) == saved.apply_chat_template(QUESTION)
    assert loaded.encode("a b") == saved.encode("a b")
    for field in ("special_tokens", "eos_token_ids", "adds_bos", "chat_template", "bos_token_id", "vocab_size"):
        assert getattr(loaded, field) == getattr(saved, field), field


def test_the_chat_file_comes_before_the_config_and_the_default_before_the_named(folder: Path):
    config = folder / "tokenizer_config.json"
    edit(config, chat_template="from the config")
    assert load_tokenizer(folder).chat_template == STRICT
    (folder / "chat_template.jinja").unlink()
    assert load_tokenizer(folder).chat_template == "from the config"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    edit(config, chat_template=named)
    assert load_tokenizer(folder).chat_template == "plain"
    edit(config, chat_template=named[:1])
    assert load_tokenizer(folder).chat_template is None


def test_who_says_what_ends_a_text(folder: Path):
    edit(folder / "generation_config.json", eos_token_id=[TURN, EOS])
    edit(folder / "config.json", eos_token_id=7)
    assert load_tokenizer(folder).eos_token_ids == (TURN, EOS)
    (folder / "generation_config.json").unlink()
    assert load_tokenizer(folder).eos_token_ids == (7,)
    (folder / "config.json").rename(folder / "hf_config.json")
    assert load_tokenizer(folder).eos_token_ids == (7,)
    (folder / "hf_config.json").unlink()
    assert load_tokenizer(folder).eos_token_ids == (EOS,), "the tokenizer's own"


def test_special_tokens_may_be_objects_and_texts_are_never_cut(folder: Path):
    edit(folder / "tokenizer_config.json", eos_token={"content": "<|end|>", "lstrip": False}, bos_token=None)
    edit(
        folder / "tokenizer.json",
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
    )
    loaded = load_tokenizer(folder)
    assert loaded.special_tokens == {"eos_token": "<|end|>"}
    assert loaded.bos_token_id is None
    assert loaded.decode(loaded.encode("never cut")) == "never cut"


def test_all_problems_come_in_one_error(folder: Path):
    edit(folder / "tokenizer_config.json", bos_token=3)
    edit(folder / "generation_config.json", eos_token_id="2")
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"cannot load a tokenizer from .*: 3 problems") as caught:
        load_tokenizer(folder)
    for part in ("bos_token must be a text; got 3", "one or more token ids; got '2'", "chat_template.jinja cannot be"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match="eos_token_id 999 is not in the vocabulary of 259 tokens"):
        HfTokenizer(backend=byte_tokenizer().backend, eos_token_ids=(999,))


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers (extra `hf`)")
@pytest.mark.parametrize("template", [THINKING, STRICT], ids=["thinking", "strict"])
@pytest.mark.parametrize("enable_thinking", [True, False])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_live_transformers_agree(folder: Path, template: str, enable_thinking: bool, add_generation_prompt: bool):
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = importlib.import_module("transformers")
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = load_tokenizer(folder)
    messages = QUESTION if template == STRICT else CHAT
    options = {"enable_thinking": enable_thinking, "add_generation_prompt": add_generation_prompt}
    assert ours.chat_text(messages, **options) == theirs.apply_chat_template(messages, tokenize=False, **options)
    wanted = theirs.apply_chat_template(messages, return_dict=False, **options)
    assert ours.apply_chat_template(messages, **options) == wanted
    assert ours.encode("abc <|turn|>") == theirs("abc <|turn|>")["input_ids"]
