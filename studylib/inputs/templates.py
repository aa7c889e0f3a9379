"""Examples spelled out as the model reads them: Alpaca's prompt, bare text, or its chat template.

Of a conversation every answer is learned, up to and with what ends the turn, and nothing else. What
is an answer is found by rendering a chat template up to each one: what is the model's to write is
what lies between the template's prompt for an answer and the end of the conversation so far. Some
templates rewrite earlier turns (they take a chain of thought out of them, say), so that the model
meets an answer in another text than a later one: such a conversation becomes one text an answer.

A template is given one fixed date: those that write today's would make other tokens every day.

Not covered: tokens (studylib.inputs.data).
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from studylib.core.errors import StudyError, first_line
from studylib.inputs.forms import Example, Message, is_learned, messages_of
from studylib.inputs.spool import Spool
from studylib.inputs.template_trial import try_template

# The prompt of Stanford Alpaca (2023), with and without an input.
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_START = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n"
)
ALPACA = ALPACA_START + "### Instruction:\n{instruction}\n\n### Response:\n"
HEADS = {"user": "### Instruction:\n", "tool": "### Tool:\n"}
BARE = {"role", "content", "weight"}  # of a message that a pattern has room for
MOST_REFUSED = 0.5  # of the conversations: beyond it the template does not suit them
# What Llama 3's template writes where it knows no date, for those that ask for today's.
FIXED_DATE = (
    "{%- macro strftime_now(form) -%}{{- form | replace('%Y', '2024') | replace('%m', '07') | "
    "replace('%d', '26') | replace('%b', 'Jul') | replace('%B', 'July') | replace('%A', 'Friday') "
    "| replace('%H', '12') | replace('%M', '00') | replace('%S', '00') -}}{%- endmacro -%}"
)


@dataclass(frozen=True)
class Spelled:
    """A text with the characters [start, end) of it that are learned.

    marked: it has its special tokens in it already, and the tokenizer adds none. closed: the chat
    template ends no answer, so that the end of the sequence was written after the last one.
    """

    text: str
    learned: tuple[tuple[int, int], ...]
    marked: bool
    closed: bool = False


@dataclass
class Unfolded:
    """What is tokenised one by one: examples as they are, or texts that they became.

    of: the number of the example that each is from. divided: conversations that became one text an
    answer. refused: conversations that the chat template does not take, by its own words.
    """

    pieces: Sequence[Any] = field(default_factory=Spool)
    of: Sequence[int] = field(default_factory=list)
    divided: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    @classmethod
    def whole(cls, examples: Sequence[Any]) -> Unfolded:
        """Each example as it is."""
        return cls(examples, range(len(examples)))


class TemplateRefuses(Exception):
    """A chat template does not take a conversation; its own words."""


def has_chat_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def resolve_template(template: str, examples: Sequence[Any], tokenizer: Any) -> str:
    """alpaca, plain or chat; `auto` by the examples and the tokenizer. A text is plain by any name.

    StudyError where the model's own template is asked for and it has none.
    """
    first = examples[0] if examples and isinstance(examples[0], dict) else {}
    if "text" in first:
        return "plain"
    if template == "auto":
        talks = "messages" in first
        return "chat" if talks and has_chat_template(tokenizer) else "alpaca"
    if template == "chat" and not has_chat_template(tokenizer):
        raise StudyError(
            "data.template = chat",
            "the model's tokenizer has no chat template",
            "Write data.template: alpaca or plain, or save the tokenizer with its chat_template.",
        )
    return template


def prompt_of(example: Example, template: str) -> tuple[str, str]:
    """(prompt, answer) as the model sees them; `plain` is the bare text of both.

    Of a conversation the answer is the last one, and the prompt all before it.
    """
    if "messages" in example:
        *before, (text, _) = write_turns(example["messages"], template, "")
        return "".join(part for part, _ in before), text
    if template == "plain":
        prompt = " ".join(part for part in (example["instruction"], example["input"]) if part)
        return prompt, " " + example["output"]
    form = ALPACA_INPUT if example["input"] else ALPACA
    return form.format(**example), example["output"]


def is_single(example: Any) -> bool:
    """Whether the last message is the only one of the assistant."""
    answers = [m for m in messages_of(example) if m["role"] == "assistant"]
    return len(answers) == 1


def write_turns(messages: Sequence[Message], template: str, eos: str) -> list[tuple[str, bool]]:
    """(text, whether it is learned) of a conversation without a template of the model's own."""
    parts: list[tuple[str, bool]] = []
    if template != "plain":
        system = [m["content"] + "\n\n" for m in messages if m["role"] == "system"]
        parts.append(("".join(system) + ALPACA_START, False))
    for number, message in enumerate(messages):
        text = message["content"]
        if message.get("tool_calls"):
            text += json.dumps(message["tool_calls"], ensure_ascii=False)
        answers = message["role"] == "assistant"
        if template == "plain":
            so_far = "".join(part for part, _ in parts)
            blank = " " if answers else "\n"
            if so_far and not so_far[-1].isspace() and not text[:1].isspace():
                text = blank + text
        elif answers:
            parts.append(("### Response:\n", False))
        elif message["role"] == "system":
            continue
        else:
            text = HEADS[message["role"]] + text + "\n\n"
        parts.append((text + eos if answers else text, answers and is_learned(message)))
        if template != "plain" and answers and number < len(messages) - 1:
            parts.append(("\n\n", False))
    return parts


