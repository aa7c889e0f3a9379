"""How much faster is MMLU with shared prefixes, and does it say the same?

Real MMLU questions, 5-shot, 10 subjects by default, in lm-eval's default template; a random-weight
Llama of about 20M parameters with a tokenizer of 8,192 entries trained on the questions. Stock
HFLM runs at the fastest of several batch sizes, chosen on one subject first. Random weights cost
the same time as trained ones; the accuracy of such a model is chance and not printed.

The context of 4,096 holds every prompt. At 2,048 those of two history subjects are cut from the
left, each at another point, so that nothing but their equality is left to show: no exact method can
share them.

    OMP_NUM_THREADS=2 python benchmarks/mmlu_prefix.py --data FOLDER
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from studylib.scoring.compare_lm import ModelClock, compare, evaluate_items
from studylib.scoring.prefix_lm import PrefixLM

LETTERS = ["A", "B", "C", "D"]
DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data" / "mmlu"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line: subject, question, choices, answer."""
    # Not str.splitlines: questions hold other characters that it takes for line ends.
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def make_task(subject: str, dev: list[dict], test: list[dict], shots: int) -> ConfigurableTask:
    """One subject as an lm-eval task in the default MMLU template, on local rows."""
    import datasets

    def load(**_: Any) -> dict[str, Any]:
        return {"dev": datasets.Dataset.from_list(dev), "test": datasets.Dataset.from_list(test)}

    lines = "\n".join(f"{letter}. {{{{choices[{i}]}}}}" for i, letter in enumerate(LETTERS))
    title = subject.replace("_", " ")
    config = {
        "task": f"mmlu_{subject}",
        "custom_dataset": load,
        "test_split": "test",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": shots,
        "output_type": "multiple_choice",
        "description": "The following are multiple choice questions (with answers) about "
        f"{title}.\n\n",
        "doc_to_text": "{{question.strip()}}\n" + lines + "\nAnswer:",
        "doc_to_choice": LETTERS,
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    return ConfigurableTask(config=config)


def make_tasks(data: Path, subject_count: int, shots: int) -> dict[str, ConfigurableTask]:
    """Tasks of subject_count subjects spread evenly over the alphabet, by name."""
    dev, test = read_rows(data / "dev.jsonl"), read_rows(data / "test.jsonl")
    subjects = sorted({row["subject"] for row in test})
    chosen = subjects[:: max(1, len(subjects) // subject_count)][:subject_count]
    return {
        f"mmlu_{subject}": make_task(
            subject,
            [row for row in dev if row["subject"] == subject],
            [row for row in test if row["subject"] == subject],
            shots,
        )
        for subject in chosen
    }


def train_tokenizer(data: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the test questions and choices."""
    texts = [
        "\n".join([row["question"], *(f"A. {choice}" for choice in row["choices"]), "Answer: A"])
        for row in read_rows(data / "test.jsonl")
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


def pick_stock_batch_size(
    model: Any, tokenizer: Any, tasks: dict, batch_sizes: list[int], limit: int
) -> tuple[int, dict[int, float]]:
    """The batch size at which stock scores one subject fastest, and the seconds of each."""
    name = next(iter(tasks))
    seconds = {}
    for batch_size in batch_sizes:
        clock = ModelClock()
        stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        evaluate_items(stock, {name: tasks[name]}, limit, clock)
        seconds[batch_size] = clock.seconds
    return min(seconds, key=seconds.__getitem__), seconds


def main() -> None:
    """Run the comparison and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens-per-pass", type=int)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    tasks = make_tasks(options.data, options.subjects, options.shots)
    tokenizer = train_tokenizer(options.data, vocabulary=8192)
    model = make_model(len(tokenizer), options.context)
    batch_size, seconds = pick_stock_batch_size(
        model, tokenizer, tasks, options.batch_sizes, options.limit or 60
    )
    result = compare(
        lambda: HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        lambda: PrefixLM(
            pretrained=model, tokenizer=tokenizer, tokens_per_pass=options.tokens_per_pass
        ),
        tasks,
        limit=options.limit,
        rounds=options.rounds,
    )
    facts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
        "threads": torch.get_num_threads(),
        "subjects": [name.removeprefix("mmlu_") for name in tasks],
        "shots": options.shots,
        "context": options.context,
        "stock_batch_size": batch_size,
        "stock_seconds_by_batch_size": seconds,
    }
    print(json.dumps(facts | result.to_dict(), indent=2))


if __name__ == "__main__":
    main()
