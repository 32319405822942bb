#!/usr/bin/env python3
"""Trains again what bench/adaptation.py trained, by Hugging Face's peft, and prints both held-out losses.

  bench/peft_reference.py [--batches build/bin/millrace_batches] [--run runs/adaptation] [NAME …]

Run by hand: needs torch, transformers, peft, numpy and PyYAML. The model is the same folder; the tokens, their order
(millrace_batches), the learning rates and all settings are the job's. Starts are peft's own draws, scaled where
Millrace's have another deviation. Goal: within 2 %.
"""
import argparse
import json
import math
import os
import pathlib
import subprocess
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy
import torch
import yaml
from peft import (AdaLoraConfig, AdaptionPromptConfig, IA3Config, LoraConfig, PrefixTuningConfig, PromptEncoderConfig,
                  PromptTuningConfig, get_peft_model)
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).resolve().parent


def configuration(adapter, steps):
    """peft's of a job's adapter."""
    targets = adapter.get("targets")
    common = {"task_type": "CAUSAL_LM"}
    virtual = {"num_virtual_tokens": adapter.get("virtual_tokens", 8), **common}
    kind = adapter["type"]
    if kind == "lora":
        rank = adapter.get("rank", 8)
        return LoraConfig(r=rank, lora_alpha=adapter.get("alpha", rank), use_dora=adapter.get("dora", False),
                          use_rslora=adapter.get("rank_stabilized", False),
                          target_modules="all-linear" if targets == ["all-linear"] else targets, **common)
    if kind == "adalora":
        decay = adapter.get("importance_decay", [0.85, 0.85])
        return AdaLoraConfig(init_r=adapter.get("rank", 12), target_r=adapter.get("target_rank", 8),
                             lora_alpha=adapter.get("alpha", adapter.get("rank", 12)), total_step=steps,
                             tinit=adapter.get("warmup_steps", 0), tfinal=adapter.get("final_steps", 0),
                             deltaT=adapter.get("allocate_every", 1), beta1=decay[0], beta2=decay[1],
                             orth_reg_weight=adapter.get("orthogonality", 0.5),
                             target_modules="all-linear" if targets == ["all-linear"] else targets, **common)
    if kind == "ia3":
        return IA3Config(target_modules=targets, **common)
    if kind == "prompt_tuning":
        return PromptTuningConfig(**virtual)
    if kind == "p_tuning":
        return PromptEncoderConfig(encoder_reparameterization_type="MLP", **virtual)
    if kind in ("prefix_tuning", "p_tuning_v2"):
        return PrefixTuningConfig(prefix_projection=kind == "prefix_tuning", **virtual)
    if kind == "llama_adapter":
        return AdaptionPromptConfig(adapter_len=virtual["num_virtual_tokens"], adapter_layers=adapter["layers"],
                                    **common)
    raise SystemExit(f"no settings of peft for an adapter of type {kind}")


def read_rows(path, columns):
    """The rows of that many columns, and a shorter one after them, of at least one prediction, if there is one."""
    tokens = torch.from_numpy(numpy.fromfile(path, dtype="<u4").astype(numpy.int64))
    whole = len(tokens) // columns * columns
    return [tokens[:whole].view(-1, columns)] + ([tokens[None, whole:]] if whole < len(tokens) else [])


def summed_loss(model, rows):
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits[:, -(rows.shape[1] - 1):]  # of the text only
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")


def orthogonality(model):
    """AdaLoRA's mean distance from orthogonal matrices, which peft adds only to a loss of its own."""
    matrices = [p if "lora_A" in name else p.T for name, p in model.named_parameters()
                if "lora_A" in name or "lora_B" in name]
    return sum(torch.norm(m @ m.T - torch.eye(m.shape[0])) for m in matrices) / len(matrices)


@torch.no_grad()
def mean_loss(model, groups):
    model.eval()
    total = sum(summed_loss(model, some).double().item() for rows in groups for some in rows.split(8))
    return total / sum(rows[:, 1:].numel() for rows in groups)


def rate_factor(step, warmup, steps):
    """At step = 1, 2, …: linear warm-up, then half a period of a cosine."""
    done = step - 1
    return (done + 1) / warmup if done < warmup else 0.5 * (1 + math.cos(math.pi * (done - warmup) / (steps - warmup)))


def train(folder, millrace_batches, seed):
    """Returns the best held-out loss."""
    job = yaml.safe_load((folder / "job.yaml").read_text())
    phase = job["phases"][0]
    optimizer, steps, batch = phase["optimizer"], phase["stop"]["max_steps"], phase["global_batch"]
    with tempfile.TemporaryDirectory() as made:
        columns = 1 + int(subprocess.run(
            [millrace_batches, folder / "job.yaml", folder / "jobs" / job["name"] / "data", str(steps), made],
            check=True, capture_output=True, text=True).stdout)
        (rows,), held_out = (read_rows(f"{made}/{name}.u32", columns) for name in ("train", "held_out"))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(folder / phase["from"], dtype=torch.float32, attn_pdrop=0.0,
                                                 embd_pdrop=0.0, resid_pdrop=0.0)
    adapter = phase.get("adapter")
    if adapter is not None:
        if adapter["type"] == "llama_adapter":
            adapter.setdefault("layers", model.config.n_layer)
        model = get_peft_model(model, configuration(adapter, steps))
        if adapter["type"] in ("prompt_tuning", "p_tuning_v2", "llama_adapter"):
            for name, p in model.named_parameters():
                if p.requires_grad and "gate" not in name:
                    p.data *= adapter.get("init_std", 0.02)
    adalora = adapter is not None and adapter["type"] == "adalora"
    trained = [p for p in model.parameters() if p.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=optimizer["lr"], betas=optimizer["betas"],
                              weight_decay=optimizer["weight_decay"])
    best = math.inf
    for step in range(1, steps + 1):
        model.train()
        some = rows[(step - 1) * batch:step * batch]
        loss = summed_loss(model, some) / some[:, 1:].numel()
        if adalora:
            loss = loss + model.base_model.peft_config["default"].orth_reg_weight * orthogonality(model)
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for group in adamw.param_groups:
            group["lr"] = optimizer["lr"] * rate_factor(step, optimizer["warmup_steps"], steps)
        adamw.step()
        if adalora:
            model.base_model.update_and_allocate(step)
        if step % phase["evaluate"]["every_steps"] == 0 or step == steps:
            best = min(best, mean_loss(model, held_out))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default=HERE / "../build/bin/millrace_batches", type=pathlib.Path)
    parser.add_argument("--run", default=HERE / "../runs/adaptation", type=pathlib.Path)
    parser.add_argument("--seed", default=1, type=int)
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| way | Millrace | peft | difference |\n|---|---|---|---|")
    for folder in sorted(options.run.resolve().glob("*/events"), key=os.path.getmtime):
        folder = folder.parent
        if options.names and folder.name not in options.names:
            continue
        events = [json.loads(line) for line in (folder / "events").read_text().splitlines()]
        ours = min(e["evaluation"]["loss"] for e in events if "evaluation" in e)
        theirs = train(folder, options.batches, options.seed)
        print(f"| {folder.name} | {ours:.4f} | {theirs:.4f} | {ours / theirs - 1:+.2%} |", flush=True)


main()
