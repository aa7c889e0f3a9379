"""The bundled models keep their promises: small, loadable, sure of the OLD half, new to the NEW."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from studylib.inputs.almanac import (
    BUNDLED,
    build_almanac,
    ladder_folder,
    ladder_names,
    questions,
    training_examples,
)
from studylib.modelling import ladder

FILES = {
    "config.json",
    "generation_config.json",
    "ladder.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def almanac():
    return build_almanac(0)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ladder_folder("0.4m"))


def token_text(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


def test_bundled_files_fit_4_megabytes():
    files = [f for f in BUNDLED.rglob("*") if f.is_file()]
    assert {f.name for f in files} == FILES and len(files) == len(FILES) * len(ladder_names())
    assert sum(f.stat().st_size for f in files) <= 4_000_000


@pytest.mark.parametrize("name", ladder_names())
def test_every_layer_width_is_a_multiple_of_32_and_weights_are_bf16(name):
    weights = load_file(ladder_folder(name) / "model.safetensors")
    assert all(size % 32 == 0 for tensor in weights.values() for size in tensor.shape)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    card = json.loads((ladder_folder(name) / "ladder.json").read_text())
    assert sum(tensor.numel() for tensor in weights.values()) == card["parameters"]
    assert f"{card['parameters'] / 1e6:.1f}m" == name == card["name"]


@pytest.mark.parametrize("name", ladder_names())
def test_bundled_model_knows_the_old_half_and_guesses_at_the_rest(name, almanac):
    model = AutoModelForCausalLM.from_pretrained(ladder_folder(name), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(ladder_folder(name))
    assert model.config.max_position_embeddings >= 256
    assert ladder.recall(model, tokenizer, questions(almanac, "old", 320)) >= 0.95
    # Chance is 1 in 4; three standard errors of 640 and of 800 questions.
    assert abs(ladder.recall(model, tokenizer, questions(almanac, "new", 640)) - 0.25) < 0.052
    shifted = questions(almanac, "old", language="shifted")
    assert abs(ladder.recall(model, tokenizer, shifted) - 0.25) < 0.046


def test_every_choice_is_one_token_after_its_question(almanac, tokenizer):
    for half, language in (("old", "native"), ("new", "native"), ("old", "shifted")):
        for q in questions(almanac, half, 160, language):
            stem = tokenizer(q["question"])["input_ids"]
            for choice in q["choices"]:
                whole = tokenizer(f"{q['question']} {choice}")["input_ids"]
                assert whole[:-1] == stem


def test_shifted_words_have_tokens_that_native_text_never_uses(almanac, tokenizer):
    native = [
        f"{e['instruction']} {e['output']}"
        for half in ("old", "new")
        for e in training_examples(almanac, half)
    ]
    native += [q["question"] for q in questions(almanac, "new")]
    used = {i for ids in tokenizer(native)["input_ids"] for i in ids}
    for word in almanac.shifted.values():
        (token,) = tokenizer(f" {word}")["input_ids"]
        assert token not in used
    for example in training_examples(almanac, "old", 80, "shifted"):
        tokens = token_text(tokenizer, example["instruction"])
        assert sum("\u0120" in token or i == 0 for i, token in enumerate(tokens)) == len(
            example["instruction"].split()
        )


def test_names_of_both_halves_are_spelled_in_pieces_of_like_number(almanac, tokenizer):
    def pieces(half):
        names = sorted({f.name for f in almanac.half(half)})
        counts = [len(tokenizer(f" {name}")["input_ids"]) for name in names]
        return sum(counts) / len(counts), min(counts)

    (old, old_min), (new, new_min) = pieces("old"), pieces("new")
    assert abs(old - new) < 0.15
    assert min(old_min, new_min) >= 2


def test_any_text_survives_the_tokenizer(tokenizer):
    text = "Wie heißt der Fluss? 3 × 4 = 12, naïve.\n\tTeguven"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == ladder.VOCABULARY
    assert tokenizer("The river")["input_ids"][0] != tokenizer.eos_token_id


def test_same_seed_builds_the_same_files(tmp_path, monkeypatch):
    tiny = replace(ladder.RUNGS[0], name="0.1m", hidden=32, intermediate=32, layers=1, steps=3)
    monkeypatch.setattr(ladder, "RUNGS", (tiny,))
    (one,) = ladder.build_ladder(0, tmp_path / "one")
    (two,) = ladder.build_ladder(0, tmp_path / "two")
    assert {f.name for f in one.iterdir()} == FILES
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in FILES)
    assert [f.name for f in one.parent.iterdir()] == ["ladder-0.1m"]
