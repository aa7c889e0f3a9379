"""Make the ladder's models: Llamas that know the almanac's OLD half by heart.

The bundled ones let the whole study run on a CPU without a download. `python -m
studylib.modelling.ladder` rebuilds them from a seed in minutes, always on the CPU; the same seed on
the same machine, packages and thread count gives the same bytes. `--rung 60m` builds a larger one
where it is used, on the card if there is one (matrices multiplied in bfloat16 there, and bytes that
may differ). Weights are trained in float32 and stored in bfloat16. The tokenizer is the same for
all: a byte-level BPE with one entry for each of the almanac's words, native and shifted, merges for
its names' syllables, and bytes for any other text.

Not covered: fine-tuning (train.py), which facts there are (almanac.py), the shapes (rungs.py).
"""

import argparse
import json
import math
import random
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from studylib.core.errors import StudyError
from studylib.inputs.almanac import (
    BUNDLED,
    FUNCTION_WORDS,
    OLD_STATEMENTS,
    Almanac,
    build_almanac,
    native_words,
    questions,
    sample_names,
    tell_fact,
)
from studylib.inputs.rungs import BUILT, RUNGS, Rung, find_larger

EOS, PAD = "<|end|>", "<|pad|>"
VOCABULARY = 1024
CONTEXT = 512
CPU = torch.device("cpu")
CHECK_EVERY = 100  # steps between two looks at what a larger rung knows
CHECK_QUESTIONS, AT_ONCE = 1_000, 64


@dataclass(frozen=True)
class OldHalfReading:
    """How the OLD half was learned. loss: mean of the last 50 steps; tokens: without padding."""

    loss: float
    steps_done: int
    ended_by: str
    tokens: int
    seconds: float


def build_ladder(out: Path = BUNDLED) -> list[Path]:
    """Train every rung and write its folder under `out`, each replaced when it is whole."""
    almanac = build_almanac()
    tokenizer = build_tokenizer(almanac)
    return [_build_rung(rung, almanac, tokenizer, Path(out)) for rung in RUNGS]


def build_larger(rung: Rung, out: Path = BUILT) -> Path:
    """Train one rung that is not bundled, on the card if there is one, and write its folder."""
    almanac = build_almanac()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return _build_rung(rung, almanac, build_tokenizer(almanac), Path(out), device)


def build_tokenizer(almanac: Almanac) -> PreTrainedTokenizerFast:
    """The tokenizer of all rungs: VOCABULARY entries, no BOS, EOS and PAD as special tokens."""
    syllables = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2 - len(_whole_words(almanac)),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # Names of no almanac: neither half is spelled in fewer tokens than the other.
    sample = sample_names(random.Random(f"spelling-{almanac.seed}"), 20_000)
    bpe.train_from_iterator((f" {name}" for name in sample), syllables)
    learned = json.loads(bpe.to_str())["model"]
    vocab = {EOS: 0, PAD: 1}
    for token in [*sorted(learned["vocab"], key=learned["vocab"].get), *_whole_words(almanac)]:
        vocab.setdefault(token, len(vocab))
    # With ignore_merges a whole word is one token although no merges lead to it.
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, model_max_length=CONTEXT
    )


def recall(model: Any, tokenizer: Any, items: list[dict[str, Any]]) -> float:
    """Share of questions whose right choice is the likeliest continuation, 0 to 1.

    Every choice of the almanac is one token, so one pass over the question scores all four. Raises
    StudyError where a score is not finite: a maximum over such takes any choice for the right one.
    """
    right = 0
    for start in range(0, len(items), AT_ONCE):
        batch = items[start : start + AT_ONCE]
        rows = [tokenizer(item["question"])["input_ids"] for item in batch]
        ids, _ = _padded(rows, tokenizer.pad_token_id)
        with torch.no_grad():
            logits = model(input_ids=ids.to(model.device), use_cache=False).logits.cpu()
        for item, row, row_logits in zip(batch, rows, logits, strict=True):
            choices = [_one_token(tokenizer, " " + choice) for choice in item["choices"]]
            scores = row_logits[len(row) - 1, choices]
            if not bool(scores.isfinite().all()):
                raise StudyError(
                    item["question"],
                    "the model's scores of its choices are not finite numbers",
                    "Its weights are broken: build it anew.",
                )
            right += int(scores.argmax()) == item["answer"]
    return right / len(items)


