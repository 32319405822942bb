#!/usr/bin/env python3
"""Makes tests/golden/adapters/: small adapters of every kind written by Hugging Face's peft on the models of
tests/golden/model/, and what PyTorch computes with them in f64 rounded to f32: logits, loss and gradients of one batch.

    pip install torch transformers peft safetensors
    tests/golden/make_adapter_goldens.py [--model MODELS] [--out FOLDER] [--check]

Made with torch 2.15, transformers 5.24 and peft 0.21. MODELS holds gpt2/ and llama/ with config.json and
model.safetensors. --check only recomputes the files that are there by plain torch (as every run does at its end).

FOLDER/{gpt2,llama}/METHOD/ holds
    adapter_config.json, adapter_model.safetensors   as peft wrote them (values f32, lists of target modules sorted,
                                                     the base model's path relative)
    answers.safetensors
        tokens               i64 [3, 9]; inputs are the first 8 columns, labels the last 8
        logits               f32 [3, 8, vocabulary], of the text's positions only
        loss                 f64 [1], summed cross entropy of the 24 labels
        gradient.NAME        f32, of that loss by each tensor NAME of adapter_model.safetensors
        training.NAME        f32, for encoders of prompts only: what peft trains, and does not save
        gradient.training.NAME
        orthogonality        f64 [1], AdaLoRA only: mean over all A and B of |A A' - I|, |B' B - I| (Frobenius), which
                             is times orth_reg_weight (.5) added to the loss, but not in `loss` and `gradient.`
        before.NAME          f32, adalora_pruned only: the tensors before pruning; see prune()

transformers and peft compute a few things in f32 whatever the model's type (RMSNorm, RoPE, the softmax of
LLaMA-Adapter); here these are computed in f64 too, by the same formulas.
"""
import argparse
import json
import math
import os
import pathlib
import shutil
import tempfile
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from peft import (AdaLoraConfig, AdaptionPromptConfig, IA3Config, LoraConfig, PeftModel, PrefixTuningConfig,
                  PromptEncoderConfig, PromptTuningConfig, get_peft_model)
from peft.tuners.adaption_prompt import layer as adaption_prompt_layer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

HERE = pathlib.Path(__file__).resolve().parent
ROWS, COLUMNS, VIRTUAL = 3, 9, 3
CAUSAL = dict(task_type="CAUSAL_LM")
METHODS = {
    "lora": lambda: LoraConfig(r=3, lora_alpha=6, **CAUSAL),
    "lora_all": lambda: LoraConfig(r=2, lora_alpha=5, use_rslora=True, target_modules="all-linear", **CAUSAL),
    "dora": lambda: LoraConfig(r=2, lora_alpha=3, use_dora=True, **CAUSAL),
    "adalora": lambda: AdaLoraConfig(init_r=4, target_r=2, lora_alpha=6, total_step=10, **CAUSAL),
    "adalora_pruned": lambda: AdaLoraConfig(init_r=4, target_r=2, lora_alpha=6, total_step=4, **CAUSAL),
    "ia3": lambda: IA3Config(**CAUSAL),
    "prompt_tuning": lambda: PromptTuningConfig(num_virtual_tokens=VIRTUAL, **CAUSAL),
    "p_tuning_mlp": lambda: PromptEncoderConfig(
        num_virtual_tokens=VIRTUAL, encoder_reparameterization_type="MLP", **CAUSAL),
    "p_tuning_lstm": lambda: PromptEncoderConfig(
        num_virtual_tokens=VIRTUAL, encoder_reparameterization_type="LSTM", **CAUSAL),
    "prefix_tuning": lambda: PrefixTuningConfig(num_virtual_tokens=VIRTUAL, **CAUSAL),
    "prefix_projection": lambda: PrefixTuningConfig(num_virtual_tokens=VIRTUAL, prefix_projection=True, **CAUSAL),
    "llama_adapter_1": lambda: AdaptionPromptConfig(adapter_len=3, adapter_layers=1, **CAUSAL),
    "llama_adapter_2": lambda: AdaptionPromptConfig(adapter_len=3, adapter_layers=2, **CAUSAL),
}
PROMPTS = ("prompt_tuning", "p_tuning_mlp", "p_tuning_lstm", "prefix_tuning", "prefix_projection")
ENCODERS = ("p_tuning_mlp", "p_tuning_lstm", "prefix_projection")


