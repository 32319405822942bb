#!/usr/bin/env python3
"""Trains adapters of every type by `millrace` and by Hugging Face's peft and hands them over, both ways. Run by hand.

    pip install torch transformers safetensors peft
    tests/golden/check_exports.py --make bpe.json OUT      # models to begin with: gpt2, llama, mistral, qwen2, …
    tests/golden/check_adapters.py build/bin/millrace build/bin/millrace_batches OUT/gpt2 OUT/llama …

For each model: an adapter trained here, exported, opens in peft with the same log-probabilities (1e-4 in f32) and the
same greedy text, beside the model and, where that can be, merged into it; two LoRAs together are peft's two active
ones; an adapter that peft has made, imported, begins a phase with peft's held-out loss (1e-4), and learns on. Last run
with torch 2.15, transformers 5.24 and peft 0.21.2: gpt2 whole; llama but for what follows peft's prompt_tuning.
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy
import torch
from peft import (AdaptionPromptConfig, IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig,
                  get_peft_model)
from transformers import AutoModelForCausalLM

TEXT = "And the sack of corn was carried to the mill, where the miller's wheel turned: so it is written.\n"
PROMPT = "And the "
LORA = "{type: lora, rank: 4, alpha: 8, targets: [all-linear]}"
# As job files say it.
ADAPTERS = {
    "lora": LORA,
    "lora-other": "{type: lora, rank: 2, alpha: 6}",
    "rslora": "{type: lora, rank: 4, rank_stabilized: true}",
    "dora": "{type: lora, rank: 4, dora: true, targets: [all-linear]}",
    "ia3": "{type: ia3}",
    "prompt_tuning": "{type: prompt_tuning, virtual_tokens: 4}",
    "p_tuning": "{type: p_tuning, virtual_tokens: 4}",
    "prefix_tuning": "{type: prefix_tuning, virtual_tokens: 4}",
    "p_tuning_v2": "{type: p_tuning_v2, virtual_tokens: 4}",
    "llama_adapter": "{type: llama_adapter, virtual_tokens: 4, layers: 2}",
}
MERGES = ("lora", "lora-other", "rslora", "dora", "ia3")
NO_LLAMA_ADAPTER = ("qwen2",)  # peft knows none for it


def theirs(layers):
    """The same by peft, of those from whose files training can go on; with the job file's words."""
    common, virtual = {"task_type": "CAUSAL_LM"}, {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    return {
        LORA: LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **common),
        ADAPTERS["dora"]: LoraConfig(r=4, lora_alpha=4, use_dora=True, target_modules="all-linear", **common),
        ADAPTERS["ia3"]: IA3Config(**common),
        ADAPTERS["prompt_tuning"]: PromptTuningConfig(**virtual),
        ADAPTERS["p_tuning_v2"]: PrefixTuningConfig(**virtual),
        ADAPTERS["llama_adapter"]: AdaptionPromptConfig(adapter_len=4, adapter_layers=2, **common),
    }


def run(*arguments):
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def model_spec(folder):
    """What a job file says of the model of a Hugging Face folder."""
    c = json.loads((folder / "config.json").read_text())
    spec = {"family": c["model_type"], "tied_embeddings": c.get("tie_word_embeddings", True)}
    if c["model_type"] == "gpt2":
        spec |= {"layers": c["n_layer"], "hidden_size": c["n_embd"], "heads": c["n_head"], "context": c["n_positions"]}
    else:
        spec |= {"layers": c["num_hidden_layers"], "hidden_size": c["hidden_size"], "heads": c["num_attention_heads"],
                 "kv_heads": c["num_key_value_heads"], "intermediate_size": c["intermediate_size"],
                 "context": c["max_position_embeddings"], "norm_epsilon": c["rms_norm_eps"],
                 "rope_theta": c["rope_parameters"]["rope_theta"]}
        if c.get("sliding_window") and c.get("use_sliding_window", True):
            spec["sliding_window"] = c["sliding_window"]
    return json.dumps(spec)  # which is YAML, too


def log_probabilities(model, ids):
    """Of ids[1:], however many virtual tokens stand before."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0, 1 - len(ids):].double()
    return torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()


def greedy(model, ids, count):
    made = []
    for _ in range(count):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + made]), use_cache=False).logits[0, -1]
        made.append(int(logits.argmax()))
        if made[-1] == ids[0]:
            return made[:-1]
    return made


class Check:
    def __init__(self, millrace, batches, folder, work):
        self.millrace, self.batches, self.work = millrace, batches, work
        self.good = True
        self.base = work / "base"
        run(millrace, "import", "--from", folder, "--out", self.base)
        self.spec = model_spec(folder)
        tokenizer = json.loads((self.base / "tokenizer.json").read_text())
        self.end = next(t["id"] for t in tokenizer["added_tokens"] if t["content"] == "<|endoftext|>")
        self.text = work / "text.txt"
        self.text.write_text("".join(f"Sack {i % 7} weighs {i * 3 % 11}. {TEXT}" for i in range(200)))

    def fresh(self):
        return AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32).eval()

    def train(self, name, adapter, start, steps, rate):
        """Trains a phase; returns its checkpoint and held-out losses, by step."""
        folder = self.work / name
        folder.mkdir()
        (folder / "job.yaml").write_text(f"""name: {name}
data: {{sources: [{{path: {self.text}}}], held_out: 0.1, split: {{order: file}}}}
tokenizer: {{path: {self.base}}}
model: {self.spec}
phases:
  - name: adapt
    from: {start}
    adapter: {adapter}
    global_batch: 2
    optimizer: {{lr: {rate}, weight_decay: 0, schedule: constant}}
    evaluate: {{every_steps: 1, max_tokens: {self.context(adapter) * 2}}}
    stop: {{max_steps: {steps}}}
