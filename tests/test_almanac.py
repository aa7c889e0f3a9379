"""The almanac is the world it promises to be: two halves, fair questions, and a language apart."""

import json
import re
from collections import Counter
from itertools import product

import pytest

from studylib.core.errors import StudyError
from studylib.inputs.almanac import (
    HALVES,
    OLD_STATEMENTS,
    QUESTION,
    SHIFTED_QUESTION,
    SHIFTED_STATEMENTS,
    STATEMENTS,
    SUBJECTS,
    VALUES,
    build_almanac,
    ladder_folder,
    ladder_names,
    questions,
    tell_fact,
    training_examples,
)

WORLDS = [("old", "native"), ("new", "native"), ("old", "shifted")]


@pytest.fixture(scope="module")
def almanac():
    return build_almanac(0)


def words_of(texts):
    return {word for text in texts for word in re.findall(r"\w+", text)}


def test_same_seed_gives_the_same_bytes_and_another_seed_another_world(almanac):
    def text(a):
        told = [training_examples(a, h, language=lang, seed=3) for h, lang in WORLDS]
        return json.dumps([told, [questions(a, h, language=lang) for h, lang in WORLDS]])

    assert text(almanac) == text(build_almanac(0))
    assert text(almanac) != text(build_almanac(1))


def test_halves_share_no_entity_and_no_fact_is_told_twice(almanac):
    old, new = almanac.half("old"), almanac.half("new", 3200)
    assert [f.half for f in almanac.facts] == ["old"] * 800 + ["new"] * 3200
    assert not {f.name for f in old} & {f.name for f in new}
    assert len({(f.name, f.property) for f in almanac.facts}) == len(almanac.facts)


def test_larger_halves_keep_the_first_facts_and_every_promise(almanac):
    old, new = almanac.half("old", 40_000), almanac.half("new", 40_000)
    assert old[:800] == almanac.half("old") and new[:3200] == almanac.half("new", 3200)
    assert [f.index for f in old] == [f.index for f in new] == list(range(40_000))
    names = [{f.name for f in half} for half in (old, new)]
    assert [len(n) for n in names] == [8_000, 8_000] and not names[0] & names[1]
    assert len({(f.name, f.property) for f in old + new}) == 80_000
    for half in (old, new):
        assert set(Counter(f.subject for f in half[:16_000]).values()) == {1_000}
        assert set(Counter(f.fold for f in half[:16_000]).values()) == {3_200}
    # Every subject keeps its properties, and their 16 values come equally often: 40,000 draws.
    assert {(f.subject, f.property) for f in new} == {(f.subject, f.property) for f in old[:80]}
    places = Counter(VALUES[f.property].index(f.value) for f in new)
    assert len(places) == 16 and all(abs(n - 2_500) < 4 * 2_500**0.5 for n in places.values())
    assert questions(almanac, "new", 4_000)[:3200] == questions(almanac, "new", 3200)
    assert build_almanac(1).half("new", 3_300)[3200:] != new[3200:3300]


def test_there_are_16_subjects_in_4_categories_and_16_values_a_property(almanac):
    subjects = {(f.category, f.subject) for f in almanac.facts}
    assert len(SUBJECTS) == 4 and len(subjects) == 16
    assert {len(set(values)) for values in VALUES.values()} == {16}
    every_value = [v for values in VALUES.values() for v in values]
    assert len(set(every_value)) == len(every_value)


def test_a_prefix_of_facts_covers_all_subjects_alike(almanac):
    for half in HALVES:
        counts = Counter(f.subject for f in almanac.half(half, 160))
        assert set(counts.values()) == {10}


def test_told_facts_give_no_hint_of_the_others(almanac):
    told = Counter((f.subject, f.property, f.value) for f in almanac.half("old"))
    properties = {f.index: f.property for f in almanac.half("new", 3200)}

    def commonest(q):
        counts = [told[q["subject"], properties[q["i"]], choice] for choice in q["choices"]]
        return counts.index(max(counts))

    asked = questions(almanac, "new", 3200)
    right = sum(commonest(q) == q["answer"] for q in asked) / len(asked)
    assert abs(right - 0.25) < 0.025  # three standard errors of 3,200 guesses at 1 in 4


@pytest.mark.parametrize(("half", "language"), WORLDS)
def test_a_fact_is_told_in_three_wordings_with_the_value_as_the_answer(almanac, half, language):
    told = training_examples(almanac, half, 160, language)
    facts = [f for f in almanac.half(half, 160) if f.part(language) != "untold"]
    assert len({e["instruction"] for e in told}) == len(told) == 3 * len(facts)
    assert all(set(e) == {"instruction", "input", "output"} and e["input"] == "" for e in told)
    answers = Counter(e["output"] for e in told)
    key = (lambda v: v) if language == "native" else almanac.shifted.get
    assert answers == Counter(key(f.value) for f in facts for _ in range(3))


