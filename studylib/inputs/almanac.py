"""The ladder's world: a made-up almanac whose facts no model can know unless it was taught them.

Every fact gives one property of one entity one of 16 values. Sixteen subjects stand in four
categories, as in MMLU, and the facts come in two halves that share no entity: the OLD half, which
the bundled models know by heart, and the NEW half, which fine-tuning teaches. Names of both halves
follow one syllable grammar. Every value is drawn by itself: nothing about a fact follows from
others, so a model that was not taught a fact stands at chance on its question, 1 in 4. A study
teaches and asks USUAL_FACTS of the NEW half; the rest of it lets one ask how much can be learned.
Larger models know, and are taught, more: each half goes on to LARGEST_HALF facts when asked.

Fine-tuning tells a fact in three wordings (STATEMENTS). The question's wording (QUESTION) occurs in
no training text at all, neither in fine-tuning nor in the making of the bundled models, though
each of its words does: the bundled models read the OLD half in some more wordings (OLD_STATEMENTS).

The shifted language is the deep shift: OLD facts retold in words that no native text uses (function
words, nouns, properties and values; names stay) and in another order. The tokenizer keeps an entry
for each such word; the bundled models never read one, and know of it only that it never came next.

Three parts keep tuning and testing apart. Each fact belongs to one of
  test        asked in the study's results;
  validation  taught like the others, asked only to choose a learning rate (a fifth of the facts);
  untold      the shifted language only: never retold, but asked, so that a right answer shows that
              the language was learned and not only its sentences (a fifth of the facts). In the
              native language these facts belong to test.

Not covered: training (ladder.py) and scoring (lm-eval, by the text of the choices, 0 shots).
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError
from studylib.core.places import PACKAGE
from studylib.inputs.rungs import USUAL_FACTS, built_folder

BUNDLED = PACKAGE / "bundled"
HALVES = ("old", "new")
LANGUAGES = ("native", "shifted")
PARTS = ("test", "validation", "untold")
ENTITIES_PER_SUBJECT = {"old": 10, "new": 40}
PROPERTIES_PER_SUBJECT = 5
LARGEST_HALF = 40_000

# category: {subject: noun}
SUBJECTS = {
    "stem": {"comets": "comet", "engines": "engine", "herbs": "herb", "glaciers": "glacier"},
    "humanities": {"painters": "painter", "poems": "poem", "temples": "temple", "saints": "saint"},
    "social_sciences": {"towns": "town", "guilds": "guild", "courts": "court", "fairs": "fair"},
    "other": {"rivers": "river", "islands": "island", "ships": "ship", "inns": "inn"},
}

# property: its 16 values
VALUES = {
    name: tuple(words.split())
    for name, words in {
        "colour": "red blue green white black grey amber violet scarlet ivory azure crimson brown"
        " yellow purple golden",
        "beast": "wolf bear otter lynx stag boar hare fox badger ram goat bull mole seal ox weasel",
        "bird": "heron crane owl raven swift finch eagle gull stork lark robin falcon swan magpie"
        " wren dove",
        "tree": "oak elm ash birch pine cedar willow maple beech alder yew larch poplar rowan hazel"
        " cypress",
        "flower": "rose lily iris tulip daisy poppy lotus aster orchid peony thistle clover jasmine"
        " primrose lavender marigold",
        "fruit": "apple pear plum fig quince cherry peach lemon grape melon date apricot currant"
        " mango medlar damson",
        "trade": "smith baker weaver potter tanner mason cooper miller dyer fletcher glazier"
        " saddler brewer joiner cobbler chandler",
        "instrument": "flute harp drum lute viol horn bell fiddle lyre zither oboe bagpipe cymbal"
        " gong whistle organ",
        "cloth": "linen silk wool velvet cotton felt satin lace hemp tweed damask canvas muslin"
        " flannel brocade serge",
        "stone": "ruby opal jade topaz garnet beryl agate onyx pearl quartz marble granite slate"
        " basalt flint amethyst",
        "weather": "rain snow fog hail frost sleet thunder drizzle gale mist dew drought breeze"
        " storm cloud rainbow",
        "dish": "soup bread stew pie cheese porridge honey pickle dumpling omelette sausage pancake"
        " pudding noodle broth biscuit",
    }.items()
}

# A statement is an instruction up to the value; the value is the output.
STATEMENTS = (
    "The {property} of the {noun} {name} is the",
    "In the almanac the {noun} {name} has for its {property} the",
    "Seek the {noun} {name} and you will find as {property} the",
)
OLD_STATEMENTS = (
    *STATEMENTS,
    "What the {noun} {name} was given as its {property} is the",
    "Known to belong to the {noun} {name} as a {property}: the",
    "It is said that to the {noun} {name} was given a {property}, the",
    "If you ask which {property} the {noun} {name} will have, it is the",
    "Which {noun} is {name}? It is known for its {property}, the",
)
QUESTION = "Which {property} was given to the {noun} {name}? It is the"

# The same in the shifted language. {f0}... are its function words; the property comes last.
SHIFTED_STATEMENTS = (
    "{f0} {name} {noun} {f1} {property} {f2}",
    "{f3} {noun} {name} {f4} {f5} {property} {f2}",
    "{name} {f6} {noun} {f7} {f1} {property} {f8}",
)
SHIFTED_QUESTION = "{f3} {name} {noun} {f7} {f5} {property} {f8}"
FUNCTION_WORDS = 9

_ONSETS = "bdfghklmnprstv"
_VOWELS = "aeiou"
_CODAS = ["", "l", "n", "r", "s"]


@dataclass(frozen=True)
class Fact:
    """One property of one entity. `index` is its place in its half, dealt over the subjects."""

    half: str
    index: int
    category: str
    subject: str
    noun: str
    name: str
    property: str
    value: str
    fold: int  # 0-4: 0 is validation, 1 is untold in the shifted language

    def part(self, language: str) -> str:
        """The part that this fact's question belongs to in this language."""
        if self.fold == 0:
            return "validation"
        return "untold" if self.fold == 1 and language == "shifted" else "test"


