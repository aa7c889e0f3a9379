"""The forms in which people keep examples, known by their keys, and the one that all become.

Inside, an example is a conversation ({"messages": [{"role", "content"}, …]}), a text ({"text"}), or
Alpaca's three texts ({"instruction", "input", "output"}), which are a conversation of two messages
and stay as they are because records hold hashes of them. A message with weight 0 is not learned.

A row that is no example is left out and counted, by the first reason found. A row of another form
than the rows before it is a fault: nobody can mean both.

Not covered: reading rows (studylib.inputs.rows), spelling examples (studylib.inputs.templates).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

Example = dict[str, Any]
Message = dict[str, Any]

KINDS = {bool: "true or false", list: "a list", dict: "an object"}
ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant",
    "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
ALSO_KEPT = ("name", "tool_calls", "tool_call_id", "reasoning_content")


class NoExample(Exception):
    """Why a row is no example, in words that go after `with`."""


@dataclass(frozen=True)
class Form:
    """One form: keys that its rows have, what it is called, what its examples are called, and how a
    row becomes (example, whether a number was taken as text)."""

    keys: tuple[str, ...]
    name: str
    noun: str
    read: Callable[[Mapping[str, Any]], tuple[Example, bool]]
    used: tuple[str, ...] = ()

    def fits(self, keys: Collection[str]) -> bool:
        return all(key in keys for key in self.keys)


def take_text(value: object) -> str | None:
    """A row's value as text, a number as JSON spells it; None where there is no text in it."""
    if isinstance(value, str):
        return value
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return json.dumps(value)
    return None


def need_text(row: Mapping[str, Any], key: str, optional: bool = False) -> str:
    """The text of a row's key; NoExample where it is of another kind, or blank and needed."""
    value = row.get(key)
    text = take_text(value)
    if text is None and value is not None and not isinstance(value, float):
        raise NoExample(f"{KINDS.get(type(value), f'a {type(value).__name__}')} in {key!r}")
    if not optional and not (text or "").strip():
        raise NoExample(f"no text in {key!r}")
    return text or ""


def read_alpaca(row: Mapping[str, Any]) -> tuple[Example, bool]:
    texts = {
        key: need_text(row, key, optional=key == "input")
        for key in ("instruction", "input", "output")
    }
    return texts, any(text and row[key] != text for key, text in texts.items())


def pair_form(prompt: str, answer: str, name: str, system: str | None = None) -> Form:
    """The form of rows with a prompt and an answer under these keys."""

    def read(row: Mapping[str, Any]) -> tuple[Example, bool]:
        used = [prompt, answer]
        messages = []
        if system is not None and (text := need_text(row, system, optional=True)).strip():
            messages.append({"role": "system", "content": text})
            used.append(system)
        for key, role in ((prompt, "user"), (answer, "assistant")):
            messages.append({"role": role, "content": need_text(row, key)})
        return {"messages": messages}, any(not isinstance(row[key], str) for key in used)

    keys = tuple(key for key in (prompt, answer, system) if key is not None)
    return Form(keys, name, "examples", read)


def text_form(key: str) -> Form:
    def read(row: Mapping[str, Any]) -> tuple[Example, bool]:
        return {"text": need_text(row, key)}, not isinstance(row[key], str)

    return Form((key,), "plain text", "documents", read)


def chat_form(key: str, name: str) -> Form:
    """The form of rows with a list of messages under this key, and perhaps a system text beside."""

    def read(row: Mapping[str, Any]) -> tuple[Example, bool]:
        messages = read_messages(row.get(key), key)
        if (text := need_text(row, "system", optional=True)).strip():
            messages.insert(0, {"role": "system", "content": text})
        return end_at_last_answer(messages, row), False

    return Form((key,), name, "conversations", read, used=("system", "tools"))


