"""The bundled models keep their promises: small, loadable, sure of the OLD half, new to the NEW."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from studylib.core.errors import StudyError
from studylib.inputs import rungs
from studylib.inputs.almanac import (
    BUNDLED,
    build_almanac,
    ladder_folder,
    ladder_names,
    questions,
    training_examples,
)
from studylib.inputs.rungs import LARGER_RUNGS, RUNGS, Rung
from studylib.modelling import ladder
from studylib.modelling.models import load_model
from studylib.schema.profile import MethodSettings, ModelRef, read_profile

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
def test_every_layer_width_is_a_multiple_of_64_and_weights_are_bf16(name):
    weights = load_file(ladder_folder(name) / "model.safetensors")
    assert all(size % 64 == 0 for tensor in weights.values() for size in tensor.shape)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    card = json.loads((ladder_folder(name) / "ladder.json").read_text())
    assert sum(tensor.numel() for tensor in weights.values()) == card["parameters"]
    assert f"{card['parameters'] / 1e6:.1f}m" == name == card["name"]


@pytest.mark.parametrize("rung", (*RUNGS, *LARGER_RUNGS), ids=lambda rung: rung.name)
def test_every_rung_is_as_wide_as_whole_blocks_of_nf4(rung):
    assert rung.hidden % 64 == 0 and rung.intermediate % 64 == 0


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


def test_recall_of_scores_that_are_no_numbers_is_no_share(almanac):
    model = AutoModelForCausalLM.from_pretrained(ladder_folder("0.4m"), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(ladder_folder("0.4m"))
    with torch.no_grad():
        model.model.norm.weight[7] = float("nan")
    with pytest.raises(StudyError, match="not finite numbers"):
        ladder.recall(model, tokenizer, questions(almanac, "old", 8))


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
    (one,) = ladder.build_ladder(tmp_path / "one")
    (two,) = ladder.build_ladder(tmp_path / "two")
    assert {f.name for f in one.iterdir()} == FILES
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in FILES)
    assert [f.name for f in one.parent.iterdir()] == ["ladder-0.1m"]


TINY = Rung("0.1m", hidden=64, intermediate=32, layers=1, steps=4, learning_rate=1e-3,
            batch_examples=8, facts=880, head_width=64, enough_recall=1.0)  # fmt: skip


@pytest.fixture
def built(tmp_path, monkeypatch):
    """An empty place for larger rungs, of which TINY is the only one."""
    monkeypatch.setattr(rungs, "BUILT", tmp_path / "built")
    monkeypatch.setattr(rungs, "LARGER_RUNGS", (TINY,))
    return tmp_path / "built"


def test_larger_rung_is_built_where_its_name_finds_it_and_says_how(built):
    ladder.build_larger(TINY, out=built)
    method = MethodSettings(name="full")
    loaded = load_model(ModelRef.parse("ladder:0.1m"), method, "fp32", device=torch.device("cpu"))
    folder = ladder_folder("0.1m")
    assert folder == built / "ladder-0.1m" and {f.name for f in folder.iterdir()} == FILES
    assert loaded.model.config.num_attention_heads == 1
    card = json.loads((folder / "ladder.json").read_text())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    assert (card["facts"], card["steps_done"], card["device"]) == (880, 4, device)
    assert card["ended_by"] == "the budget of steps" and card["tokens_per_second"] > 0
    old = questions(build_almanac(), "old", 880)
    model = loaded.model.eval()
    right = ladder.recall(model, loaded.tokenizer, old)
    assert card["accuracy_old"] == pytest.approx(right, abs=0.01)  # a card rounds otherwise
    assert {"accuracy_new", "seed", "final_loss"} <= card.keys()
    same = [(ladder_folder("0.4m") / name).read_bytes() == (folder / name).read_bytes()
            for name in ("tokenizer.json", "tokenizer_config.json")]  # fmt: skip
    assert same == [True, True]


def test_reading_ends_as_soon_as_enough_is_recalled(built, monkeypatch):
    monkeypatch.setattr(ladder, "CHECK_EVERY", 2)
    folder = ladder.build_larger(replace(TINY, enough_recall=0.01), out=built)
    card = json.loads((folder / "ladder.json").read_text())
    assert card["steps_done"] == 2 and card["ended_by"].endswith("of 880 OLD questions right")


def test_a_build_whose_loss_is_not_finite_ends_with_one_message(built, monkeypatch):
    monkeypatch.setattr(ladder, "CHECK_EVERY", 2)
    monkeypatch.setattr(ladder, "_schedule", lambda *_: float("nan"))
    with pytest.raises(StudyError, match=r"ladder:0\.1m, step 2: the loss is no longer a finite"):
        ladder.build_larger(TINY, out=built)
    assert not built.exists()


def test_a_build_that_is_broken_off_leaves_nothing_half(built, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ladder, "_judge", stop)
    with pytest.raises(KeyboardInterrupt):
        ladder.build_larger(TINY, out=built)
    assert list(built.iterdir()) == []
    with pytest.raises(StudyError, match=r"not built here yet. Build it: make ladder RUNG=0\.1m"):
        ladder_folder("0.1m")


def test_an_unbuilt_rung_is_one_message_with_its_remedy(call, tmp_path, monkeypatch):
    monkeypatch.setattr(rungs, "BUILT", tmp_path / "built")
    code, out, err = call("plan", "--model", "ladder:60m")
    assert code == 2 and out == ""
    assert err == ("study: ladder:60m: this rung is not bundled and was not built here yet. "
                   "Build it: make ladder RUNG=60m\n")  # fmt: skip


def test_an_unknown_rung_is_one_message_with_those_there_are(capsys):
    with pytest.raises(SystemExit) as end:
        ladder.main(["--rung", "7b"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("study: rung 7b: ") and said.count("\n") == 1
    assert all(rung.name in said for rung in LARGER_RUNGS)


def test_make_passes_the_rung_on_and_git_ignores_what_is_built():
    root = Path(__file__).parents[1]
    assert "-m studylib.modelling.ladder $(call opt,RUNG,rung)" in (root / "Makefile").read_text()
    assert "built/" in (root / ".gitignore").read_text().splitlines()
    assert root / "built" == rungs.BUILT


@pytest.mark.parametrize("rung", LARGER_RUNGS, ids=lambda rung: rung.name)
def test_larger_rungs_have_the_size_that_they_are_named_after(rung, tokenizer):
    with torch.device("meta"):
        model = ladder._new_model(rung, 0, tokenizer)
    params = sum(p.numel() for p in model.parameters())
    assert params == pytest.approx(float(rung.name[:-1]) * 1e6, rel=0.1)
    assert all(size % 32 == 0 for p in model.parameters() for size in p.shape)
    assert rung.hidden % (rung.head_width or 32) == 0
    assert rung.name not in {bundled.name for bundled in RUNGS}


def test_profile_for_a_card_asks_only_what_its_model_knows_and_teaches_all_alike():
    profile = read_profile("ladder-gpu")
    known = rungs.known_facts("60m")
    for track in profile.tracks:
        assert track.train.seq_len <= ladder.CONTEXT
        assert track.evaluate.facts <= min(known, track.data.facts)
        assert (track.evaluate.retention, track.train.master_weights) == ("almanac:old", True)
    assert profile.hardware.jobs == 1  # memory is measured: one run at a time on a card
    seeds = {(run.method.name, run.seed) for run in profile.runs() if run.track == "main"}
    assert seeds == {("base", 0)} | {(m, s) for m in ("full", "lora", "qlora") for s in range(3)}
    assert {sweep.method.name for sweep, _ in profile.sweeps()} == {"full", "lora", "qlora"}
