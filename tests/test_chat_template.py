"""Chat templates: every answer is learned with its end, and nothing else.

The reference is transformers' own mask by `{% generation %}` marks, which these templates carry in
a second copy; where TRL is installed, its training templates are held against the models' own.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from studylib.core.errors import StudyError
from studylib.inputs import tokens
from studylib.inputs.data import prepare_data
from studylib.inputs.templates import (
    Spelled,
    TemplateRefuses,
    find_pattern,
    prompt_and_answer,
    render,
    resolve_template,
    spell_by_prefixes,
    spell_chat,
)
from studylib.inputs.tokens import (
    IGNORED,
    tell_lengths,
    tokenise,
    tokenise_bytes,
    tokenise_spelled,
    unfold,
)
from studylib.schema.profile import DataSettings, TrainSettings

MARKS = ["<s>", "</s>", "<|start|>", "<|end|>", "<turn>", "</turn>", "<|eot|>", "<|head|>",
         "<|/head|>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>",
         "<|user|>", "<|assistant|>", "<|system|>", "<|begin_of_text|>", "<|start_header_id|>",
         "<|end_header_id|>", "<|eot_id|>", "<bos>", "<eos>", "<|endoftext|>"]  # fmt: skip

# Each: what an answer is written as stands between «marks», for the copy with generation marks.
# Lines are joined: a template that ends one has it as \\n.
HEADERS = """{{ bos_token }}{% for m in messages %}{{ '<|head|>' + m.role + '<|/head|>\\n\\n' }}
{% if m.role == 'assistant' %}«{{ m.content | trim + '<|eot|>' }}»
{% else %}{{ m.content | trim + '<|eot|>' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\\n\\n' }}{% endif %}"""
DEFAULT_SYSTEM = """{% if messages[0].role != 'system' %}
{{ '<|start|>system\\nBe kind.<|end|>\\n' }}{% endif %}
{% for m in messages %}{{ '<|start|>' + m.role + '\\n' }}
{% if m.role == 'assistant' %}«{{ m.content + '<|end|>\\n' }}»
{% else %}{{ m.content + '<|end|>\\n' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"""
NO_SYSTEM = """{{ bos_token }}
{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}
{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles alternate') }}{% endif %}
{% if m.role == 'assistant' %}{{ '<turn>model\\n' }}«{{ m.content | trim + '</turn>\\n' }}»
{% else %}{{ '<turn>user\\n' + m.content | trim + '</turn>\\n' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}"""
CLOSED_AS_A_WHOLE = """{% for m in messages %}{{ '<|' + m.role + '|>\\n' }}
{% if m.role == 'assistant' %}«{{ m.content + '<|end|>\\n' }}»
{% else %}{{ m.content + '<|end|>\\n' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}«{{ eos_token }}»{% endif %}"""
BARE = """{% for m in messages %}{{ m.role + ': ' }}
{% if m.role == 'assistant' %}«{{ m.content + eos_token }}»{% else %}{{ m.content }}{% endif %}
{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""
# Takes the chain of thought out of every answer but the last, and opens one for an answer.
FORGETS = """{% for m in messages %}{{ '<|start|>' + m.role + '\\n' }}{% set t = m.content %}
{% if m.role == 'assistant' and not loop.last %}{% set t = t.split('</think>')[-1] %}{% endif %}
{{ t + '<|end|>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|start|>assistant\\n<think>' }}{% endif %}"""
ENDLESS = """{% for m in messages %}{{ '\\n' + m.role + ': ' + m.content }}{% endfor %}
{% if add_generation_prompt %}{{ '\\nassistant: ' }}{% endif %}"""
DATED = "{{ strftime_now('%Y-%m-%d') }}{{ ' ' + date_string }}" + ENDLESS

ONE = [("user", "What is 1 + 1?"), ("assistant", "2 \U0001f600")]
SYSTEM = [("system", "Be brief."), ("user", "Hi\n"), ("assistant", " Hello\n"),
          ("user", "assistant: And?"), ("assistant", "And?")]  # fmt: skip
# What ends a turn, and what begins it, holds these answers too.
SHORT = [("user", "Say d."), ("assistant", "d"), ("user", "end"), ("assistant", "end")]
THOUGHT = [("user", "Hi"), ("assistant", "<think>hm</think>Hello"), ("user", "Hi"),
           ("assistant", "<think>so</think>Hello")]  # fmt: skip


def conversation(turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def make_tokenizer(template=None, bos="<s>", eos="</s>"):
    """Byte-level BPE of a few merges, blanks and line ends among them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=340, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    made.train_from_iterator(["assistant: Hello\n\n user\n\nBe brief."] * 9, trainer)
    made.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=bos, eos_token=eos, chat_template=template
    )


def unmarked(template):
    return template.replace("\n", "").replace("«", "").replace("»", "")


def marked(template):
    opened = template.replace("\n", "").replace("«", "{% generation %}")
    return opened.replace("»", "{% endgeneration %}")


def masked(tokenizer, example):
    """(ids, whether each is learned) by transformers' own marks."""
    made = tokenizer.apply_chat_template(
        example["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return made["input_ids"], [bool(mark) for mark in made["assistant_masks"]]


def learned(tokens, tokenizer):
    return tokenizer.decode([label for label in tokens["labels"] if label != IGNORED])


def spell(example, tokenizer, seq_len=4096):
    unfolded = unfold([example], "chat", tokenizer, seq_len)
    return tokenise(unfolded.pieces, "chat", tokenizer, seq_len)


FIVE = [HEADERS, DEFAULT_SYSTEM, NO_SYSTEM, CLOSED_AS_A_WHOLE, BARE]


@pytest.mark.parametrize(
    "turns", [ONE, SYSTEM, SHORT, THOUGHT], ids=["one", "system", "short", "thought"]
)
@pytest.mark.parametrize("template", FIVE, ids=["headers", "default", "gemma", "closed", "bare"])
def test_answers_are_learned_as_the_marks_of_a_template_say(template, turns):
    if template is NO_SYSTEM and turns is SYSTEM:
        turns = SYSTEM[1:]
    example = conversation(turns)
    plain, reference = make_tokenizer(unmarked(template)), make_tokenizer(marked(template))
    ids, mask = masked(reference, example)
    [made] = spell(example, plain)
    assert made["input_ids"] == ids
    assert [label != IGNORED for label in made["labels"]] == mask
    assert all(label in (IGNORED, i) for label, i in zip(made["labels"], ids, strict=True))


def test_what_is_learned_of_a_conversation_is_its_answers_with_their_ends():
    tokenizer = make_tokenizer(unmarked(DEFAULT_SYSTEM))
    [made] = spell(conversation(SYSTEM), tokenizer)
    assert learned(made, tokenizer) == " Hello\n<|end|>\nAnd?<|end|>\n"
    weighted = conversation(SYSTEM)
    weighted["messages"][2]["weight"] = 0
    assert learned(spell(weighted, tokenizer)[0], tokenizer) == "And?<|end|>\n"


WITH_ALL = [*FIVE, FORGETS, ENDLESS, DATED]


@pytest.mark.parametrize("turns", [ONE, SYSTEM, SHORT, THOUGHT, [("assistant", "Hi"), *ONE]])
@pytest.mark.parametrize("template", WITH_ALL)
def test_a_conversation_is_spelled_by_its_roles_pattern_as_by_its_prefixes(template, turns):
    """The second is of the same contents after the roles' pattern is known."""
    tokenizer, example = make_tokenizer(unmarked(template)), conversation(turns)
    try:
        whole = render(example["messages"], tokenizer, None)
        long_way = spell_by_prefixes(example["messages"], whole, tokenizer, None)
    except TemplateRefuses:
        with pytest.raises(TemplateRefuses):
            spell_chat(example, tokenizer)
        return
    assert spell_chat(example, tokenizer) == long_way == spell_chat(example, tokenizer)


def test_patterns_are_used_where_a_template_has_one_and_not_where_it_rewrites():
    roles = tuple((role, role == "assistant") for role, _ in SYSTEM)
    for template, has_one in ((DEFAULT_SYSTEM, True), (HEADERS, True), (FORGETS, False)):
        tokenizer = make_tokenizer(unmarked(template))
        assert bool(find_pattern(tokenizer, tokenizer.chat_template, roles)) == has_one
    tokenizer = make_tokenizer(unmarked(HEADERS))
    pattern = find_pattern(tokenizer, tokenizer.chat_template, roles)
    whole = render(conversation(SYSTEM)["messages"], tokenizer, None)
    assert pattern.fill([content for _, content in SYSTEM], whole) is None  # it trims them


ODD = [("user", " é\U0001f600\n\n"), ("assistant", "\n\n\U0001f600é e\u0301  ñ\n"),
       ("user", "<|end|>"), ("assistant", "好 <|end|> 7\u2003")]  # fmt: skip


@pytest.mark.parametrize("changes", [None, "a normalizer", "a cut"])
def test_tokens_are_found_by_their_bytes_as_by_their_places(monkeypatch, changes):
    """A tokenizer that changes texts, or gives part of their tokens, has no such bytes."""
    from tokenizers import normalizers

    tokenizer = make_tokenizer(unmarked(BARE))
    if changes == "a normalizer":
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    if changes == "a cut":
        tokenizer("a b c d e f", truncation=True, max_length=3)
    pieces = [spell_chat(conversation(turns), tokenizer)[0] for turns in (ONE, ODD, SYSTEM)]
    assert any(tokenise_bytes(pieces, tokenizer)) == (changes is None)
    made = tokenise_spelled(pieces, tokenizer, 4096)
    monkeypatch.setattr(tokens, "token_byte_counts", lambda tokenizer: None)
    by_places = tokenise_spelled(pieces, tokenizer, 4096)
    assert made == by_places and [m.learned for m in made] == [m.learned for m in by_places]


def test_the_prompt_of_a_short_answer_ends_before_it():
    tokenizer = make_tokenizer(unmarked(DEFAULT_SYSTEM))
    prompt, answer = prompt_and_answer(conversation(SHORT), "chat", tokenizer)
    assert prompt.endswith("end<|end|>\n<|start|>assistant\n") and answer == "end"


def test_a_template_that_rewrites_earlier_turns_gives_one_example_an_answer():
    tokenizer = make_tokenizer(unmarked(FORGETS))
    unfolded = unfold([conversation(ONE), conversation(THOUGHT)], "chat", tokenizer, 4096)
    assert (unfolded.of, unfolded.divided) == ([0, 1, 1], 1)
    one, first, second = tokenise(unfolded.pieces, "chat", tokenizer, 4096)
    assert learned(one, tokenizer) == "2 \U0001f600<|end|>\n"
    # The prompt for an answer holds the opening of its chain of thought: it is not the model's.
    assert learned(first, tokenizer) == "hm</think>Hello<|end|>\n"
    assert learned(second, tokenizer) == "so</think>Hello<|end|>\n"
    assert "hm" not in tokenizer.decode(second["input_ids"])
    assert tokenise([conversation(THOUGHT)], "chat", tokenizer, 4096) == [second]
    told = tell_lengths([conversation(THOUGHT)] * 3, "auto", tokenizer, 4096)
    assert "3 conversations of which the template rewrites earlier turns" in told


def test_a_template_without_an_end_of_turn_gets_the_end_of_the_sequence():
    tokenizer = make_tokenizer(unmarked(ENDLESS))
    [made] = spell(conversation(SYSTEM), tokenizer)
    assert learned(made, tokenizer) == " Hello\nAnd?</s>"
    told = tell_lengths([conversation(ONE)], "chat", tokenizer, 4096)
    assert "1 that the template ends with nothing" in told


def test_a_template_writes_no_date_of_today():
    [made] = spell(conversation(ONE), tokenizer := make_tokenizer(unmarked(DATED)))
    assert tokenizer.decode(made["input_ids"]).startswith("2024-07-26 26 Jul 2024\nuser: What")


def test_conversations_that_a_template_refuses_are_counted_until_they_are_most(tmp_path):
    tokenizer = make_tokenizer(unmarked(NO_SYSTEM))
    good, bad = conversation(ONE), conversation(SYSTEM)
    unfolded = unfold([good, bad, good], "chat", tokenizer, 4096)
    assert unfolded.of == [0, 2] and unfolded.refused == {"no system": 1}
    with pytest.raises(StudyError, match=r"refuses 2 of 3 conversations \(no system\)") as caught:
        unfold([good, bad, bad], "chat", tokenizer, 4096)
    assert "alpaca or plain" in caught.value.remedy
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, [good, bad, good])))
    data = DataSettings(source=str(path), template="auto")
    made = prepare_data(data, TrainSettings(steps=1, seq_len=256), tokenizer, 0)
    assert (made.template, made.examples, made.skipped) == ("chat", 2, 1)


