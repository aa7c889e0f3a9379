"""What stays of a run is a model for others: peft and transformers load it without the study."""

from __future__ import annotations

import io
import json
import re
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from record_factory import Factory
from record_factory import make_spec as factory_spec
from safetensors.torch import load_file, save_file
from test_run import make_spec
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from studylib.commands.cli_options import keep_as
from studylib.core.errors import StudyError
from studylib.forecasting import disk
from studylib.forecasting.disk import foresee_disk
from studylib.modelling import kept
from studylib.modelling.models import Loaded
from studylib.planning.plan import tell_unkept
from studylib.schema.find_record import find_record
from studylib.schema.kept import check_keep, why_not_kept
from studylib.schema.profile import LoraSettings, parse_method, read_profile
from studylib.schema.records import read_record
from studylib.schema.settings import ModelRef
from studylib.scoring.trial import spell_prompt, try_prompts
from studylib.training.run import Run

ROWS = torch.arange(5, 45).reshape(2, 20)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=ROWS, use_cache=False).logits


class Made:
    """A run that has ended: its folder, its record, and what its trained model answered."""

    def __init__(self, folder, spec):
        self.folder, self.spec = folder, spec
        run = Run(spec, folder)
        run.load()
        run.train()
        run.evaluate()
        run.serve()
        self.logits = logits(run.model)
        self.record = read_record(run.finish())


def spec_of(tiny_folder, method, keep):
    spec = make_spec(f"path:{tiny_folder}", method, steps=3)
    return spec.model_copy(update={"keep": keep, "learning_rate": 2e-2})


@pytest.fixture(scope="module")
def base(tiny_folder, tmp_path_factory):
    """A base of the module's own, which a test may change and put back."""
    return shutil.copytree(tiny_folder, tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    """method -> its run, each made once."""
    known = {}

    def make(method):
        if method not in known:
            folder = tmp_path_factory.mktemp(method)
            (folder / "adapter").mkdir()
            (folder / "adapter" / "stale.safetensors").write_text("of an earlier run")
            known[method] = Made(folder, spec_of(base, method, "all"))
        return known[method]

    return make


def test_adapter_gives_the_same_logits_by_peft_alone_on_the_original_base(made, base):
    run = made("lora")
    plain = AutoModelForCausalLM.from_pretrained(base)
    before = logits(plain)
    found = logits(PeftModel.from_pretrained(plain, run.folder / "adapter"))
    torch.testing.assert_close(found, run.logits, rtol=0, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-2), "it was trained"


def test_adapter_names_its_base_as_it_is_loaded(made):
    run = made("lora")
    model = AutoPeftModelForCausalLM.from_pretrained(run.folder / "adapter")
    torch.testing.assert_close(logits(model), run.logits, rtol=0, atol=1e-5)


def test_adapter_of_a_hub_model_names_its_id_and_commit(tiny_folder):
    ref, tokenizer = "hub:someone/model", AutoTokenizer.from_pretrained(tiny_folder)
    spec = make_spec(ref)
    loaded = Loaded(torch.nn.Identity(), tokenizer, "commit abc", "abc")
    assert kept.name_base(spec, loaded) == ("someone/model", "abc")


def test_adapter_has_the_files_names_and_settings_that_vllm_takes(made):
    """As its loader checks them: LoRA's two matrices of linear layers, no copies, no biases."""
    folder = made("lora").folder / "adapter"
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 16, 32)
    assert isinstance(config["target_modules"], list) and config["bias"] == "none"
    unset = ("modules_to_save", "use_dora", "use_rslora", "alpha_pattern", "rank_pattern")
    assert not any(config.get(key) for key in unset)
    form = re.compile(r"base_model\.model\.(model\.layers\.\d\.\w+\.\w+)\.lora_[AB]\.weight")
    found = [form.fullmatch(name) for name in load_file(folder / "adapter_model.safetensors")]
    assert all(found) and {match[1] for match in found} == set(config["target_modules"])


