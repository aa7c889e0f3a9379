"""Turn a GGUF file into a checkpoint folder: `python -m studylib.modelling.convert_gguf FILE OUT`.

transformers reads the weights (dequantized to fp32, which every GGUF type fits into) and the
tokenizer. Its last line on stdout is JSON of what the file says of itself: licence, and how the
weights were quantized, since they stay on that grid for ever.

Not covered: where such folders are kept (studylib.inputs.converted).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

# Rules by which a byte-level tokenizer cuts text before its merges, by the names that GGUF files
# give them (llama.cpp, llama-vocab.cpp). transformers takes GPT-2's for every name that it does not
# list: that is right for some, and others cut each digit off first.
DIGITS_FIRST = (
    "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
)  # fmt: skip
GPT2_RULE = ("gpt-2", "default", "phi-2", "mpt", "olmo", "jais")


def convert_gguf(path: Path, out: Path) -> dict[str, Any]:
    """Write config, weights, tokenizer to `out`; returns what the file's header says."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    header = summarise_gguf_header(path)
    refuse_unknown_rule(header)
    where: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    model: Any = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **where)
    # The weights are plain now, and could not be saved as long as these speak of a GGUF.
    del model.config.quantization_config
    model.hf_quantizer = None
    tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, **where)
    if header["pre"] in DIGITS_FIRST:
        cut_digits(tokenizer)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"license": header["license"], "quantized": header["types"]}


def refuse_unknown_rule(header: dict[str, Any]) -> None:
    """ValueError where nobody here knows how the file's byte-level tokenizer cuts text: it would
    be cut by GPT-2's rule, and many texts spelled otherwise than the model learned them."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:  # earlier versions list none
        GGUF_PRE_TOKENIZER_SPLITS = {}
    known = {None, *DIGITS_FIRST, *GPT2_RULE, *GGUF_PRE_TOKENIZER_SPLITS}
    if header["tokenizer"] == "gpt2" and header["pre"] not in known:
        raise ValueError(f"the rule {header['pre']} by which its tokenizer cuts text is not known")


def cut_digits(tokenizer: Any) -> None:
    """Cut each digit off before the byte-level rule sees the text."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def summarise_gguf_header(path: Path) -> dict[str, Any]:
    """Licence, pre-tokenizer rule, and matrices' tensor types by how many weights have them."""
    from gguf import GGUFReader

    reader = GGUFReader(path)

    def read(name: str) -> Any:
        field = reader.fields.get(name)
        return None if field is None else field.contents()

    counts: Counter[str] = Counter()
    for tensor in reader.tensors:
        if len(tensor.shape) > 1:
            counts[tensor.tensor_type.name] += int(tensor.n_elements)
    types = dict(counts.most_common())
    return {
        "license": read("general.license") or "not stated",
        "tokenizer": read("tokenizer.ggml.model"),
        "pre": read("tokenizer.ggml.pre"),
        "types": types,
    }


if __name__ == "__main__":
    print(json.dumps(convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))))