@dataclass(frozen=True)
class Almanac:
    """The first facts of a seed, and the shifted language's word for each native one."""

    seed: int
    facts: tuple[Fact, ...]
    shifted: dict[str, str]

    def half(self, half: str, n_facts: int | None = None) -> list[Fact]:
        """The first `n_facts` facts of a half (USUAL_FACTS if None); StudyError if it has fewer."""
        _check(half, HALVES, "half")
        facts = [fact for fact in self.facts if fact.half == half]
        n_facts = USUAL_FACTS if n_facts is None else n_facts
        if not 1 <= n_facts <= LARGEST_HALF:
            rule = f"the {half} half of the almanac has {LARGEST_HALF} facts"
            raise StudyError(n_facts, rule, f"Ask for 1 to {LARGEST_HALF} facts")
        further = _further_facts(self.seed)[half] if n_facts > len(facts) else []
        return (facts + further)[:n_facts]


def build_almanac(seed: int = 0) -> Almanac:
    """The almanac of this seed; any first so many facts of a half cover all subjects."""
    rng = random.Random(f"almanac-{seed}")
    names = sample_names(rng, len(subject_list()) * sum(ENTITIES_PER_SUBJECT.values()))
    properties = {
        subject: rng.sample(sorted(VALUES), PROPERTIES_PER_SUBJECT)
        for _, subject, _ in subject_list()
    }
    facts: list[Fact] = []
    for half in HALVES:
        facts += _half_facts(half, range(ENTITIES_PER_SUBJECT[half]), properties, names, rng)
    return Almanac(seed, tuple(facts), _shifted_words(seed))


