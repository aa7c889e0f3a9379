"""What tests share: a tiny model on disk, the bundled ladder, quiet libraries, their order.

`make test` shares the files out among as many processes as the machine bears.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process a core, whoever starts it

import pytest

SHARED = Path(__file__).parents[2] / "shared"
WORKER_BYTES = 3 * 2**30  # what the largest tests take
# These take longest: begun last, one of them would keep the whole suite waiting.
FIRST = ("test_browser", "test_ray", "test_distributed", "test_readme_costs", "test_runner",
         "test_warm")  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes `-n auto` is: one a core, as far as memory goes.

    0, which is none beside this one, for a single file, and to say which file is not there.
    """
    from studylib.metering.host import host_description

    asked = [Path(words.partition("::")[0]) for words in config.args]
    if [path.is_file() for path in asked] == [True] or not all(path.exists() for path in asked):
        return 0
    host = host_description()
    cores = min(host["cores_allowed"], int(host["cores_quota"] or host["cores_allowed"]))
    free_bytes = min(filter(None, (host["memory_available_bytes"], host["memory_limit_bytes"])))
    return max(1, min(cores, free_bytes // WORKER_BYTES))


def pytest_collection_finish() -> None:
    """Leave what the libraries are made of out of every collection of garbage: each stage of a run
    makes one, and 800,000 objects more take half a second each time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


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
