"""Examples as tokens with labels: what is learned has its own token as label, all else is ignored.

Of a conversation the answers are learned, of a plain text all of it but its first token, which has
nothing before it to be told from (where the tokenizer begins texts with a token of its own, that is
the first).

Not covered: the text of an example (studylib.inputs.templates), rows (studylib.inputs.data).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

from studylib.inputs.forms import Example
from studylib.inputs.spool import Spool
from studylib.inputs.templates import (
    MOST_REFUSED,
    Spelled,
    TemplateRefuses,
    Unfolded,
    is_single,
    prompt_of,
    refused,
    resolve_template,
    spell_chat,
    spell_turns,
)

MOST_TRIED = 2_000  # examples that a plan tokenises to tell what a row's length cuts
Found = tuple[list[int], list[tuple[int, int]]]
IGNORED = -100  # the label that transformers' loss leaves out


class Tokenised(dict[str, list[int]]):
    """input_ids and labels of one example. learned: the tokens [first, end) that are labels of
    their own. cut: its end did not fit into seq_len."""

    learned: tuple[tuple[int, int], ...] = ()
    cut = False

    @classmethod
    def of(cls, ids: list[int], learned: Iterable[tuple[int, int]], cut: bool = False) -> Tokenised:
        labels = [IGNORED] * len(ids)
        for first, end in learned:
            labels[first:end] = ids[first:end]
        made = cls(input_ids=ids, labels=labels)
        made.learned, made.cut = tuple(learned), cut
        return made


def unfold(examples: Sequence[Example], template: str, tokenizer: Any, seq_len: int) -> Unfolded:
    """Examples as what is tokenised one by one, so that nothing of them is lost.

    A text becomes windows of seq_len tokens, each of which begins with the last token of the one
    before it: all tokens but the first are learned once. A conversation in a chat template that
    rewrites earlier turns becomes one text an answer; those that the template refuses are counted.
    StudyError where it refuses more than half.
    """
    template = resolve_template(template, examples, tokenizer)
    if template != "chat" and not any("text" in example for example in examples):
        return Unfolded.whole(examples)
    pieces, of = Spool[Any](), list[int]()
    unfolded = Unfolded(pieces, of)
    for number, example in enumerate(examples):
        if "text" in example:
            pieces.extend(windows := cut_windows(example["text"], tokenizer, seq_len))
            of += [number] * len(windows)
            continue
        try:
            spelled = spell_chat(example, tokenizer)
        except TemplateRefuses as error:
            unfolded.refused[str(error)] += 1
        else:
            pieces.extend(spelled)
            of += [number] * len(spelled)
            unfolded.divided += len(spelled) > 1
    if unfolded.refused.total() > MOST_REFUSED * len(examples):
        [(words, _)] = unfolded.refused.most_common(1)
        raise refused(words, unfolded.refused.total(), len(examples))
    return unfolded


def tell_lengths(examples: Sequence[Example], template: str, tokenizer: Any, seq_len: int) -> str:
    """What a model's tokenizer and template make of examples, from the first of them, in words."""
    template = resolve_template(template, examples, tokenizer)
    tried = examples[:MOST_TRIED]
    unfolded = unfold(tried, template, tokenizer, seq_len)
    made = tokenise(unfolded.pieces, template, tokenizer, seq_len)
    used = [tokens for tokens in made if tokens is not None]
    learned = sum(label != IGNORED for tokens in used for label in tokens["labels"])
    some = f"of the first {len(tried):,} examples " if len(tried) < len(examples) else ""
    words = [f"template {template}", f"{some}{sum(len(t['input_ids']) for t in used):,} tokens"]
    words.append(f"{learned:,} learned")
    counts = (
        (sum(tokens.cut for tokens in used), f"answers cut by train.seq_len = {seq_len}"),
        (len(made) - len(used), "whose prompt alone fills it"),
        (unfolded.divided, "conversations of which the template rewrites earlier turns"),
        (
            sum(isinstance(piece, Spelled) and piece.closed for piece in unfolded.pieces),
            "that the template ends with nothing and the end of the sequence was written after",
        ),
        (unfolded.refused.total(), f"refused by the template ({', '.join(unfolded.refused)})"),
    )
    return ", ".join([*words, *(f"{count:,} {what}" for count, what in counts if count)])