def test_record_says_what_stayed_how_large_and_on_which_base(made, base):
    run = made("lora")
    stayed = run.record.kept
    files = list((run.folder / "adapter").iterdir())
    assert stayed.folder == "adapter" and stayed.base_model == f"path:{base}"
    assert stayed.file_bytes == sum(path.stat().st_size for path in files)
    assert stayed.base_revision is None and len(stayed.sha256) == 64
    assert not (run.folder / "work").exists()


def test_quantized_adapter_gives_the_same_logits_on_the_base_in_4_bits(made, base):
    run = made("qlora")
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    plain = AutoModelForCausalLM.from_pretrained(base, quantization_config=four_bit)
    model = PeftModel.from_pretrained(plain, run.folder / "adapter")
    # In training (there is no dropout): evaluation repacks 4-bit weights on some processors, for
    # another computation, and refuses this width.
    found = model.train()(input_ids=ROWS, use_cache=False).logits.detach()
    torch.testing.assert_close(found, run.logits, rtol=0, atol=1e-4)


def test_kept_adapter_comes_back_as_it_was_scored(made):
    run = made("qlora")
    _, model = kept.open_kept(run.record, run.folder)
    torch.testing.assert_close(logits(model), run.logits, rtol=0, atol=1e-5)


def test_whole_model_stays_with_its_tokenizer_and_loads_by_transformers_alone(made, base):
    run = made("full")
    folder = run.folder / "model"
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(logits(model), run.logits, rtol=0, atol=1e-5)
    ours, theirs = (AutoTokenizer.from_pretrained(place) for place in (folder, base))
    assert ours("one and two")["input_ids"] == theirs("one and two")["input_ids"]
    assert model.config.use_cache is True
    assert run.record.kept.folder == "model" and not (run.folder / "adapter").exists()
    assert run.record.kept.file_bytes > run.record.serve.checkpoint_bytes > 1e5


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_merged_model_answers_as_the_adapter_on_its_base(made, method):
    run = made(method)
    folder = kept.merge_kept(run.record, run.folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16 and model.config.use_cache is True
    apart = (logits(model.float()) - run.logits).std() / run.logits.std()
    assert apart < 0.05, "bf16 rounds; a merge left out would be far off"
    assert AutoTokenizer.from_pretrained(folder)("one")["input_ids"]


def test_merge_says_how_much_room_is_missing(made, monkeypatch):
    run = made("lora")
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(StudyError, match=r"the disk has 0\.0 GB"):
        kept.merge_kept(run.record, run.folder)


@pytest.mark.parametrize(
    ("keep", "model", "method", "why"),
    [
        ("adapters", "ladder:0.4m", "lora", None),
        ("adapters", "ladder:0.4m", "full", "KEEP=all does"),
        ("all", "hub:a/b", "full", None),
        ("none", "hub:a/b", "qlora", "KEEP=none"),
        ("all", "shape:Llama-2-13B", "lora", "random weights"),
    ],
)
def test_choice_decides_by_method_and_base(keep, model, method, why):
    found = why_not_kept(keep, ModelRef.parse(model), parse_method(method, LoraSettings()))
    assert found is None if why is None else why in found


def test_unknown_choice_is_one_message():
    with pytest.raises(StudyError, match="adapters, all or none"):
        check_keep("adapter")


def test_run_that_keeps_nothing_says_so_and_leaves_nothing(base, tmp_path):
    run = Made(tmp_path, spec_of(base, "lora", "none"))
    assert run.record.kept.folder is None and not (tmp_path / "adapter").exists()
    with pytest.raises(StudyError, match=r"kept no weights: KEEP=none.*KEEP=adapters"):
        kept.open_kept(run.record, tmp_path)


def test_run_broken_off_between_weights_and_record_does_not_train_again(
    base, tmp_path, monkeypatch
):
    spec = spec_of(base, "lora", "adapters")
    first = Run(spec, tmp_path)
    first.load()
    first.train()
    weights = logits(first.model)
    kept.leave_weights(spec, first.loaded, first.trained_folder, tmp_path)
    first._lock.close()  # as the system does when a process dies
    monkeypatch.setattr("studylib.training.run.train_model", None)
    second = Run(spec, tmp_path)
    second.load()
    second.train()
    assert torch.equal(logits(second.model), weights)
    assert read_record(second.finish()).kept.folder == "adapter"
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_base_that_is_another_one_now_is_named(made, base):
    run = made("lora")
    path = base / "model.safetensors"
    before = path.read_bytes()
    save_file({n: t + 0.1 for n, t in load_file(path).items()}, path, {"format": "pt"})
    try:
        with pytest.raises(StudyError, match="not the one that the run was trained on"):
            kept.open_kept(run.record, run.folder)
    finally:
        path.write_bytes(before)


def test_weights_that_changed_or_went_are_named(made, tmp_path):
    run = made("lora")
    folder = shutil.copytree(run.folder, tmp_path / "copy")
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(StudyError, match="changed after the record"):
        kept.find_kept(run.record, folder)
    shutil.rmtree(folder / "adapter")
    with pytest.raises(StudyError, match="published records carry none"):
        kept.find_kept(run.record, folder)


def test_records_from_before_and_untrained_runs_say_what_to_do(made):
    run = made("lora")
    old = run.record.model_copy(update={"kept": None})
    with pytest.raises(StudyError, match=r"before weights were kept.*KEEP=adapters"):
        kept.find_kept(old, run.folder)
    spec = run.spec.model_copy(update={"method": parse_method("base", LoraSettings())})
    with pytest.raises(StudyError, match="trains nothing"):
        kept.find_kept(old.model_copy(update={"run": spec}), run.folder)
    with pytest.raises(StudyError, match=r"without a model to try \(diverged\)"):
        kept.find_kept(old.model_copy(update={"status": "diverged"}), run.folder)


def greedy(model, ids, stop, most):
    """Greedy search by hand, without a cache: what the study's answers are held to."""
    ids, found = list(ids), []
    while len(found) < most:
        with torch.no_grad():
            found.append(int(model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        ids.append(found[-1])
        if found[-1] == stop:
            return found[:-1]
    return found


@pytest.mark.parametrize("method", ["lora", "full"])
def test_trial_gives_the_bases_answer_and_the_trained_models(made, base, method):
    run, tokenizer = made(method), AutoTokenizer.from_pretrained(base)
    plain = AutoModelForCausalLM.from_pretrained(base)
    trained = {
        "lora": lambda: AutoPeftModelForCausalLM.from_pretrained(run.folder / "adapter"),
        "full": lambda: AutoModelForCausalLM.from_pretrained(run.folder / "model"),
    }[method]()
    prompts = ["The colour of a stone", "Where does it live?"]
    for prompt, one in zip(prompts, try_prompts(run.record, run.folder, prompts, 6), strict=True):
        ids = tokenizer(prompt)["input_ids"]
        for answer, model in ((one.base, plain), (one.trained, trained)):
            wanted = greedy(model, ids, tokenizer.eos_token_id, 6)
            assert answer.text == tokenizer.decode(wanted, skip_special_tokens=True)
        assert one.prompt == prompt


def test_prompt_is_spelled_as_the_training_spelled_it(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    ids, ends = spell_prompt("Why?", "chat", tokenizer, "Be brief.")
    wanted = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(ids).rstrip() == wanted.rstrip()
    assert ends == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end>")}
    ids, ends = spell_prompt("Why?", "alpaca", tokenizer, None)
    assert tokenizer.decode(ids).endswith("### Instruction:\nWhy?\n\n### Response:\n")
    assert ends == {tokenizer.eos_token_id}


def test_prompt_without_room_for_an_answer_is_one_message(made):
    run = made("lora")
    with pytest.raises(StudyError, match=r"more than the model's 256 positions") as error:
        try_prompts(run.record, run.folder, ["so\n" * 300], 8)
    assert "\n" not in str(error.value)


def test_run_is_found_by_its_id_among_all_studies(made, tmp_path):
    run = made("lora")
    place = tmp_path / "one" / "runs" / run.record.run_id
    shutil.copytree(run.folder, place)
    assert find_record(tmp_path, run.record.run_id) == (run.record, place)
    assert find_record(tmp_path, str(place))[1] == place
    with pytest.raises(StudyError, match=rf"Did you mean {run.record.run_id}"):
        find_record(tmp_path, run.record.run_id[:-1] + "7")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    with pytest.raises(StudyError, match=r"one, two.*PROFILE=one"):
        find_record(tmp_path, run.record.run_id)
    assert find_record(tmp_path, run.record.run_id, "two")[1].is_relative_to(tmp_path / "two")
    with pytest.raises(StudyError, match=r"RUN: no run is named"):
        find_record(tmp_path, "")
    with pytest.raises(StudyError, match=r"no finished runs. PROFILE=.* one, two"):
        find_record(tmp_path, run.record.run_id, "three")


def test_command_prints_both_answers_of_every_line(made, study, monkeypatch):
    folder = made("lora").folder
    monkeypatch.setattr("sys.stdin", io.StringIO("One thing\n\nAnother\n"))
    code, out, err = study("try", folder, "--max-tokens", "2")
    assert (code, err) == (0, "")
    assert out.count("> ") == out.count("base: ") == out.count("\nLoRA r=16: ") == 2
    code, out, _ = study("try", folder, "A third", "--max-tokens", "2", "--json")
    [answer] = json.loads(out)["answers"]
    assert code == 0 and answer["prompt"] == "A third" and not answer["trained_finished"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, out, err = study("try", folder)
    assert code == 2 and "there is no prompt" in err


def test_disk_is_said_beforehand_as_the_files_then_are(made):
    for method in ("lora", "qlora", "full"):
        run = made(method)
        found = foresee_disk([run.spec])
        weights = sum(p.stat().st_size for p in run.folder.glob("*/*.safetensors"))
        merged = run.folder / "merged" / "model.safetensors"
        weights -= merged.stat().st_size if merged.exists() else 0
        assert found.runs == 1 and found.kept == pytest.approx(weights, abs=8_000)
        # A checkpoint at step 2 of 3: weights and AdamW's two states; then the trained weights.
        assert found.working == pytest.approx(3 * found.kept, rel=0.01)


def test_file_that_holds_tied_embeddings_twice_is_foreseen_so(base):
    """peft writes the trained copy for the embedding and for the output layer tied to it."""
    once, twice = (foresee_disk([spec_of(base, m, "all")]).kept for m in ("lora", "lora-embed"))
    words, width = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight.shape
    assert twice - once == 2 * words * width * 4


def test_study_that_the_disk_cannot_hold_is_not_started(made, monkeypatch, tmp_path):
    spec = made("full").spec
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 10)
    with pytest.raises(StudyError, match=r"has 0\.0 MB free.*KEEP=none.*FORCE=1"):
        disk.refuse_full_disk([spec], tmp_path)
    monkeypatch.undo()
    disk.refuse_full_disk([spec], tmp_path / "not" / "made")


def test_choice_of_weights_makes_no_other_study_and_what_is_missing_is_said(tmp_path):
    factory = Factory(tmp_path / "smoke", items=32)
    factory.add(factory_spec("lora", profile="smoke"))
    profile = read_profile("smoke")
    run_id = "ladder-0.4m--lora-r16--s0"
    assert profile.run(run_id).keep == "adapters"
    asked = keep_as(profile, "none")
    assert asked.name == profile.name and {run.keep for run in asked.runs()} == {"none"}
    said = tell_unkept(profile, tmp_path / "smoke")
    assert said.startswith("1 finished runs have no weights") and run_id in said
    assert tell_unkept(asked, tmp_path / "smoke") is None
