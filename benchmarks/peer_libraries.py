"""Train the same by other libraries: TRL, Unsloth, torchtune, each by its documented way in.

They are no dependencies of this project and are imported where they are used. Each is left at its
defaults, but for the recipe's numbers. TRL computes entropy and accuracy in every step; Unsloth
takes its own checkpointing; torchtune trains in the dtype itself, without autocast and without
fp32 copies.

Not covered: this study's own path and the loop by hand (peer_training.py).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from peer_training import Job, NotSupported, PeerResult, follow, settings
from transformers import DataCollatorForSeq2Seq
from transformers.utils.import_utils import enable_tf32

from studylib.inputs.data import IGNORED
from studylib.inputs.sources import model_folder
from studylib.modelling.methods import DTYPES, adapter_config, keep_unpacked
from studylib.modelling.models import load_model
from studylib.training.optimizer import OPTIMIZERS
from studylib.training.step_memory import WATCHED_STEP, StepMemory

LINEARS = ["q_proj", "k_proj", "v_proj", "output_proj"]  # torchtune's names, attention


def train_trl(job: Job, packing: bool = False) -> PeerResult:
    """TRL's SFTTrainer with its defaults; only the recipe's numbers are set."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    spec, loaded = job.spec, job.load()
    batches = job.batches(loaded.tokenizer)
    examples = Dataset.from_list(
        [
            {"input_ids": e["input_ids"], "completion_mask": [int(x >= 0) for x in e["labels"]]}
            for e in batches.examples
        ]
    )
    arguments = settings(job, spec.train.accumulation if packing else batches.accumulation)
    arguments |= {"max_length": spec.train.seq_len, "completion_only_loss": True}
    with job.meter.stage("train"):
        torch.manual_seed(spec.seed)
        trainer = SFTTrainer(
            model=loaded.model,
            args=SFTConfig(**arguments, packing=packing),
            train_dataset=examples,
            processing_class=loaded.tokenizer,
            peft_config=adapter_config(spec.method, loaded.model)
            if spec.method.kind.adapter
            else None,
        )
        keep_unpacked(trainer.model)
        job.result.same_batches = not packing
        follow(job, trainer, None if packing else batches).train()
    return job.finish(trainer.model, trainer.args.gradient_accumulation_steps)


def train_trl_packed(job: Job) -> PeerResult:
    """TRL's SFTTrainer with packing=True: its own packing, of the same examples."""
    return train_trl(job, packing=True)


def train_unsloth(job: Job) -> PeerResult:
    """Unsloth's FastLanguageModel under TRL's SFTTrainer, as its documentation has it."""
    # Before trl, of which it replaces parts.
    FastLanguageModel = importlib.import_module("unsloth").FastLanguageModel
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    spec = job.spec
    method, recipe = spec.method, spec.train
    checkpointing = "unsloth" if recipe.checkpointing else False
    with job.meter.stage("load"):
        model, tokenizer = FastLanguageModel.from_pretrained(
            model_name=str(checkpoint_folder(job)),
            max_seq_length=recipe.seq_len,
            dtype=DTYPES[recipe.dtype],
            load_in_4bit=method.kind.quantized,
            full_finetuning=not method.kind.adapter,
            use_gradient_checkpointing=checkpointing,
            random_state=spec.seed,
        )
    batches = job.batches(tokenizer)
    examples = [{**e, "attention_mask": [1] * len(e["labels"])} for e in batches.examples]
    with job.meter.stage("train"):
        if method.kind.adapter:
            head = model.get_output_embeddings()
            linear = {
                name.rpartition(".")[2]
                for name, module in model.named_modules()
                if isinstance(module, torch.nn.Linear) and module is not head
            }
            model = FastLanguageModel.get_peft_model(
                model,
                r=method.rank,
                lora_alpha=method.alpha,
                lora_dropout=method.dropout,
                target_modules=sorted(linear)
                if method.targets == "all-linear"
                else list(method.targets),
                bias="none",
                use_gradient_checkpointing=checkpointing,
                random_state=spec.seed,
            )
        arguments = settings(job, batches.accumulation) | {"max_length": recipe.seq_len}
        del arguments["gradient_checkpointing_kwargs"]
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**arguments),
            train_dataset=Dataset.from_list(examples),
            processing_class=tokenizer,
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )
        follow(job, trainer, batches).train()
    return job.finish(model, batches.accumulation)


def checkpoint_folder(job: Job) -> Path:
    """A folder with the weights, for a peer that loads them itself; random ones are saved once."""
    if job.spec.model_ref.kind != "shape":
        return model_folder(job.spec.model_ref)[0]
    folder = job.work.parent / "checkpoint"
    if not (folder / "tokenizer_config.json").is_file():
        loaded = load_model(
            job.spec.model_ref, job.spec.method.model_copy(update={"name": "full"}),
            job.spec.train.dtype, job.spec.seed,
        )  # fmt: skip
        loaded.model.save_pretrained(folder)  # type: ignore[operator]
        loaded.tokenizer.save_pretrained(folder)
    return folder