def cut_windows(text: str, tokenizer: Any, seq_len: int) -> list[Tokenised]:
    """A text's tokens and its end, in windows of at most seq_len that share one token."""
    ids = tokenizer([text], verbose=False)["input_ids"][0]
    ids = end_with_eos(ids, tokenizer.eos_token_id)
    starts = range(0, max(1, len(ids) - 1), seq_len - 1)
    windows = [ids[start : start + seq_len] for start in starts]
    return [Tokenised.of(ids, [(1, len(ids))]) for ids in windows if len(ids) > 1]


def end_with_eos(ids: list[int], eos: int) -> list[int]:
    return ids if ids and ids[-1] == eos else [*ids, eos]


def tokenise(
    examples: Sequence[Any], template: str, tokenizer: Any, seq_len: int
) -> list[Tokenised | None]:
    """Token ids and labels of each example, at most seq_len long, the prompt's labels ignored.

    examples: as they are, or the pieces that `unfold` makes of them. As they are, of a text longer
    than seq_len only the first window is taken, and of a conversation that the chat template
    rewrites only the last answer. An example whose prompt alone fills the row teaches nothing:
    None.

    Prompt and answer are spelled together and cut where the prompt alone ends, as lm-eval does,
    so that training and scoring see the same tokens.
    """
    template = resolve_template(template, examples, tokenizer)
    ready = [make_ready(example, template, tokenizer, seq_len) for example in examples]
    pairs = [i for i, piece in enumerate(ready) if isinstance(piece, tuple)]
    spelled = [i for i, piece in enumerate(ready) if isinstance(piece, Spelled)]
    made: dict[int, Tokenised | None] = {
        i: piece for i, piece in enumerate(ready) if isinstance(piece, Tokenised | None)
    }
    if pairs:
        found = tokenise_pairs([ready[i] for i in pairs], tokenizer, seq_len)
        made |= zip(pairs, found, strict=True)
    if spelled:
        found = tokenise_spelled([ready[i] for i in spelled], tokenizer, seq_len)
        made |= zip(spelled, found, strict=True)
    return [made[i] for i in range(len(ready))]


def make_ready(example: Any, template: str, tokenizer: Any, seq_len: int) -> Any:
    """An example or a piece of one as tokens, as a text with what is learned, or as (prompt,
    answer)."""
    if isinstance(example, Tokenised | Spelled):
        return example
    if "text" in example:
        return next(iter(cut_windows(example["text"], tokenizer, seq_len)), None)
    if template == "chat":
        try:
            return spell_chat(example, tokenizer)[-1]
        except TemplateRefuses as error:
            raise refused(str(error), 1, 1) from None
    if "messages" in example and not is_single(example):
        return spell_turns(example, template, tokenizer.eos_token)
    return prompt_of(example, template)


def tokenise_pairs(
    pairs: Sequence[tuple[str, str]], tokenizer: Any, seq_len: int
) -> list[Tokenised | None]:
    """Of prompts with one answer each: what follows the prompt's own tokens is learned."""
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    wholes = tokenizer([prompt + answer for prompt, answer in pairs])["input_ids"]
    eos = tokenizer.eos_token_id
    tokenised: list[Tokenised | None] = []
    for prompt, whole in zip(prompts, wholes, strict=True):
        start = len(prompt) - 1 if prompt and prompt[-1] == eos else len(prompt)
        tokenised.append(cut_to(end_with_eos(whole, eos), [(start, len(whole) + 1)], seq_len))
    return tokenised


def tokenise_spelled(
    pieces: Sequence[Spelled], tokenizer: Any, seq_len: int
) -> list[Tokenised | None]:
    """Of texts with their learned characters: every token that holds one of them is learned."""
    made = tokenise_bytes(pieces, tokenizer)
    left = [piece for piece, one in zip(pieces, made, strict=True) if one is None]
    rest = iter(tokenise_places(left, tokenizer) if left else ())
    found = [next(rest) if one is None else one for one in made]
    return [cut_to(ids, learned, seq_len) for ids, learned in found]