def compute_in_f64():
    """Replaces what transformers and peft compute in f32 even in an f64 model."""
    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self, x, position_ids):
        theta, width = self.config.rope_parameters["rope_theta"], self.config.head_dim
        frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles = position_ids[..., None].double() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    class Functional:
        softmax = staticmethod(lambda x, dim, dtype: torch.softmax(x, dim))

    modeling_llama.LlamaRMSNorm.forward = norm
    modeling_llama.LlamaRotaryEmbedding.forward = rotary
    adaption_prompt_layer.F = Functional


def f32_values(tensor):
    return tensor.detach().float().double()


def load_base(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def file_name(parameter):
    """The name of a parameter of a PeftModel in adapter_model.safetensors."""
    if "lora_magnitude_vector" in parameter:
        return parameter.replace(".default.weight", "")
    return parameter.replace(".default", "")


def summed_loss(logits, tokens):
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1), reduction="sum")


def text_logits(model, method, tokens):
    logits = model(input_ids=tokens[:, :-1]).logits
    # Input embeddings of virtual tokens have logits of their own; a prefix in the KV cache has none.
    leading = VIRTUAL if method in ("prompt_tuning", "p_tuning_mlp", "p_tuning_lstm") else 0
    assert logits.shape[1] == COLUMNS - 1 + leading
    return logits[:, leading:]


def trainable(model):
    """Names and parameters that are trained; AdaLoRA's ranknum, a constant, says that it requires a gradient too."""
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad and "ranknum" not in n]


def fill(model):
    """Random values far from the usual start in everything that is trained."""
    for name, parameter in trainable(model):
        noise = torch.randn_like(parameter)
        if "ia3_l" in name or "adaption_gate" in name:
            value = 1 + 0.3 * noise
        elif "lora_magnitude_vector" in name:
            value = parameter * (1 + 0.2 * noise)  # it starts at the norms of the rows of W
        else:
            value = 0.3 * noise
        parameter.data = f32_values(value)


def prune(model, tokens):
    """AdaLoRA's allocation of ranks with learning rate 0: in each of the steps 1 to total_step the summed loss is
    differentiated and update_and_allocate(step) called, which masks E; no term for orthogonality is added."""
    steps = model.peft_config["default"].total_step
    before = {file_name(n): p.detach().clone() for n, p in trainable(model)}
    for step in range(1, steps + 1):
        model.zero_grad()
        summed_loss(text_logits(model, "adalora", tokens), tokens).backward()
        model.base_model.update_and_allocate(step)
    return before


def save(model, folder, base):
    """Saves as peft does, then makes values f32 and the configuration independent of this machine and run."""
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        config = json.loads((pathlib.Path(temporary) / "adapter_config.json").read_text())
        with safe_open(pathlib.Path(temporary) / "adapter_model.safetensors", "pt") as f:
            metadata = f.metadata()
            tensors = {name: f.get_tensor(name).float().contiguous() for name in f.keys()}
    config["base_model_name_or_path"] = "../../../model/" + base
    for key in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    save_file(tensors, folder / "adapter_model.safetensors", metadata=metadata)