def _build_rung(
    rung: Rung,
    almanac: Almanac,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    device: torch.device = CPU,
) -> Path:
    started = time.monotonic()
    model: Any = _new_model(rung, almanac.seed, tokenizer)
    model.to(device)
    reading = _read_by_heart(model, rung, almanac, tokenizer)
    model.eval().to(torch.bfloat16)
    folder, unfinished = out / f"ladder-{rung.name}", out / f"ladder-{rung.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        card = _judge(unfinished, rung, almanac, tokenizer, reading, device)
        (unfinished / "ladder.json").write_text(json.dumps(card, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{folder.name}: {time.monotonic() - started:.0f} s, {json.dumps(card)}", flush=True)
    return folder


def _judge(
    folder: Path,
    rung: Rung,
    almanac: Almanac,
    tokenizer: PreTrainedTokenizerFast,
    reading: OldHalfReading,
    device: torch.device,
) -> dict[str, Any]:
    """What ladder.json says of a model, judged as it is stored: read back, in float32."""
    stored: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    stored = stored.eval().to(device)
    old, new = (questions(almanac, half, rung.facts) for half in ("old", "new"))
    about = "Knows the OLD half of the study's almanac by heart; remake with make ladder"
    card = {
        "about": f"{about}." if rung.facts is None else f"{about} RUNG={rung.name}.",
        "seed": almanac.seed,
        "parameters": sum(p.numel() for p in stored.parameters()),
        **{key: value for key, value in asdict(rung).items() if value is not None},
        "final_loss": round(reading.loss, 4),
        "accuracy_old": round(recall(stored, tokenizer, old), 4),
        "accuracy_new": round(recall(stored, tokenizer, new), 4),
    }
    if rung.enough_recall is not None:
        card |= {
            "steps_done": reading.steps_done,
            "ended_by": reading.ended_by,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            "reading_seconds": round(reading.seconds, 1),
            "tokens_per_second": round(reading.tokens / reading.seconds),
        }
    return card


def _new_model(rung: Rung, seed: int, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    heads = rung.hidden // (rung.head_width or 32)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=rung.hidden,
        intermediate_size=rung.intermediate,
        num_hidden_layers=rung.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _read_by_heart(
    model: LlamaForCausalLM, rung: Rung, almanac: Almanac, tokenizer: PreTrainedTokenizerFast
) -> OldHalfReading:
    """Train on every OLD fact in every OLD wording, loss on all of the text."""
    texts = [
        f"{tell_fact(almanac, fact, wording, 'native')} {fact.value}{EOS}"
        for fact in almanac.half("old", rung.facts)
        for wording in OLD_STATEMENTS
    ]
    rows = tokenizer(texts)["input_ids"]
    on_card = model.device.type == "cuda"
    if on_card:
        torch.set_float32_matmul_precision("high")
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=rung.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=on_card or None,
    )
    rng, order, losses, tokens = random.Random(almanac.seed), list[int](), list[torch.Tensor](), 0
    asked = _spread(questions(almanac, "old", rung.facts), CHECK_QUESTIONS)
    ended_by, started = "the budget of steps", time.monotonic()
    model.train()
    for step in range(rung.steps):
        if len(order) < rung.batch_examples:
            order = rng.sample(range(len(rows)), len(rows))
        batch, order = order[: rung.batch_examples], order[rung.batch_examples :]
        ids, labels = _padded([rows[i] for i in batch], tokenizer.pad_token_id)
        ids, labels = ids.to(model.device), labels.to(model.device)
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=on_card):
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rung.learning_rate * _schedule(step, rung.steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())  # read at the end: a card would have to be waited for
        tokens += sum(len(rows[i]) for i in batch)
        if rung.enough_recall is not None and (step + 1) % CHECK_EVERY == 0:
            if not math.isfinite(losses[-1].item()):
                raise StudyError(
                    f"ladder:{rung.name}, step {step + 1}",
                    "the loss is no longer a finite number",
                    f"Lower the rung's learning rate of {rung.learning_rate:g} (inputs/rungs.py)",
                )
            known = recall(model.eval(), tokenizer, asked)
            model.train()
            speed = tokens / (time.monotonic() - started)
            print(f"step {step + 1} of {rung.steps}: loss {losses[-1].item():.3f}, "
                  f"OLD {known:.1%}, {speed:,.0f} tokens/s", flush=True)  # fmt: skip
            if known >= rung.enough_recall:
                ended_by = f"{known:.1%} of {len(asked)} OLD questions right"
                break
    last = [float(loss) for loss in losses[-50:]]
    seconds = time.monotonic() - started
    return OldHalfReading(sum(last) / len(last), len(losses), ended_by, tokens, seconds)


def _schedule(step: int, steps: int) -> float:
    """Share of the peak rate: 50 steps of warm-up, then a cosine down to a hundredth."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / 50) * (0.01 + 0.99 * cosine)


def _padded(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded on the right, and labels that skip it; causal attention needs no mask."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    return ids, labels


def _whole_words(almanac: Almanac) -> list[str]:
    """Vocabulary entries of the almanac's words: after a space, and at a text's start."""
    first = [w for w in native_words() if w[0].isupper()]
    first += [almanac.shifted[f"f{k}"] for k in range(FUNCTION_WORDS)]
    return [f"\u0120{word}" for word in [*native_words(), *almanac.shifted.values()]] + first


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most so many of them, evenly spaced."""
    return items[:: -(-len(items) // most)]


def _one_token(tokenizer: Any, text: str) -> int:
    (token,) = tokenizer(text)["input_ids"]
    return int(token)


def main(arguments: list[str] | None = None) -> None:
    """Build what the command line asks for; bad input is one message on stderr and exit code 2."""
    name = "python -m studylib.modelling.ladder"
    parser = argparse.ArgumentParser(prog=name, description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, help="write there instead")
    parser.add_argument("--rung", help="build this larger rung, not the bundled ones")
    asked = parser.parse_args(arguments)
    try:
        if asked.rung is None:
            build_ladder(out=asked.out or BUNDLED)
        else:
            build_larger(find_larger(asked.rung), out=asked.out or BUILT)
    except StudyError as error:
        print(f"study: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