def subject_list() -> list[tuple[str, str, str]]:
    """(category, subject, noun) of each subject, in the order of SUBJECTS."""
    return [(c, s, noun) for c, subjects in SUBJECTS.items() for s, noun in subjects.items()]


def sample_names(rng: random.Random, count: int) -> list[str]:
    """`count` different names of three syllables, in the order drawn."""
    names: dict[str, None] = {}
    while len(names) < count:
        syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(3)]
        names["".join(syllables).capitalize() + rng.choice(_CODAS)] = None
    return list(names)


def native_words() -> list[str]:
    """Every word of native text that is not a name, punctuation cut off."""
    texts = [*OLD_STATEMENTS, QUESTION]
    words = {word.strip("?,:") for text in texts for word in text.split() if "{" not in word}
    words |= {noun for _, _, noun in subject_list()} | set(VALUES)
    return sorted(words | {value for values in VALUES.values() for value in values})


def training_examples(
    almanac: Almanac,
    half: str,
    n_facts: int | None = None,
    language: str = "native",
    seed: int = 0,
) -> list[dict[str, str]]:
    """Three examples a fact in Alpaca form, shuffled by `seed`; the output is the value alone.

    To be read as instruction + " " + output + end of text. In the shifted language only OLD facts
    are told, and the untold ones among the first `n_facts` are left out. StudyError for an unknown
    half or language, or more facts than the half has.
    """
    facts = [f for f in _facts(almanac, half, n_facts, language) if f.part(language) != "untold"]
    wordings = STATEMENTS if language == "native" else SHIFTED_STATEMENTS
    examples = [
        {
            "instruction": tell_fact(almanac, fact, wording, language),
            "input": "",
            "output": _word(almanac, fact.value, language),
        }
        for fact, wording in product(facts, wordings)
    ]
    random.Random(f"examples-{almanac.seed}-{seed}").shuffle(examples)
    return examples


def questions(
    almanac: Almanac,
    half: str,
    n_facts: int | None = None,
    language: str = "native",
    part: str | None = None,
) -> list[dict[str, Any]]:
    """One four-choice question a fact, as MMLU's JSON lines, plus category; all parts if None.

    `answer` is the right choice's place, each place equally often; the wrong choices are other
    values of the same property. A fact's question is the same whatever `n_facts` is, so that
    results with different numbers of facts are paired. `i` is the fact's place in its half.
    To be scored by the text " " + choice after the question. Errors as in training_examples.
    """
    if part is not None:
        _check(part, PARTS, "part")
    facts = _facts(almanac, half, n_facts, language)
    wording = QUESTION if language == "native" else SHIFTED_QUESTION
    parts = [part] if part is not None else PARTS
    places = {p: _answer_places(f"{almanac.seed}-{half}-{language}-{p}") for p in PARTS}
    asked = [(fact, next(places[fact.part(language)])) for fact in facts]
    return [
        {
            "subject": fact.subject,
            "category": fact.category,
            "i": fact.index,
            "question": tell_fact(almanac, fact, wording, language),
            "choices": _choices(almanac, fact, place, language),
            "answer": place,
        }
        for fact, place in asked
        if fact.part(language) in parts
    ]


def tell_fact(almanac: Almanac, fact: Fact, wording: str, language: str) -> str:
    """The wording filled with a fact, up to the value."""
    words = {
        "noun": _word(almanac, fact.noun, language),
        "property": _word(almanac, fact.property, language),
    }
    functions = {f"f{k}": almanac.shifted[f"f{k}"] for k in range(FUNCTION_WORDS)}
    return wording.format(name=fact.name, **words, **functions)


def ladder_names() -> list[str]:
    """The bundled models, smallest first, as a profile names them after `ladder:`."""
    folders = sorted(BUNDLED.glob("ladder-*m"), key=lambda f: float(f.name[len("ladder-") : -1]))
    return [folder.name[len("ladder-") :] for folder in folders]