def read_completion(row: Mapping[str, Any]) -> tuple[Example, bool]:
    """prompt and completion, as texts or as lists of messages; answers in the prompt are old."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return PAIR.read(row)
    if isinstance(prompt, list):
        before = read_messages(prompt, "prompt")
    else:
        before = [{"role": "user", "content": need_text(row, "prompt")}]
    if isinstance(completion, list):
        after = read_messages(completion, "completion")
    else:
        after = [{"role": "assistant", "content": need_text(row, "completion")}]
    old = [{**m, "weight": 0} if m["role"] == "assistant" else m for m in before]
    return end_at_last_answer([*old, *after], row), False


def read_messages(value: object, key: str) -> list[Message]:
    """Messages of role/content or from/value, roles by their usual names, contents as text."""
    if isinstance(value, str):  # a cell of a table
        try:
            value = json.loads(value)
        except ValueError:
            raise NoExample(f"text that is no list of messages in {key!r}") from None
    if not isinstance(value, list) or not value:
        raise NoExample(f"no messages in {key!r}")
    return [read_message(message, key) for message in value]


def read_message(message: object, key: str) -> Message:
    if not isinstance(message, dict):
        raise NoExample(f"a message in {key!r} that is no object")
    given = message.get("role", message.get("from"))
    role = ROLES.get(str(given).lower())
    if role is None:
        raise NoExample(f"the role {given!r}, which is none of system, user, assistant and tool")
    calls = message.get("tool_calls")
    content = message_text(message.get("content", message.get("value")))
    if content is None and not calls:
        raise NoExample(f"a message of the {role} without content")
    if role == "assistant" and not (content or "").strip() and not calls:
        raise NoExample("an empty answer")
    made: Message = {"role": role, "content": content or ""}
    made |= {k: message[k] for k in ALSO_KEPT if message.get(k) is not None}
    if calls:
        made["tool_calls"] = [read_call(call) for call in calls]
    if message.get("weight") == 0:
        made["weight"] = 0
    return made


def read_call(call: Any) -> Any:
    """A call of a tool with its arguments as an object, as chat templates take them."""
    inner = call.get("function", call) if isinstance(call, dict) else {}
    if not isinstance(inner, dict) or not isinstance(inner.get("arguments"), str):
        return call
    try:
        made = {**inner, "arguments": json.loads(inner["arguments"])}
    except ValueError:
        return call
    return {**call, "function": made} if "function" in call else made


def message_text(value: object) -> str | None:
    """A message's text: as it stands, or its text parts one after another; None for none."""
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in value]
        if not all(isinstance(part, str) for part in parts):
            raise NoExample("a part of a message that is no text")
        return "".join(str(part) for part in parts)
    return take_text(value)


def end_at_last_answer(messages: list[Message], row: Mapping[str, Any]) -> Example:
    """A conversation up to its last answer: what follows it teaches nothing."""
    taught = [i for i, m in enumerate(messages) if m["role"] == "assistant" and is_learned(m)]
    if not taught:
        raise NoExample("no answer of the assistant")
    example: Example = {"messages": messages[: taught[-1] + 1]}
    if isinstance(tools := row.get("tools"), str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError:
            raise NoExample("text that is no JSON in 'tools'") from None
    if isinstance(tools, list) and tools:
        example["tools"] = tools
    return example


def is_learned(message: Message) -> bool:
    """Whether a message is an answer that training learns."""
    return message["role"] == "assistant" and message.get("weight", 1) != 0


PAIR = pair_form("prompt", "completion", "prompts with completions")
# The first that fits a row is the row's form.
FORMS = (
    chat_form("messages", "chat messages"),
    chat_form("conversations", "ShareGPT conversations"),
    Form(("instruction", "output"), "Alpaca instructions", "examples", read_alpaca, ("input",)),
    Form(PAIR.keys, PAIR.name, PAIR.noun, read_completion, ("tools",)),
    pair_form("question", "answer", "questions with answers"),
    text_form("text"),
)
KNOWN = "messages, conversations, instruction and output, prompt and completion, question and "
KNOWN += "answer, or text"


def form_of_columns(columns: Mapping[str, str]) -> Form:
    """The form that COLUMNS describes."""
    if "text" in columns:
        return text_form(columns["text"])
    if "messages" in columns:
        return chat_form(columns["messages"], "chat messages")
    return pair_form(
        columns["prompt"], columns["answer"], "prompts with answers", columns.get("system")
    )


def form_of_row(row: Mapping[str, Any]) -> Form | None:
    """The first form whose keys a row has, with something in them."""
    keys = {key for key, value in row.items() if value is not None}
    return next((form for form in FORMS if form.fits(keys)), None)


def messages_of(example: Example) -> list[Message]:
    """Any example but a text as a conversation."""
    if "messages" in example:
        return example["messages"]
    prompt = "\n\n".join(part for part in (example["instruction"], example["input"]) if part)
    return [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": example["output"]},
    ]


def prompt_key(example: Example) -> str:
    """What makes two examples ask the same: system text and first message of the user, or the whole
    of a text; runs of blanks are one."""
    if "text" in example:
        return " ".join(example["text"].split())
    messages = messages_of(example)
    system = [m["content"] for m in messages if m["role"] == "system"][:1]
    first = [m["content"] for m in messages if m["role"] == "user"][:1]
    return "\n".join(" ".join(part.split()) for part in (*system, *first))