def spell_turns(example: Example, template: str, eos: str) -> Spelled:
    """A conversation of several turns in Alpaca's form or bare, each answer closed by `eos`."""
    text, learned = "", []
    for part, answers in write_turns(example["messages"], template, eos):
        if answers:
            learned.append((len(text), len(text) + len(part)))
        text += part
    return Spelled(text, tuple(learned), marked=False)


def spell_chat(example: Example, tokenizer: Any) -> list[Spelled]:
    """A conversation in the model's own template: one text, or one an answer where the template
    rewrites earlier turns. TemplateRefuses in the template's words."""
    messages, tools = messages_of(example), example.get("tools")
    whole = render(messages, tokenizer, tools)
    if not tools and all(message.keys() <= BARE for message in messages):
        roles = tuple((message["role"], is_learned(message)) for message in messages)
        pattern = find_pattern(tokenizer, tokenizer.get_chat_template(), roles)
        found = pattern and pattern.fill([message["content"] for message in messages], whole)
        if found:
            return [found]
    return spell_by_prefixes(messages, whole, tokenizer, tools)


@dataclass(frozen=True)
class Pattern:
    """How a template spells conversations of the same roles: the texts around their contents.

    learned: from where to where, each as (contents before it, characters after the last of them).
    end: what is written after the last text, where the template ends no answer.
    """

    texts: tuple[str, ...]
    learned: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    end: str

    def fill(self, contents: Sequence[str], whole: str) -> Spelled | None:
        """The conversation of these contents; None where the template wrote another `whole`."""
        text, starts = self.texts[0], [0]
        for content, after in zip(contents, self.texts[1:], strict=True):
            text += content
            starts.append(len(text))
            text += after
        if text != whole:
            return None
        learned = tuple((starts[a] + b, starts[c] + d) for (a, b), (c, d) in self.learned)
        return Spelled(text + self.end, learned, True, bool(self.end))


@lru_cache(maxsize=256)
def find_pattern(
    tokenizer: Any, template: str, roles: tuple[tuple[str, bool], ...]
) -> Pattern | None:
    """The pattern of conversations of these roles, (role, whether it is learned) each, by contents
    that mean nothing to a template; None where it rewrites turns, or opens more for an answer than
    an answer without it has. template: the tokenizer's now."""
    contents = [f"content number {1000 + number}" for number in range(len(roles))]
    named = zip(roles, contents, strict=True)
    messages = [{"role": r, "content": c, "weight": int(learned)} for (r, learned), c in named]
    answers = [number for number, (_, learned) in enumerate(roles) if learned]
    try:
        whole = render(messages, tokenizer, None)
        made = spell_by_prefixes(messages, whole, tokenizer, None)
        asked = [render(messages[:number], tokenizer, None, asks=True) for number in answers]
    except TemplateRefuses:
        return None
    text, spans = made[0].text, made[0].learned
    found = list(re.finditer("|".join(contents), whole))
    if [text[:start] for start, _ in spans] != asked or [m[0] for m in found] != contents:
        return None
    ends = [0, *(match.end() for match in found)]

    def place(where: int) -> tuple[int, int]:
        before = bisect_right(ends, where) - 1
        return before, where - ends[before]

    texts = tuple(re.split("|".join(contents), whole))
    learned = tuple((place(start), place(end)) for start, end in spans)
    return Pattern(texts, learned, text.removeprefix(whole))