def train_torchtune(job: Job) -> PeerResult:
    """torchtune's model, chunked loss and loop, as its single-device recipes have them."""
    from torchtune import training
    from torchtune.data import padded_collate_sft
    from torchtune.modules.loss import CEWithChunkedOutputLoss

    spec, recipe = job.spec, job.spec.train
    if OPTIMIZERS[recipe.optimizer] is not None:
        raise NotSupported(f"optimizer {recipe.optimizer}: its own are others")
    loaded = job.load()
    batches = job.batches(loaded.tokenizer)
    device = next(loaded.model.parameters()).device
    if device.type == "cuda":
        enable_tf32(recipe.tf32)
    with job.meter.stage("load"):
        model = build_torchtune(job, loaded.model)
        del loaded.model
    trained = [p for p in model.parameters() if p.requires_grad]
    with job.meter.stage("train"):
        loss_fn = CEWithChunkedOutputLoss()
        model.set_num_output_chunks(loss_fn.num_output_chunks)
        optimizer = torch.optim.AdamW(
            trained, lr=spec.learning_rate, weight_decay=recipe.weight_decay,
            fused=device.type == "cuda",
        )  # fmt: skip
        padding, memory = loaded.tokenizer.pad_token_id, StepMemory(job.log.memory)
        for update in range(recipe.steps):
            if update == WATCHED_STEP - 1:
                memory.begin(model, optimizer)
            job.clock.start()
            learned, running = torch.zeros((), device=device), torch.zeros((), device=device)
            for k in range(batches.accumulation):
                places = batches.places[update * batches.accumulation + k]
                examples = [batches.examples[place] for place in places]
                batch = padded_collate_sft(
                    [{"tokens": e["input_ids"], "labels": e["labels"]} for e in examples],
                    padding_idx=padding,
                    ignore_idx=IGNORED,
                )
                tokens = sum(len(e["input_ids"]) for e in examples)
                job.fed.append((tokens, batch["tokens"].numel()))
                targets = torch.nn.functional.pad(batch["labels"], (0, 1), value=IGNORED)[:, 1:]
                targets = targets.contiguous().to(device)
                count = (targets != IGNORED).sum()
                loss = loss_fn(model(tokens=batch["tokens"].to(device)), targets) * count
                loss.backward()
                learned, running = learned + count, running + loss.detach()
            training.scale_grads(model, 1 / learned)
            torch.nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            job.result.losses.append(float(running / learned))
            job.clock.stop()
            job.result.seconds.append(job.clock.step_seconds)
            job.end_step()
            memory.end()
    return job.finish(model, batches.accumulation)


def build_torchtune(job: Job, weights: Any) -> Any:
    """torchtune's Llama with a transformers Llama's weights. Raises NotSupported for others."""
    from torchtune import training
    from torchtune.models.convert_weights import hf_to_tune
    from torchtune.models.llama2 import llama2, lora_llama2
    from torchtune.modules import TransformerSelfAttentionLayer
    from torchtune.modules.peft import get_adapter_params, set_trainable_params

    config, method = weights.config, job.spec.method
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    rope = config.rope_parameters
    if config.model_type != "llama" or rope["rope_type"] != "default":
        raise NotSupported(f"{config.model_type}: only the plain Llama builder is used here")
    if rope["rope_theta"] != 10000.0 or config.head_dim * heads != config.hidden_size:
        raise NotSupported("this model's positions or heads are not those of the Llama builder")
    if method.kind.quantized or method.kind.embeddings:
        raise NotSupported(f"{method.name}: its 4-bit weights are made by torchao from its files")
    if config.tie_word_embeddings and not method.kind.adapter:
        raise NotSupported("its Llama builder cannot train tied embeddings as one")
    numbers = {
        "vocab_size": config.vocab_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": heads,
        "num_kv_heads": groups,
        "embed_dim": config.hidden_size,
        "intermediate_dim": config.intermediate_size,
        "max_seq_len": config.max_position_embeddings,
        "norm_eps": config.rms_norm_eps,
    }
    device = next(weights.parameters()).device
    torch.manual_seed(job.spec.seed)
    with training.set_default_dtype(DTYPES[job.spec.train.dtype]), device:
        if method.kind.adapter:
            if method.targets != "all-linear":
                raise NotSupported(f"lora.targets = {method.targets}: all-linear is used here")
            model = lora_llama2(
                LINEARS, apply_lora_to_mlp=True, lora_rank=method.rank, lora_alpha=method.alpha,
                lora_dropout=method.dropout, **numbers,
            )  # fmt: skip
            set_trainable_params(model, get_adapter_params(model))
        else:
            model = llama2(**numbers)
    if job.spec.train.checkpointing:
        training.set_activation_checkpointing(
            model, auto_wrap_policy={TransformerSelfAttentionLayer}
        )
    converted = hf_to_tune(weights.state_dict(), heads, groups, config.hidden_size)
    missing, unknown = model.load_state_dict(converted, strict=False)
    if unknown or any("lora" not in name for name in missing):
        raise NotSupported(f"weights without a place: {[*unknown, *missing][:3]}")
    return model