def test_auto_is_the_models_template_for_conversations_and_alpaca_for_the_rest():
    with_one, without = make_tokenizer(unmarked(BARE)), make_tokenizer()
    talk, alpaca = [conversation(ONE)], [{"instruction": "a", "input": "", "output": "b"}]
    assert resolve_template("auto", talk, with_one) == "chat"
    assert resolve_template("auto", talk, without) == "alpaca"
    assert resolve_template("auto", alpaca, with_one) == "alpaca"
    assert resolve_template("chat", [{"text": "a"}], without) == "plain"
    with pytest.raises(StudyError, match="the model's tokenizer has no chat template"):
        resolve_template("chat", talk, without)
    assert (
        spell(alpaca[0], with_one)[0]["input_ids"]
        == with_one("user: aassistant: b</s>")["input_ids"]
    )


def test_several_turns_without_a_template_of_the_models_own():
    tokenizer = make_tokenizer()
    [plain] = tokenise([conversation(SYSTEM)], "plain", tokenizer, 4096)
    text = "Be brief.\nHi\n Hello\n</s>\nassistant: And? And?</s>"
    assert tokenizer.decode(plain["input_ids"]) == text
    assert learned(plain, tokenizer) == " Hello\n</s> And?</s>"
    [alpaca] = tokenise([conversation(SYSTEM)], "alpaca", tokenizer, 4096)
    assert learned(alpaca, tokenizer) == " Hello\n</s>And?</s>"
    assert tokenizer.decode(alpaca["input_ids"]).startswith("Be brief.\n\nBelow is an instruction")
    single, dictionary = (
        conversation(ONE),
        {"instruction": ONE[0][1], "input": "", "output": ONE[1][1]},
    )
    for template in ("alpaca", "plain"):
        both = tokenise([single, dictionary], template, tokenizer, 4096)
        assert both[0] == both[1]


