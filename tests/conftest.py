"""What tests share: a tiny model on disk, the bundled ladder, quiet libraries."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the checkout; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data in ../shared, which is not here")
    return SHARED


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with the ladder's tokenizer, as a checkpoint folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from studylib.inputs.almanac import ladder_folder, ladder_names
    from studylib.modelling.models import load_tokenizer

    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    tokenizer = load_tokenizer(ladder_folder(ladder_names()[0]))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Call the command line in an empty folder; gives (exit code, stdout, stderr)."""
    from studylib.commands import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["study", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def study(call, monkeypatch):
    """The same on a machine without a card, whatever this one has."""
    from studylib.running import doctor

    monkeypatch.setattr(doctor, "describe_devices", lambda: ([], "no card in a test"))
    doctor.own_profile.cache_clear()
    yield call
    doctor.own_profile.cache_clear()