def tokenise_places(pieces: Sequence[Spelled], tokenizer: Any) -> list[Found]:
    """(token ids, learned tokens) of each text, by the places in it that its tokens have."""
    encoded = tokenizer(
        [piece.text for piece in pieces],
        add_special_tokens=not pieces[0].marked,
        return_attention_mask=False,
        verbose=False,
    )
    find = find_by_place if getattr(tokenizer, "is_fast", False) else find_by_count
    return [
        (encoded["input_ids"][i], [find(encoded, i, one, span, tokenizer) for span in one.learned])
        for i, one in enumerate(pieces)
    ]


def tokenise_bytes(pieces: Sequence[Spelled], tokenizer: Any) -> list[Found | None]:
    """The same by a tokenizer whose tokens are a text's bytes, one after the other: it need not
    keep their places, which takes a fifth of its time. None for a text of which they are not, and
    for all where the tokenizer is another or adds tokens."""
    sizes = token_byte_counts(tokenizer)
    if sizes is None or not pieces[0].marked:
        return [None] * len(pieces)
    texts = [piece.text for piece in pieces]
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    made: list[Found | None] = []
    for piece, one in zip(pieces, encoded, strict=True):
        text, ids = piece.text, one.ids
        ends = list(accumulate(map(sizes.__getitem__, ids)))
        plain = text.isascii()
        if not ends or ends[-1] != (len(text) if plain else len(text.encode())):
            made.append(None)
            continue
        learned = []
        for start, end in piece.learned:
            if not plain:
                start, end = len(text[:start].encode()), len(text[:end].encode())
            learned.append((bisect_right(ends, start), bisect_left(ends, end) + 1))
        made.append((ids, learned))
    return made


@lru_cache(maxsize=4)
def token_byte_counts(tokenizer: Any) -> dict[int, int] | None:
    """Token id -> the bytes of a text that it stands for; None of a tokenizer that changes texts,
    or does not spell its tokens as bytes."""
    from tokenizers.decoders import ByteLevel

    made = getattr(tokenizer, "backend_tokenizer", None)
    if made is None or made.normalizer is not None or not isinstance(made.decoder, ByteLevel):
        return None
    sizes = {number: len(text) for text, number in made.get_vocab(False).items()}
    added = made.get_added_tokens_decoder()
    return sizes | {number: len(token.content.encode()) for number, token in added.items()}


def find_by_place(
    encoded: Any, i: int, piece: Spelled, span: tuple[int, int], tokenizer: Any
) -> tuple[int, int]:
    """The tokens [first, end) that hold a character of a span, by the tokenizer's own places."""
    start, end = span
    inside = (encoded.char_to_token(i, place) for place in range(start, end))
    first = next((token for token in inside if token is not None), None)
    inside = (encoded.char_to_token(i, place) for place in range(end - 1, start - 1, -1))
    last = next((token for token in inside if token is not None), None)
    if first is None or last is None:
        return 0, 0
    length = len(encoded["input_ids"][i])
    while last + 1 < length:  # the bytes of one character may be several tokens
        place = encoded.token_to_chars(i, last + 1)
        if place is None or not start <= place.start < end:
            break
        last += 1
    return first, last + 1


def find_by_count(
    encoded: Any, i: int, piece: Spelled, span: tuple[int, int], tokenizer: Any
) -> tuple[int, int]:
    """The same where a tokenizer knows no places: as many tokens as the text up to there has, which
    is one off where it joins blanks that end there."""
    first, end = (
        len(tokenizer(piece.text[:place], add_special_tokens=not piece.marked)["input_ids"])
        for place in span
    )
    return first, end


def cut_to(ids: list[int], learned: list[tuple[int, int]], seq_len: int) -> Tokenised | None:
    """The first seq_len tokens, those of [first, end) learned; None where none of them is.

    The first token of all is never learned: nothing stands before it.
    """
    room = min(len(ids), seq_len)
    inside = [(first, min(end, room)) for first, end in learned if first < min(end, room)]
    if not inside:
        return None
    cut = len(ids) > seq_len and any(end > seq_len for _, end in learned)
    return Tokenised.of(ids[:seq_len], inside, cut)