""")
        run(self.millrace, "train", folder / "job.yaml", "--threads", 1, "--dir", folder)
        checkpoint = folder / "jobs" / name / "checkpoints/last"
        return checkpoint, [e["loss"] for e in json.loads((checkpoint / "manifest.json").read_text())["evaluations"]]

    def context(self, adapter):
        context = json.loads(self.spec)["context"]
        return context - 4 if re.search("type: (p|prompt|prefix)_tuning", adapter) else context

    def ours(self, model, *adapters):
        flags = ["--model", model, "--threads", 1] + [f for a in adapters for f in ("--adapter", a)]
        score = json.loads(run(self.millrace, "score", *flags, "--text", TEXT, "--json"))["tokens"]
        made = json.loads(run(self.millrace, "generate", *flags, "--prompt", PROMPT, "--max-tokens", 24,
                              "--temperature", 0, "--json"))["tokens"]
        prompt = json.loads(run(self.millrace, "score", *flags, "--text", PROMPT, "--json"))["tokens"]
        return ([self.end] + [t["id"] for t in score], [t["log_probability"] for t in score],
                [self.end] + [t["id"] for t in prompt], made)

    def compare(self, what, ours, model):
        ids, right, prompt, made = ours
        worst = numpy.abs(log_probabilities(model, ids) - numpy.array(right)).max()
        same = greedy(model, prompt, len(made) if len(made) == 24 else len(made) + 1) == made
        self.good &= bool(worst <= 1e-4) and same
        print(f"  {what:24} log-probabilities within {worst:.1e}, greedy text {'same' if same else 'DIFFERS'}",
              flush=True)

    def to_peft(self, family):
        alone = self.ours(self.base)
        self.compare("no adapter", alone, self.fresh())
        checkpoints, exported = {}, {}
        for name, adapter in ADAPTERS.items():
            if name == "llama_adapter" and family in NO_LLAMA_ADAPTER:
                continue
            checkpoints[name], losses = self.train(name, adapter, self.base, 6, 3e-2)
            ours = self.ours(checkpoints[name])
            moved = numpy.abs(numpy.array(ours[1]) - numpy.array(alone[1])).max()
            if moved < 0.01:
                self.good = False
                print(f"  {name}: has learnt NOTHING ({moved:.1e})")
            exported[name] = self.work / f"{name}-peft"
            run(self.millrace, "export", "--format", "peft", "--model", checkpoints[name], "--base", "../base", "--out",
                exported[name])
            self.compare(name, ours, PeftModel.from_pretrained(self.fresh(), exported[name]).eval())
            if name in MERGES:
                merged = self.work / f"{name}-merged"
                run(self.millrace, "export", "--model", checkpoints[name], "--out", merged)
                self.compare(f"{name} merged", ours, AutoModelForCausalLM.from_pretrained(merged).eval())
        both = PeftModel.from_pretrained(self.fresh(), exported["lora"], adapter_name="a")
        both.load_adapter(exported["lora-other"], adapter_name="b")
        both.base_model.set_adapter(["a", "b"])
        self.compare("two loras", self.ours(self.base, exported["lora"], exported["lora-other"]), both.eval())

    def from_peft(self, family):
        for number, (adapter, settings) in enumerate(theirs(json.loads(self.spec)["layers"]).items()):
            kind = re.search("type: ([a-z0-9_]+)", adapter).group(1)
            if kind == "llama_adapter" and family in NO_LLAMA_ADAPTER:
                continue
            name = f"theirs-{number}"
            torch.manual_seed(number)
            model = get_peft_model(self.fresh(), settings)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    # As if it had learnt.
                    parameter.data += 0.05 * torch.randn_like(parameter)
            model.eval().save_pretrained(self.work / name / "peft")
            run(self.millrace, "import", "--from", self.base, "--adapter", self.work / name / "peft", "--out",
                self.work / name / "model")
            self.compare(f"peft's {kind}", self.ours(self.work / name / "model"), model)
            # Nothing is learnt in the first job, so that it shows where it began.
            _, start = self.train(f"start-{number}", adapter, self.work / name / "model", 1, 1e-12)
            _, more = self.train(f"more-{number}", adapter, self.work / name / "model", 6, 1e-2)
            rows = self.work / f"rows-{number}"
            columns = 1 + int(run(self.batches, self.work / f"start-{number}" / "job.yaml",
                                  self.work / f"start-{number}" / "jobs" / f"start-{number}" / "data", 1, rows))
            held_out = numpy.fromfile(rows / "held_out.u32", dtype="<u4").reshape(-1, columns).tolist()
            loss = -numpy.concatenate([log_probabilities(model, row) for row in held_out]).mean()
            good = abs(loss - start[0]) <= 1e-4 and more[-1] < start[0]
            self.good &= bool(good)
            print(f"  {'':24} held-out loss {loss:.5f}, here {start[0]:.5f}, after 6 steps {more[-1]:.5f}"
                  f"{'' if good else '  WRONG'}", flush=True)


def main():
    good = True
    for folder in map(pathlib.Path, sys.argv[3:]):
        print(folder)
        with tempfile.TemporaryDirectory() as work:
            check = Check(pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve(), folder.resolve(),
                          pathlib.Path(work))
            family = json.loads((folder / "config.json").read_text())["model_type"]
            check.to_peft(family)
            check.from_peft(family)
            good &= check.good
    sys.exit(0 if good else 1)


main()