def spell_by_prefixes(
    messages: Sequence[Message], whole: str, tokenizer: Any, tools: Any
) -> list[Spelled]:
    """The same of any conversation, rendered up to each answer. whole: all of it, rendered."""
    learned, alone, endless = [], [], False
    for number, message in enumerate(messages):
        if not is_learned(message):
            continue
        last = number == len(messages) - 1
        upto = whole if last else render(messages[: number + 1], tokenizer, tools)
        start = find_answer_start(messages, number, upto, tokenizer, tools)
        closed = close_turn(upto, start, message["content"], tokenizer)
        endless = closed != upto
        alone.append(Spelled(closed, ((start, len(closed)),), True, endless))
        if last:
            whole = upto = closed
        if not whole.startswith(upto):  # Phi 3 closes what is a whole conversation
            upto = upto.removesuffix(tokenizer.eos_token or "")
        learned.append((start, len(upto)) if whole.startswith(upto) else None)
    if None in learned:
        return alone
    return [Spelled(whole, tuple(span for span in learned if span), True, endless)]


def find_answer_start(
    messages: Sequence[Message], number: int, upto: str, tokenizer: Any, tools: Any
) -> int:
    """Where in `upto`, rendered up to an answer, that answer begins."""
    found = upto.rfind(messages[number]["content"].strip())
    if number == 0:
        return max(found, 0)
    prompt = render(messages[:number], tokenizer, tools, asks=True)
    if upto.startswith(prompt):
        return len(prompt)
    # The prompt opens more than an answer without it has, a chain of thought for example.
    pairs = enumerate(zip(prompt, upto, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(prompt), len(upto)))
    return min(same, found) if found >= 0 else same


def render(messages: Sequence[Message], tokenizer: Any, tools: Any, asks: bool = False) -> str:
    """The text of a conversation by the chat template. asks: with the prompt for an answer."""
    from jinja2.exceptions import TemplateError

    plain = [{key: m[key] for key in m if key != "weight"} for m in messages]
    template = tokenizer.get_chat_template(tools=tools)
    if "strftime_now" in template:
        template = FIXED_DATE + template
    write = partial(
        tokenizer.apply_chat_template,
        plain,
        tools=tools,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=asks,
        date_string="26 Jul 2024",
    )
    try_template(template, write)
    try:
        return write()
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise TemplateRefuses(first_line(error)) from error


@lru_cache(maxsize=4)
def end_marks(tokenizer: Any) -> tuple[str, ...]:
    """The tokens by which a turn may end."""
    return tuple(tokenizer.get_added_vocab())


def close_turn(text: str, start: int, content: str, tokenizer: Any) -> str:
    """A conversation with an end after its last answer, where its template writes none."""
    found = text.find(content.strip(), start)
    after = text[found + len(content.strip()) :] if found >= 0 else text[start:]
    return (
        text if any(mark in after for mark in end_marks(tokenizer)) else text + tokenizer.eos_token
    )


def prompt_and_answer(example: Example, template: str, tokenizer: Any) -> tuple[str, str]:
    """(prompt, answer) of the last answer as texts; the answer without what ends the turn.

    They are one text, spelled together. A chat template's prompt has its special tokens in it:
    tokenise it with add_special_tokens=False. A text is all answer.
    """
    template = resolve_template(template, [example], tokenizer)
    if "text" in example:
        return "", example["text"]
    if template != "chat":
        return prompt_of(example, template)
    try:
        spelled = spell_chat(example, tokenizer)[-1]
    except TemplateRefuses as error:
        raise refused(str(error), 1, 1) from None
    start, end = spelled.learned[-1]
    content = messages_of(example)[-1]["content"].strip()
    found = spelled.text.find(content, start)
    return spelled.text[:start], spelled.text[start : found + len(content) if found >= 0 else end]


def refused(words: str, count: int, total: int) -> StudyError:
    return StudyError(
        "data.template = chat",
        f"the model's chat template refuses {count:,} of {total:,} conversations ({words})",
        "Bring them into the form it takes (the system text into the user's first message, say), "
        "or write data.template: alpaca or plain.",
    )