def test_prompt_and_answer_are_one_text_without_the_end():
    tokenizer = make_tokenizer(unmarked(HEADERS))
    prompt, answer = prompt_and_answer(conversation(SYSTEM), "auto", tokenizer)
    assert answer == "And?" and prompt.endswith("<|head|>assistant<|/head|>\n\n")
    assert prompt.startswith("<s><|head|>system") and "Hello<|eot|>" in prompt
    assert prompt_and_answer(conversation(ONE), "plain", tokenizer) == (ONE[0][1], " 2 \U0001f600")
    assert prompt_and_answer({"text": "a"}, "auto", tokenizer) == ("", "a")


def test_answers_are_cut_and_prompts_that_fill_a_row_teach_nothing():
    tokenizer = make_tokenizer(unmarked(DEFAULT_SYSTEM))
    [whole] = spell(conversation(SYSTEM), tokenizer)
    first = next(i for i, label in enumerate(whole["labels"]) if label != IGNORED)
    [none] = spell(conversation(SYSTEM), tokenizer, first)
    [some] = spell(conversation(SYSTEM), tokenizer, first + 1)
    assert none is None and some.cut and not whole.cut
    assert some == {name: whole[name][: first + 1] for name in whole}


class WithoutPlaces:
    """A tokenizer that does not say where in the text its tokens are."""

    is_fast = False

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, texts, **options):
        return {"input_ids": self.tokenizer(texts, **options)["input_ids"]}


