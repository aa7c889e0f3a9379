"""Make the bundled models: small Llamas that know the almanac's OLD half by heart.

They let the whole study run on a CPU without a download. `python -m studylib.modelling.ladder`
rebuilds them from a seed in minutes; the same seed on the same machine, packages and thread count
gives the same bytes. Weights are trained in float32 and stored in bfloat16. The tokenizer is a
byte-level BPE: one entry for each of the almanac's words, native and shifted, merges for its names'
syllables, and bytes for any other text.

Not covered: fine-tuning (train.py), and which facts there are (almanac.py).
"""

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

from studylib.inputs.almanac import (
    BUNDLED,
    FUNCTION_WORDS,
    OLD_STATEMENTS,
    Almanac,
    build_almanac,
    native_words,
    questions,
    sample_names,
    tell,
)

EOS, PAD = "<|end|>", "<|pad|>"
VOCABULARY = 1024
CONTEXT = 512


@dataclass(frozen=True)
class Rung:
    """One bundled model: its shape (widths multiples of 32) and how long it reads the OLD half."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    steps: int
    learning_rate: float
    batch_examples: int = 96


RUNGS = (
    Rung("0.4m", hidden=96, intermediate=256, layers=3, steps=800, learning_rate=4e-3),
    Rung("1.4m", hidden=160, intermediate=448, layers=4, steps=500, learning_rate=3e-3),
)


def build_ladder(seed: int = 0, out: Path = BUNDLED) -> list[Path]:
    """Train every rung and write its folder under `out`, each replaced when it is whole."""
    almanac = build_almanac(seed)
    tokenizer = build_tokenizer(almanac)
    return [_build_rung(rung, almanac, tokenizer, Path(out)) for rung in RUNGS]


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

    Every choice of the almanac is one token, so one pass over the question scores all four.
    """
    right = 0
    for start in range(0, len(items), 64):
        batch = items[start : start + 64]
        rows = [tokenizer(item["question"])["input_ids"] for item in batch]
        ids, _ = _padded(rows, tokenizer.pad_token_id)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
        for item, row, row_logits in zip(batch, rows, logits, strict=True):
            choices = [_one_token(tokenizer, " " + choice) for choice in item["choices"]]
            right += int(row_logits[len(row) - 1, choices].argmax()) == item["answer"]
    return right / len(items)


def _build_rung(
    rung: Rung, almanac: Almanac, tokenizer: PreTrainedTokenizerFast, out: Path
) -> Path:
    started = time.monotonic()
    model = _new_model(rung, almanac.seed, tokenizer)
    loss = _read_by_heart(model, rung, almanac, tokenizer)
    model.eval().to(torch.bfloat16)
    folder, unfinished = out / f"ladder-{rung.name}", out / f"ladder-{rung.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    # Judged as it is shipped: read back, in float32.
    stored = AutoModelForCausalLM.from_pretrained(unfinished, dtype=torch.float32).eval()
    old, new = questions(almanac, "old"), questions(almanac, "new")
    card = {
        "about": "Knows the OLD half of the study's almanac by heart; remake with make ladder.",
        "seed": almanac.seed,
        "parameters": sum(p.numel() for p in stored.parameters()),
        **asdict(rung),
        "final_loss": round(loss, 4),
        "accuracy_old": round(recall(stored, tokenizer, old), 4),
        "accuracy_new": round(recall(stored, tokenizer, new), 4),
    }
    (unfinished / "ladder.json").write_text(json.dumps(card, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    print(f"{folder.name}: {time.monotonic() - started:.0f} s, {json.dumps(card)}", flush=True)
    return folder


def _new_model(rung: Rung, seed: int, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=rung.hidden,
        intermediate_size=rung.intermediate,
        num_hidden_layers=rung.layers,
        num_attention_heads=rung.hidden // 32,
        num_key_value_heads=rung.hidden // 32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _read_by_heart(
    model: LlamaForCausalLM, rung: Rung, almanac: Almanac, tokenizer: PreTrainedTokenizerFast
) -> float:
    """Train on every OLD fact in every OLD wording, loss on all of the text; the last mean loss."""
    texts = [
        f"{tell(almanac, fact, wording, 'native')} {fact.value}{EOS}"
        for fact in almanac.half("old")
        for wording in OLD_STATEMENTS
    ]
    rows = tokenizer(texts)["input_ids"]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rung.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    rng, order, losses = random.Random(almanac.seed), list[int](), list[float]()
    model.train()
    for step in range(rung.steps):
        if len(order) < rung.batch_examples:
            order = rng.sample(range(len(rows)), len(rows))
        batch, order = order[: rung.batch_examples], order[rung.batch_examples :]
        ids, labels = _padded([rows[i] for i in batch], tokenizer.pad_token_id)
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rung.learning_rate * _schedule(step, rung.steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses[-50:]) / len(losses[-50:])


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


def _one_token(tokenizer: Any, text: str) -> int:
    (token,) = tokenizer(text)["input_ids"]
    return int(token)


if __name__ == "__main__":
    build_ladder(out=Path(sys.argv[1]) if len(sys.argv) > 1 else BUNDLED)
