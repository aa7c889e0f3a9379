"""How much faster is MMLU with shared prefixes, and does it say the same?

Real MMLU questions, 5-shot, 10 subjects by default, in lm-eval's default template; a random-weight
Llama of about 20M parameters with a tokenizer of 8,192 entries trained on the questions. Stock
HFLM runs at the fastest of several batch sizes, chosen on one subject first. Random weights cost
the same time as trained ones; the accuracy of such a model is chance and not printed.

The context of 4,096 holds every prompt. At 2,048 those of two history subjects are cut from the
left, each at another point, so that nothing but their equality is left to show: no exact method can
share them. With --cut shots both sides leave out whole shots instead, and what remains is shared.

    OMP_NUM_THREADS=2 python benchmarks/mmlu_prefix.py --data FOLDER
    python benchmarks/mmlu_prefix.py --model shape:OLMo-2-1B --dtype fp32 bf16 \\
        --subjects 57 --limit 20

Any model that a study takes can stand in for the Llama, on a card if there is one. Random weights
(shape:NAME) keep the tokenizer that is trained here, never larger than their vocabulary; others
bring their own. One JSON object is printed for each dtype as soon as it is done, and all so far lie
in --out. Beside it,
`stock_against_itself` tells how far stock's own batch sizes lie apart on the first subject: in bf16
that is what rounding alone does.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from studylib.core.errors import StudyError
from studylib.inputs.questions import read_questions
from studylib.metering.environment import device_name
from studylib.modelling.models import DTYPES, default_device, load_model
from studylib.running.runner import follow_parent
from studylib.schema.settings import BASE, EvaluateSettings, ModelRef
from studylib.scoring.compare_lm import LmComparison, ModelClock, compare_wrappers, evaluate_items
from studylib.scoring.prefix_lm import PrefixLM
from studylib.scoring.tasks import build_tasks, fit_shots

OWN_MODEL = "llama-20m"
SMALLEST_VOCABULARY = 300  # every byte, the two special tokens and some merges
DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data" / "mmlu"


def make_tasks(data: Path, subject_count: int, shots: int) -> dict[str, Any]:
    """Tasks of subject_count subjects spread evenly over the alphabet, by name."""
    tasks = build_tasks(str(data), EvaluateSettings(questions=str(data), shots=shots))
    chosen = list(tasks)[:: max(1, len(tasks) // subject_count)][:subject_count]
    return {subject: tasks[subject] for subject in chosen}


def train_tokenizer(data: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the test questions and choices."""
    texts = [
        "\n".join([row["question"], *(f"A. {choice}" for choice in row["choices"]), "Answer: A"])
        for row in read_questions(data / "test.jsonl")
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def make_model(vocabulary: int, context: int = 4096) -> LlamaForCausalLM:
    """A float32 Llama of about 20M parameters with seeded random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=context,
        initializer_range=0.05,
    )
    return LlamaForCausalLM(config).eval()


def bring_in(name: str, dtype: str, data: Path, vocabulary: int, context: int) -> tuple[Any, Any]:
    """(model in `dtype` on its device, tokenizer). StudyError for too small a vocabulary."""
    if name == OWN_MODEL:
        tokenizer = train_tokenizer(data, vocabulary)
        model = make_model(len(tokenizer), context)
        return model.to(default_device(), DTYPES[dtype]), tokenizer
    loaded = load_model(ModelRef.parse(name), BASE, dtype)
    model: Any = loaded.model.eval()
    if not loaded.random_weights:
        return model, loaded.tokenizer
    size = min(vocabulary, model.config.vocab_size)
    if size < SMALLEST_VOCABULARY:
        rule = f"the questions need a vocabulary of {SMALLEST_VOCABULARY} or more"
        raise StudyError(f"{name}, {size} tokens", rule, "Take another model or --vocabulary.")
    return model, train_tokenizer(data, size)


def pick_stock_batch_size(
    make_stock: Callable[[int], Any], tasks: dict, batch_sizes: list[int], limit: int
) -> tuple[int, dict[int, float], dict[str, Any]]:
    """The batch size at which stock scores one subject fastest, the seconds of each, and how far
    the others' log-likelihoods and answers lie from its own."""
    name = next(iter(tasks))
    seconds, found = {}, {}
    for batch_size in batch_sizes:
        clock = ModelClock()
        found[batch_size] = evaluate_items(
            make_stock(batch_size), {name: tasks[name]}, limit, clock
        )
        seconds[batch_size] = clock.seconds
    best = min(seconds, key=seconds.__getitem__)
    others = [size for size in batch_sizes if size != best]
    pairs = [pair for size in others for pair in zip(found[best], found[size], strict=True)]
    apart = [abs(a[0] - b[0]) for x, y in pairs for a, b in zip(x[0], y[0], strict=True)]
    itself = {
        "items": len(pairs),
        "max_abs_loglikelihood_difference": max(apart, default=None),
        "answers_changed": sum(x[1] != y[1] for x, y in pairs),
    }
    return best, seconds, itself


def compare_where_it_fits(
    make_stock: Callable[[int], Callable[[], Any]],
    make_ours: Callable[[], Any],
    tasks: dict,
    options: argparse.Namespace,
    batch_size: int,
) -> tuple[int, LmComparison]:
    """The comparison at this batch size, or at the next smaller one for which there is memory.

    Stock keeps the logits of all positions, twice: 32 prompts of 4,096 tokens and a vocabulary of
    100,000 are 105 GB in fp32. The longest come first, so that it shows at once.
    """
    sizes = sorted(size for size in options.batch_sizes if size <= batch_size)
    while True:
        size = sizes.pop()
        try:
            found = compare_wrappers(
                make_stock(size), make_ours, tasks, options.limit, options.rounds
            )
        except torch.OutOfMemoryError:
            if not sizes:
                raise
            print(f"stock has no memory for {size} prompts a batch", file=sys.stderr)
        else:
            return size, found


def measure(options: argparse.Namespace, dtype: str, tasks: dict) -> dict[str, Any]:
    """Stock and shared prefixes over the same questions with one model in one dtype."""
    model, tokenizer = bring_in(
        options.model, dtype, options.data, options.vocabulary, options.context
    )
    context = min(options.context, model.config.max_position_embeddings)
    # Both take their log-softmax in fp32: in bf16 choices would tie.
    shared = {"tokenizer": tokenizer, "max_length": context, "softmax_dtype": torch.float32}

    def make_stock(batch_size: int) -> HFLM:
        return HFLM(pretrained=model, batch_size=batch_size, **shared)

    ours = PrefixLM(pretrained=model, tokens_per_pass=options.tokens_per_pass, **shared)
    if options.cut == "shots":
        fit_shots(tasks, ours)
    batch_size, seconds, itself = pick_stock_batch_size(
        make_stock, tasks, options.batch_sizes, options.limit or 60
    )
    batch_size, result = compare_where_it_fits(
        lambda size: lambda: make_stock(size), lambda: ours, tasks, options, batch_size
    )
    facts = {
        "model": options.model,
        "dtype": dtype,
        "device": device_name(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
        "threads": torch.get_num_threads(),
        "subjects": list(tasks),
        "shots": options.shots,
        "context": context,
        "cut": options.cut,
        "fallback_reason": ours.fallback_reason,
        "prompts_cut": ours.prompts_cut // options.rounds,
        "stock_batch_size": batch_size,
        "stock_seconds_by_batch_size": seconds,
        "stock_against_itself": itself,
    }
    return facts | result.to_dict()


def read_options(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--model", default=OWN_MODEL, help="or shape:, ladder:, path:, hub:")
    parser.add_argument("--dtype", nargs="+", choices=sorted(DTYPES), default=["fp32"])
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--cut", choices=["tokens", "shots"], default="tokens")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--limit", type=int, help="questions of each subject")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens-per-pass", type=int)
    parser.add_argument("--out", type=Path, help="the figures of all dtypes, as JSON")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run the comparison in each dtype and print its figures as JSON."""
    options = read_options(words)
    follow_parent()
    logging.disable(logging.INFO)
    done = []
    try:
        tasks = make_tasks(options.data, options.subjects, options.shots)
        for dtype in options.dtype:
            found = measure(options, dtype, tasks)
            print(json.dumps(found, indent=2), flush=True)
            done.append(found)
            if options.out:
                options.out.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
            print(
                f"{dtype}: stock takes {found['time_ratio']:.2f} times as long, largest difference "
                f"{found['max_abs_loglikelihood_difference']:.2g}, "
                f"{found['answers_changed']} of {found['items']} answers changed",
                file=sys.stderr,
            )
    except StudyError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