def test_a_tokenizer_without_places_learns_the_same_tokens():
    fast = make_tokenizer(unmarked(DEFAULT_SYSTEM))
    assert isinstance(unfold([conversation(SYSTEM)], "chat", fast, 99).pieces[0], Spelled)
    assert spell(conversation(SYSTEM), WithoutPlaces(fast)) == spell(conversation(SYSTEM), fast)


FAMILIES = {  # TRL's name -> the tokens that begin and end a sequence
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "qwen3": ("<|endoftext|>", "<|im_end|>"),
    "gemma": ("<bos>", "<eos>"),
    "gemma3": ("<bos>", "<eos>"),
    "phi3": ("<|endoftext|>", "<|endoftext|>"),
    "lfm2": ("<bos>", "<|im_end|>"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_real_templates_are_learned_as_trl_masks_them(family):
    found = importlib.util.find_spec("trl")
    if found is None:
        pytest.skip("needs TRL's folder of templates")
    folder = Path(found.submodule_search_locations[0]) / "chat_templates"
    own, training = (
        make_tokenizer((folder / f"{family}{kind}.jinja").read_text(), *FAMILIES[family])
        for kind in ("", "_training")
    )
    for turns in (ONE, SYSTEM[1:] if family == "gemma" else SYSTEM, THOUGHT):
        example = conversation(turns)
        ids, mask = masked(training, example)
        made = spell(example, own)
        if len(made) == 1:
            assert made[0]["input_ids"] == ids
            assert [label != IGNORED for label in made[0]["labels"]] == mask
        else:  # Qwen 3 rewrites earlier turns; TRL's template does not
            wanted = [i for i, mark in zip(ids, mask, strict=True) if mark]
            assert [i for t in made for i in t["labels"] if i != IGNORED] == wanted