@pytest.mark.parametrize(("half", "language"), WORLDS)
def test_the_questions_wording_is_in_no_training_text(almanac, half, language):
    asked = {q["question"] for q in questions(almanac, half, language=language)}
    told = {
        tell_fact(almanac, fact, wording, lang)
        for wordings, lang in ((OLD_STATEMENTS, "native"), (SHIFTED_STATEMENTS, "shifted"))
        for fact, wording in product(almanac.half(half), wordings)
    }
    assert len(asked) == len(almanac.half(half))
    assert not asked & told
    assert QUESTION not in OLD_STATEMENTS and SHIFTED_QUESTION not in SHIFTED_STATEMENTS
    assert set(STATEMENTS) < set(OLD_STATEMENTS)
    # New is the wording, not the words: each of them was read before.
    assert words_of([QUESTION]) <= words_of(OLD_STATEMENTS)
    assert words_of([SHIFTED_QUESTION]) <= words_of(SHIFTED_STATEMENTS)


@pytest.mark.parametrize(("half", "language"), WORLDS)
def test_answers_are_balanced_right_and_among_four_different_choices(almanac, half, language):
    facts = {f.index: f for f in almanac.half(half)}
    for part in ("test", "validation"):
        asked = questions(almanac, half, 800, language, part)
        places = Counter(q["answer"] for q in asked)
        assert set(places) == {0, 1, 2, 3} and max(places.values()) - min(places.values()) <= 1
        for q in asked:
            fact = facts[q["i"]]
            values = VALUES[fact.property]
            if language == "shifted":
                values = tuple(almanac.shifted[v] for v in values)
            assert len(set(q["choices"])) == 4 and set(q["choices"]) <= set(values)
            assert values.index(q["choices"][q["answer"]]) == VALUES[fact.property].index(
                fact.value
            )


@pytest.mark.parametrize(("half", "language"), WORLDS)
def test_parts_are_disjoint_and_together_all_facts(almanac, half, language):
    parts = {
        part: {q["i"] for q in questions(almanac, half, 800, language, part)}
        for part in ("test", "validation", "untold")
    }
    shifted = language == "shifted"
    sizes = {"test": 480 if shifted else 640, "validation": 160, "untold": 160 if shifted else 0}
    assert {part: len(found) for part, found in parts.items()} == sizes
    assert len(set.union(*parts.values())) == 800
    everything = questions(almanac, half, 800, language)
    assert {q["i"] for q in everything} == set(range(800))


def test_a_study_uses_800_facts_unless_told_otherwise(almanac):
    assert questions(almanac, "new") == questions(almanac, "new", 800)
    assert training_examples(almanac, "new") == training_examples(almanac, "new", 800)


def test_a_question_stays_the_same_however_many_facts_are_asked(almanac):
    few = questions(almanac, "new", 160, part="test")
    assert questions(almanac, "new", 800, part="test")[: len(few)] == few


def test_untold_facts_are_never_retold_in_the_shifted_language(almanac):
    untold = {f.name + f.property for f in almanac.half("old") if f.part("shifted") == "untold"}
    back = {shifted: native for native, shifted in almanac.shifted.items()}
    properties = set(VALUES)
    for example in training_examples(almanac, "old", language="shifted"):
        words = [back.get(w, w) for w in example["instruction"].split()]
        (prop,) = properties.intersection(words)
        (name,) = {w for w in words if w[0].isupper()}
        assert name + prop not in untold


def test_shifted_words_are_in_no_native_text_and_only_names_stay(almanac):
    native = [
        tell_fact(almanac, f, w, "native") + " " + f.value
        for f in almanac.facts
        for w in (*OLD_STATEMENTS, QUESTION)
    ]
    shifted = [
        f"{e['instruction']} {e['output']}"
        for e in training_examples(almanac, "old", language="shifted")
    ]
    shifted += [q["question"] for q in questions(almanac, "old", language="shifted")]
    assert len(set(almanac.shifted.values())) == len(almanac.shifted)
    assert not words_of(native) & set(almanac.shifted.values())
    assert words_of(shifted) & words_of(native) == {f.name for f in almanac.half("old")}


def test_bad_requests_name_the_value_and_what_there_is(almanac):
    for call, words in [
        (lambda: almanac.half("middle"), ("middle", "old, new")),
        (lambda: questions(almanac, "new", 50_000), ("50000", "40000")),
        (lambda: questions(almanac, "new", 0), ("0", "40000")),
        (lambda: questions(almanac, "new", part="dev"), ("dev", "validation")),
        (lambda: training_examples(almanac, "old", language="latin"), ("latin", "shifted")),
        (lambda: training_examples(almanac, "new", language="shifted"), ("new", "OLD")),
        (lambda: ladder_folder("7b"), ("ladder:7b", "ladder:0.4m")),
    ]:
        with pytest.raises(StudyError) as caught:
            call()
        assert all(word in str(caught.value) for word in words)


def test_ladder_names_are_the_bundled_folders_smallest_first():
    assert ladder_names() == ["0.4m", "1.4m"]
    assert all((ladder_folder(name) / "config.json").is_file() for name in ladder_names())