def make(models, out, base, method, seed, tokens):
    torch.manual_seed(seed)
    folder = out / base / method
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Also in f64: peft makes the encoders of prompts in f32.
    trained = get_peft_model(load_base(models / base), METHODS[method]()).double().eval()
    fill(trained)
    answers = {}
    if method == "adalora_pruned":
        answers.update({"before." + name: value.float() for name, value in prune(trained, tokens).items()})
        ranks = {sum(pattern) for pattern in trained.peft_config["default"].rank_pattern.values()}
        if 0 in ranks or len(ranks) == 1:  # peft takes tensors without elements for broken ones
            return make(models, out, base, method, seed + 100, tokens)
    if method in PROMPTS:
        logits_trained = text_logits(trained, method, tokens)
        loss_trained = summed_loss(logits_trained, tokens)
        loss_trained.backward()
        encoder = trained.prompt_encoder["default"]
        assert not encoder.training
        for name, parameter in encoder.named_parameters():
            assert parameter.grad.abs().max() > 0, name
            if method in ENCODERS:
                answers["training." + name] = parameter.detach().float()
                answers["gradient.training." + name] = parameter.grad.float()
    save(trained, folder, base)
    saved = load_file(folder / "adapter_model.safetensors")

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # about tensors that are missing
        warnings.filterwarnings("ignore", message="Setting `use_cache|.*deprecated")
        warnings.filterwarnings("ignore", message="The following rank_pattern keys")  # said of every file, wrongly
        loaded = PeftModel.from_pretrained(load_base(models / base), folder, is_trainable=method not in PROMPTS)
    loaded = loaded.double().eval()
    if method in PROMPTS:
        parameters = {"prompt_embeddings": loaded.prompt_encoder["default"].embedding.weight.requires_grad_()}
    else:
        parameters = {file_name(n): p for n, p in trainable(loaded)}
    assert parameters.keys() == saved.keys(), (parameters.keys(), saved.keys())
    for name, parameter in parameters.items():
        assert torch.equal(parameter.detach(), saved[name].double()), name
    logits = text_logits(loaded, method, tokens)
    loss = summed_loss(logits, tokens)
    loss.backward()
    answers.update({"tokens": tokens, "logits": logits.detach().float(), "loss": loss.detach().reshape(1)})
    for name, parameter in parameters.items():
        assert parameter.grad.abs().max() > 0, name
        answers["gradient." + name] = parameter.grad.float()
    if method in PROMPTS:  # what is saved is what was trained, but for the rounding of an encoder's output
        difference = (logits - logits_trained).abs().max().item()
        assert difference <= (1e-5 if method in ENCODERS else 1e-12), difference
        if method in ENCODERS:
            print(f"{base}/{method}: rounding the encoder's output to f32 changes logits by {difference:.1e}")
        else:
            assert torch.allclose(encoder.embedding.weight.grad, parameters["prompt_embeddings"].grad, atol=1e-12)
    if method.startswith("adalora"):
        regularizers = []
        for name, value in parameters.items():
            if "lora_A" in name or "lora_B" in name:
                gram = value @ value.T if "lora_A" in name else value.T @ value
                regularizers.append(torch.norm(gram - torch.eye(len(gram))))
        answers["orthogonality"] = torch.stack(regularizers).mean().detach().reshape(1)
        batch = dict(input_ids=tokens, labels=tokens)
        added = loaded(**batch).loss - loaded.base_model.model(**batch).loss  # in f32
        assert abs(added - 0.5 * answers["orthogonality"]) < 1e-5, (added, answers["orthogonality"])
    save_file({name: value.contiguous() for name, value in answers.items()}, folder / "answers.safetensors")
    return logits.detach(), loss.item(), {name: p.grad.clone() for name, p in parameters.items()}


# ---- The same by plain torch, from the files alone ----

