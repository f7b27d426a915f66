"""Chat templates: messages in, the text that a model was tuned on out. By the rules of transformers, without it.

A template is a small Jinja program that ships with a model, so it runs in a sandbox and sees plain data alone. Tools,
documents and pictures are left out.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar

Message = Mapping[str, Any]
"""One turn of a chat: its "role", its "content", and what else the template reads, "reasoning_content" say."""


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    special_tokens: Mapping[str, str],
    enable_thinking: bool,
    add_generation_prompt: bool,
) -> str:
    """Return the text of a chat.

    Args:
        template: The model's template.
        messages: The turns, oldest first; a field that is None counts as absent.
        special_tokens: What the template calls bos_token, eos_token and so on.
        enable_thinking: Whether the model is to think before it answers; templates without the switch ignore it.
        add_generation_prompt: Whether the text ends where the model's next turn starts.

    Raises:
        ValueError: If there are no messages, the template is malformed, or it refuses the messages.
        TypeError: If a message holds anything but texts, numbers, flags, lists and mappings.
        ImportError: If Jinja (extra `hf`) is missing.

    Example:
        >>> render_chat(
        ...     "{% for message in messages %}[{{ message.role }}] {{ message.content | trim }} {% endfor %}",
        ...     [{"role": "user", "content": " Which way? "}],
        ...     special_tokens={},
        ...     enable_thinking=True,
        ...     add_generation_prompt=False,
        ... )
        '[user] Which way? '

    References:
        https://huggingface.co/docs/transformers/chat_templating_writing
    """
    if not messages:
        raise ValueError("a chat must have at least one message; got none")
    plain = [
        _plain({field: value for field, value in message.items() if value is not None}, f"messages[{index}]")
        for index, message in enumerate(messages)
    ]
    render = _compile(template)
    return render(
        **special_tokens,
        messages=plain,
        tools=None,
        documents=None,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=enable_thinking,
    )


def _plain(value: Any, place: str) -> Any:
    """Return a copy that is made of JSON's types, whose methods the sandbox knows."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{place}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    raise TypeError(f"{place} must be a text, number, flag, list or mapping; got {type(value).__name__}")


@lru_cache(maxsize=16)
def _compile(template: str) -> Callable[..., str]:
    """Return the function that renders a template with given variables."""
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ModuleNotFoundError:
        raise ImportError("chat templates need the package `jinja2`: pip install 'kinetics-jax[hf]'") from None

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks the model's own words for training; the text is the same without it."""

        tags: ClassVar[set[str]] = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Namespace(jinja2.utils.Namespace):
        """Variables that outlive a loop, without names that Python itself looks up."""

        def __init__(*args: Any, **fields: Any):
            jinja2.utils.Namespace.__init__(*args, **fields)
            for name in dict(*args[1:], **fields):
                _require_public(name)

        def __setitem__(self, name: str, value: Any) -> None:
            _require_public(name)
            super().__setitem__(name, value)

    def _require_public(name: str) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}")

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["namespace"] = Namespace
    try:
        compiled = environment.from_string(template)
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template is malformed: {error}") from error

    def render(**variables: Any) -> str:
        try:
            return compiled.render(**variables)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from error

    return render


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as it is; Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