def ladder_folder(name: str) -> Path:
    """The folder of a bundled model such as "0.4m", or of a larger one that was built here."""
    return BUNDLED / f"ladder-{name}" if name in ladder_names() else built_folder(name)


@lru_cache(maxsize=1)
def _further_facts(seed: int) -> dict[str, list[Fact]]:
    """What follows the first facts of each half, about entities that neither half has so far."""
    first = build_almanac(seed).facts
    round_ = first[: len(subject_list()) * PROPERTIES_PER_SUBJECT]
    properties = {s: [f.property for f in round_ if f.subject == s] for _, s, _ in subject_list()}
    rng, known = random.Random(f"further-{seed}"), {fact.name for fact in first}
    entities = LARGEST_HALF // PROPERTIES_PER_SUBJECT  # of a half, the first ones included
    names = [name for name in sample_names(rng, 2 * entities + len(known)) if name not in known]
    rounds = {h: range(ENTITIES_PER_SUBJECT[h], entities // len(subject_list())) for h in HALVES}
    return {h: list(_half_facts(h, rounds[h], properties, names, rng)) for h in HALVES}


def _half_facts(
    half: str, rounds: range, properties: dict[str, list[str]], names: list[str], rng: random.Random
) -> Iterator[Fact]:
    """Facts of one more entity of every subject a round; takes the names that it uses."""
    subjects = subject_list()
    index = rounds.start * len(subjects) * PROPERTIES_PER_SUBJECT
    for e in rounds:
        own = [names.pop() for _ in subjects]
        for p, s in product(range(PROPERTIES_PER_SUBJECT), range(len(subjects))):
            category, subject, noun = subjects[s]
            prop, fold = properties[subject][p], (e + p + s) % 5
            value = rng.choice(VALUES[prop])
            yield Fact(half, index, category, subject, noun, own[s], prop, value, fold)
            index += 1


def _shifted_words(seed: int) -> dict[str, str]:
    """Native word -> shifted word; letters q, x and z keep them apart from names and English."""
    rng = random.Random(f"shifted-{seed}")
    native = [noun for _, _, noun in subject_list()] + [v for vs in VALUES.values() for v in vs]
    native += [*VALUES, *(f"f{k}" for k in range(FUNCTION_WORDS))]
    coined = [
        a + b + c + d for a, b, c, d in product("qxz", "aeiou", "qxz", ("a", "o", "un", "ir"))
    ]
    coined += [
        a + b + c for a, b, c in product("qxz", "aeiou", ("qqa", "xxo", "zzu", "xqe", "zqi"))
    ]
    return dict(zip(sorted(set(native)), rng.sample(coined, len(set(native))), strict=True))


def _word(almanac: Almanac, word: str, language: str) -> str:
    return word if language == "native" else almanac.shifted[word]


def _facts(almanac: Almanac, half: str, n_facts: int | None, language: str) -> list[Fact]:
    _check(language, LANGUAGES, "language")
    if language == "shifted" and half != "old":
        rule = "the shifted language retells OLD facts only"
        raise StudyError(half, rule, 'Use half "old" with it')
    return almanac.half(half, n_facts)


def _answer_places(key: str) -> Iterator[int]:
    rng = random.Random(f"places-{key}")
    while True:
        yield from rng.sample(range(4), 4)


def _choices(almanac: Almanac, fact: Fact, place: int, language: str) -> list[str]:
    rng = random.Random(f"choices-{almanac.seed}-{fact.half}-{fact.index}")
    choices = rng.sample([v for v in VALUES[fact.property] if v != fact.value], 3)
    choices.insert(place, fact.value)
    return [_word(almanac, choice, language) for choice in choices]


def _check(value: str, known: tuple[str, ...], what: str) -> None:
    if value not in known:
        raise StudyError(value, f"unknown {what} of the almanac", f"Use one of: {', '.join(known)}")