class Adapted:
    """One of the two models with an adapter's tensors, whose names are full names as in the file."""

    def __init__(self, models, base, config, tensors):
        self.c = json.loads((models / base / "config.json").read_text())
        self.w = {n: t.double() for n, t in load_file(models / base / "model.safetensors").items()}
        self.gpt2 = base == "gpt2"
        self.a, self.t = config, tensors
        self.kind = config["peft_type"]

    def adapter(self, module, name):
        return self.t.get(f"base_model.model.{module}.{name}")

    def linear(self, module, x):
        w = self.w[module + ".weight"].T if self.gpt2 else self.w[module + ".weight"]  # [out, in]
        b = self.w.get(module + ".bias", torch.zeros(len(w), dtype=torch.float64))
        ia3 = self.adapter(module, "ia3_l")
        if ia3 is not None and ia3.shape[0] == 1:
            return (x * ia3[0]) @ w.T + b
        if ia3 is not None:
            return (x @ w.T + b) * ia3[:, 0]
        if self.kind == "LORA":
            A, B = self.adapter(module, "lora_A.weight"), self.adapter(module, "lora_B.weight")
            if A is not None:
                r, alpha = self.a["r"], self.a["lora_alpha"]
                delta = (alpha / math.sqrt(r) if self.a["use_rslora"] else alpha / r) * (B @ A)
                w = w + delta
                m = self.adapter(module, "lora_magnitude_vector")
                if m is not None:
                    w = (m / w.detach().norm(dim=1))[:, None] * w
        if self.kind == "ADALORA":
            A, E, B = (self.adapter(module, "lora_" + l) for l in "AEB")
            if A is not None:
                w = w + self.a["lora_alpha"] / (self.a["init_r"] + 1e-5) * (B @ (E * A))
        return x @ w.T + b

    def prefix(self, layer):
        """K and V [virtual, KV heads, head width] of a layer, already as in the cache."""
        p = self.t["prompt_embeddings"]
        heads = self.a["num_attention_heads"]
        p = p.view(len(p), 2 * self.a["num_layers"], heads, self.a["token_dim"] // heads)
        return p[:, 2 * layer], p[:, 2 * layer + 1]

    def attend(self, q, k, v, layer):
        """q [rows, T, heads, width], k and v [rows, T, KV heads, width]."""
        if self.kind == "PREFIX_TUNING":
            pk, pv = self.prefix(layer)
            k = torch.cat((pk.expand(len(k), -1, -1, -1), k), 1)
            v = torch.cat((pv.expand(len(v), -1, -1, -1), v), 1)
        group = q.shape[2] // k.shape[2]
        heads = []
        for h in range(q.shape[2]):
            s = q[:, :, h] @ k[:, :, h // group].transpose(1, 2) / math.sqrt(q.shape[3])
            mask = torch.ones(s.shape[1:], dtype=torch.bool).tril(s.shape[2] - s.shape[1])
            heads.append(torch.softmax(s.masked_fill(~mask, -math.inf), -1) @ v[:, :, h // group])
        return torch.stack(heads, 2)

    def adaption(self, module, q, project, kv_heads):
        """LLaMA-Adapter's addition [rows, T, heads * width], before any output projection."""
        prompt, gate = self.adapter(module, "adaption_prompt"), self.adapter(module, "adaption_gate")
        if prompt is None:
            return None
        k, v = (x.view(-1, kv_heads, q.shape[3]) for x in project(prompt[0]))
        group = q.shape[2] // kv_heads
        heads = []
        for h in range(q.shape[2]):
            s = q[:, :, h] @ k[:, h // group].T / math.sqrt(q.shape[3])
            heads.append(gate * torch.softmax(s, -1) @ v[:, h // group])
        return torch.stack(heads, 2).flatten(2)

    def logits(self, tokens):
        x = self.w["transformer.wte.weight" if self.gpt2 else "model.embed_tokens.weight"][tokens]
        first = 0
        if self.kind in ("PROMPT_TUNING", "P_TUNING"):
            x = torch.cat((self.t["prompt_embeddings"].expand(len(x), -1, -1), x), 1)
        if self.kind == "PREFIX_TUNING":
            first = self.a["num_virtual_tokens"]
        positions = torch.arange(first, first + x.shape[1])
        x = self.gpt2_logits(x, positions) if self.gpt2 else self.llama_logits(x, positions)
        return x[:, x.shape[1] - tokens.shape[1]:]

    def gpt2_logits(self, x, positions):
        c = self.c

        def norm(name, x):
            x = x - x.mean(-1, keepdim=True)
            x = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + c["layer_norm_epsilon"])
            return x * self.w[name + ".weight"] + self.w[name + ".bias"]

        x = x + self.w["transformer.wpe.weight"][positions]
        shape = (*x.shape[:2], c["n_head"], c["n_embd"] // c["n_head"])
        for layer in range(c["n_layer"]):
            h = f"transformer.h.{layer}."
            q, k, v = (y.view(shape) for y in self.linear(h + "attn.c_attn", norm(h + "ln_1", x)).chunk(3, -1))
            added = self.linear(h + "attn.c_proj", self.attend(q, k, v, layer).flatten(2))
            project = lambda p: self.linear(h + "attn.c_attn", p).chunk(3, -1)[1:]
            adaption = self.adaption(h + "attn", q, project, c["n_head"])
            x = x + added + (0 if adaption is None else adaption)  # c_proj is not applied to it
            y = self.linear(h + "mlp.c_fc", norm(h + "ln_2", x))
            y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
            x = x + self.linear(h + "mlp.c_proj", y)
        return norm("transformer.ln_f", x) @ self.w["transformer.wte.weight"].T

    def llama_logits(self, x, positions):
        c = self.c
        width, kv_heads = c["head_dim"], c["num_key_value_heads"]
        theta = c["rope_parameters"]["rope_theta"]
        angles = positions[:, None].double() * theta ** (-torch.arange(0, width, 2).double() / width)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]

        def norm(name, x):
            return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + c["rms_norm_eps"]) * self.w[name + ".weight"]

        def rope(x):
            a, b = x.chunk(2, -1)
            return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

        for layer in range(c["num_hidden_layers"]):
            h = f"model.layers.{layer}."
            y = norm(h + "input_layernorm", x)
            q, k, v = (self.linear(f"{h}self_attn.{n}_proj", y).view(*x.shape[:2], -1, width) for n in "qkv")
            q, k = rope(q), rope(k)
            y = self.attend(q, k, v, layer).flatten(2)
            project = lambda p: (self.linear(h + "self_attn.k_proj", p), self.linear(h + "self_attn.v_proj", p))
            adaption = self.adaption(h + "self_attn", q, project, kv_heads)
            x = x + self.linear(h + "self_attn.o_proj", y if adaption is None else y + adaption)
            y = norm(h + "post_attention_layernorm", x)
            gate = self.linear(h + "mlp.gate_proj", y)
            x = x + self.linear(h + "mlp.down_proj", gate * torch.sigmoid(gate) * self.linear(h + "mlp.up_proj", y))
        return norm("model.norm", x) @ self.w["lm_head.weight"].T


def encoder_output(method, t):
    """What peft's encoders of prompts give, from their training tensors."""
    def layer(name, x):
        return x @ t[name + ".weight"].T + t[name + ".bias"]

    x = t["embedding.weight"]
    if method == "prefix_projection":
        return layer("transform.2", torch.tanh(layer("transform.0", x)))
    if method == "p_tuning_mlp":
        return layer("mlp_head.4", torch.relu(layer("mlp_head.2", torch.relu(layer("mlp_head.0", x)))))
    for number in range(2):
        directions = []
        for suffix in (f"l{number}", f"l{number}_reverse"):
            w, u, b, d = (t[f"lstm_head.{n}_{suffix}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            hidden = cell = torch.zeros(u.shape[1], dtype=torch.float64)
            outputs = []
            for token in (x if "reverse" not in suffix else x.flip(0)):
                i, f, g, o = (w @ token + b + u @ hidden + d).chunk(4)
                cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
                hidden = torch.sigmoid(o) * torch.tanh(cell)
                outputs.append(hidden)
            directions.append(torch.stack(outputs if "reverse" not in suffix else outputs[::-1]))
        x = torch.cat(directions, -1)
    return layer("mlp_head.2", torch.relu(layer("mlp_head.0", x)))


def check_ranks(models, base, config, answers, tensors):
    """AdaLoRA's pruning from the tensors `before.`, by plain torch."""
    t = {n[len("before."):]: v.double().requires_grad_() for n, v in answers.items() if n.startswith("before.")}
    model = Adapted(models, base, config, t)
    smooth, uncertain = {n: 0 for n in t}, {n: 0 for n in t}
    b1, b2, total, r = config["beta1"], config["beta2"], config["total_step"], config["init_r"]
    names = [n[:-len("lora_E")] for n in t if n.endswith("lora_E")]
    for step in range(1, total + 1):
        tokens = answers["tokens"]
        loss = summed_loss(model.logits(tokens[:, :-1]), tokens)
        gradients = dict(zip(t, torch.autograd.grad(loss, list(t.values()))))
        if step < total:  # importance is not updated any more when the pattern becomes final
            for n, g in gradients.items():
                importance = (t[n] * g).abs().detach()
                smooth[n] = b1 * smooth[n] + (1 - b1) * importance
                uncertain[n] = b2 * uncertain[n] + (1 - b2) * (importance - smooth[n]).abs()
        first, last = r * len(names), config["target_r"] * len(names)
        budget = int((first - last) * (1 - step / total) ** 3 + last)
        score = {n: smooth[n] * uncertain[n] for n in t}
        triplet = {n: score[n + "lora_E"][:, 0] + score[n + "lora_A"].mean(1) + score[n + "lora_B"].mean(0)
                   for n in names}
        threshold = torch.cat(list(triplet.values())).sort().values[first - budget - 1]
        keep = {n: triplet[n] > threshold for n in names}
        for n in names:
            t[n + "lora_E"].data[~keep[n]] = 0
    for n in names:
        pattern = config["rank_pattern"][n[len("base_model.model."):] + "lora_E"]
        assert pattern == keep[n].tolist(), (n, pattern, keep[n])
        for l in "AE":
            assert torch.equal(t[n + "lora_" + l][keep[n]], tensors[n + "lora_" + l])
        assert torch.equal(t[n + "lora_B"][:, keep[n]], tensors[n + "lora_B"])
        assert (tensors[n + "lora_E"] != 0).all()


def check(models, out, base, method, exact=None):
    """Recomputes a folder by plain torch: against `exact` (logits, loss, gradients in f64) or the files in f32."""
    folder = out / base / method
    config = json.loads((folder / "adapter_config.json").read_text())
    answers = load_file(folder / "answers.safetensors")
    tensors = {n: t.double().requires_grad_() for n, t in load_file(folder / "adapter_model.safetensors").items()}
    tokens = answers["tokens"]
    assert tokens.shape == (ROWS, COLUMNS)
    logits = Adapted(models, base, config, tensors).logits(tokens[:, :-1])
    loss = summed_loss(logits, tokens)
    gradients = dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values()))))
    assert all(answers["gradient." + n].shape == tensors[n].shape for n in tensors)
    worst = 0.0

    def compare(mine, theirs, bound):
        nonlocal worst
        difference = (mine - theirs).abs().max().item() / max(1.0, theirs.abs().max().item())
        worst = max(worst, difference)
        assert difference <= bound, (base, method, difference)

    if exact is not None:
        compare(logits, exact[0], 1e-9)
        compare(loss, torch.tensor(exact[1], dtype=torch.float64), 1e-9)
        assert exact[2].keys() == gradients.keys()
        for name in gradients:
            compare(gradients[name], exact[2][name], 1e-9)
    report = worst
    compare(logits, answers["logits"], 1e-6)
    compare(loss, answers["loss"][0], 1e-12)
    for name in gradients:
        compare(gradients[name], answers["gradient." + name], 1e-6)
    if method in ENCODERS:
        t = {n[len("training."):]: v.double().requires_grad_() for n, v in answers.items() if n.startswith("training.")}
        embeddings = encoder_output(method, t)
        compare(embeddings, tensors["prompt_embeddings"], 1e-7)
        model = Adapted(models, base, config, {"prompt_embeddings": embeddings})
        loss = summed_loss(model.logits(tokens[:, :-1]), tokens)
        for name, gradient in zip(t, torch.autograd.grad(loss, list(t.values()))):
            compare(gradient, answers["gradient.training." + name], 1e-6)
    if method == "adalora_pruned":
        check_ranks(models, base, config, answers, tensors)
    exactly = "" if exact is None else f"{report:.1e} in f64 and "
    print(f"{base}/{method}: plain torch differs by {exactly}{worst:.1e} from the files; loss {loss.item():.6f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=pathlib.Path, default=HERE / "model")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "adapters")
    parser.add_argument("--check", action="store_true", help="only recompute the files that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    compute_in_f64()
    for base in ("gpt2", "llama"):
        torch.manual_seed(20261125)
        vocabulary = json.loads((options.model / base / "config.json").read_text())["vocab_size"]
        tokens = torch.randint(0, vocabulary, (ROWS, COLUMNS))
        for index, method in enumerate(METHODS):
            exact = None if options.check else make(options.model, options.out, base, method, 1000 + index, tokens)
            check(options.model, options.out, base, method, exact)


main()
