#!/usr/bin/env python3
"""Makes tests/golden/model/: tiny models with random weights, GPT-2, LLaMA, Mistral, Qwen2 and BERT by Hugging Face's
transformers, LSTM and gated convolutions by PyTorch's own layers; and what PyTorch computes with them in f64 rounded to
f32: logits, loss and gradients of one batch.

    pip install torch transformers safetensors
    tests/golden/make_model_goldens.py

Made with torch 2.15 and transformers 5.24; any recent ones give the same to 1e-6.
"""
import json
import pathlib
import types

import torch
from safetensors.torch import save_file
from transformers import (BertConfig, BertForPreTraining, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM,
                          MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM)

HERE = pathlib.Path(__file__).parent / "model"
VOCAB, CONTEXT, ROWS, COLUMNS = 29, 12, 3, 11


def make(name, model, rename=lambda name: name):
    torch.manual_seed(20261124)
    model = model.double()
    for parameter in model.parameters():
        # Far from the usual start, so that every term matters; gains and biases too.
        noise = torch.randn_like(parameter) * 0.3
        parameter.data = (noise + (1.0 if parameter.dim() == 1 and parameter.mean() > 0.5 else 0.0)).float().double()
    model.eval()
    tokens = torch.randint(0, VOCAB, (ROWS, COLUMNS))
    logits = model(tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), tokens[:, 1:].reshape(-1), reduction="sum")
    loss.backward()
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    tied = model.config.tie_word_embeddings
    weights = {rename(n): p.detach().float().contiguous() for n, p in model.named_parameters() if not (tied and n == "lm_head.weight")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads(model.config.to_json_string(use_diff=False))
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    answers = {"tokens": tokens.long(), "logits": logits.detach().float().contiguous(),
               "loss": loss.detach().double().reshape(1)}
    for n, p in model.named_parameters():
        answers["gradient." + rename(n)] = p.grad.float().contiguous()
    save_file(answers, folder / "answers.safetensors")
    print(name, sum(p.numel() for p in model.parameters()), "parameters, loss", loss.item())


make("gpt2", GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=4)))
make("llama", LlamaForCausalLM(LlamaConfig(
    vocab_size=VOCAB, max_position_embeddings=CONTEXT, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, intermediate_size=24, rms_norm_eps=1e-5, tie_word_embeddings=False, rope_theta=10000.0)))
# A window shorter than the rows; Qwen2 as small ones are, tied and without.
make("mistral", MistralForCausalLM(MistralConfig(
    vocab_size=VOCAB, max_position_embeddings=CONTEXT, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, intermediate_size=24, rms_norm_eps=1e-5, tie_word_embeddings=False, sliding_window=4,
    rope_parameters={"rope_type": "default", "rope_theta": 100.0})))
make("qwen2", Qwen2ForCausalLM(Qwen2Config(
    vocab_size=VOCAB, max_position_embeddings=CONTEXT, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, intermediate_size=24, rms_norm_eps=1e-6, tie_word_embeddings=True,
    rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})))


class Baseline(torch.nn.Module):
    """Embeddings, layers, a norm and logits; of families for which transformers has no class."""

    def __init__(self, config, width):
        super().__init__()
        self.config = types.SimpleNamespace(tie_word_embeddings=config["tie_word_embeddings"],
                                            to_json_string=lambda use_diff: json.dumps(config))
        self.embed_tokens = torch.nn.Embedding(VOCAB, width)
        self.norm = torch.nn.LayerNorm(width, eps=config["layer_norm_eps"])
        if not config["tie_word_embeddings"]:
            self.lm_head = torch.nn.Linear(width, VOCAB, bias=False)

    def forward(self, tokens):
        x = self.norm(self.layers_of(self.embed_tokens(tokens)))
        head = self.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return types.SimpleNamespace(logits=x @ head.weight.T)


class Lstm(Baseline):
    def __init__(self, config, width):
        super().__init__(config, width)
        self.lstm = torch.nn.LSTM(width, width, config["num_hidden_layers"], batch_first=True)
        # One bias a layer: PyTorch's other one is zero, and neither learnt nor stored.
        for i in range(config["num_hidden_layers"]):
            del self.lstm._parameters[f"bias_hh_l{i}"]
            self.lstm.register_buffer(f"bias_hh_l{i}", torch.zeros(4 * width))

    def layers_of(self, x):
        self.lstm._flat_weights = [getattr(self.lstm, name) for name in self.lstm._flat_weights_names]
        return self.lstm(x)[0]


class Cnn(Baseline):
    def __init__(self, config, width):
        super().__init__(config, width)
        self.kernel = config["kernel_size"]
        self.layers = torch.nn.ModuleList()
        for _ in range(config["num_hidden_layers"]):
            layer = torch.nn.Module()
            layer.norm = torch.nn.LayerNorm(width, eps=config["layer_norm_eps"])
            layer.conv = torch.nn.Linear(self.kernel * width, 2 * width)  # for its shapes
            self.layers.append(layer)

    def layers_of(self, x):
        width = x.shape[-1]
        for layer in self.layers:
            # Columns are by token; PyTorch has [outputs, inputs, tokens].
            weight = layer.conv.weight.view(2 * width, self.kernel, width).transpose(1, 2)
            padded = torch.nn.functional.pad(layer.norm(x).transpose(1, 2), (self.kernel - 1, 0))
            made = torch.nn.functional.conv1d(padded, weight, layer.conv.bias)
            x = x + torch.nn.functional.glu(made, dim=1).transpose(1, 2)
        return x


def baseline(family, tied, **fields):
    return {"model_type": "millrace_" + family, "vocab_size": VOCAB, "max_position_embeddings": CONTEXT,
            "hidden_size": 16, "num_hidden_layers": 2, "layer_norm_eps": 1e-5, "tie_word_embeddings": tied, **fields}


make("lstm", Lstm(baseline("lstm", True), 16), rename=lambda name: name.replace("lstm.bias_ih_", "lstm.bias_"))
make("cnn", Cnn(baseline("cnn", False, kernel_size=3), 16))


def make_bert():
    """An encoder as transformers writes it, rows of three lengths, two pieces of text in each."""
    torch.manual_seed(20261129)
    model = BertForPreTraining(BertConfig(
        vocab_size=VOCAB, max_position_embeddings=CONTEXT, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=24, layer_norm_eps=1e-12, pad_token_id=0, attn_implementation="eager")).double()
    for parameter in model.parameters():
        noise = torch.randn_like(parameter) * 0.3
        parameter.data = (noise + (1.0 if parameter.dim() == 1 and parameter.mean() > 0.5 else 0.0)).float().double()
    model.eval()
    lengths, seconds = [COLUMNS, 8, 5], [6, 3, 4]
    columns = torch.arange(COLUMNS)
    mask = torch.stack([(columns < n).long() for n in lengths])
    types = torch.stack([((columns >= s) & (columns < n)).long() for s, n in zip(seconds, lengths)])
    tokens = torch.randint(1, VOCAB, (ROWS, COLUMNS)) * mask
    # Every real token but each row's first is asked for.
    targets = torch.where((mask == 1) & (columns > 0), torch.randint(1, VOCAB, (ROWS, COLUMNS)), -100)
    follows = torch.tensor([1, 0, 1])
    made = model(input_ids=tokens, attention_mask=mask, token_type_ids=types, output_hidden_states=True)
    losses = torch.nn.functional.cross_entropy(made.prediction_logits.transpose(1, 2), targets, reduction="none")
    pair_losses = torch.nn.functional.cross_entropy(made.seq_relationship_logits, 1 - follows, reduction="none")
    loss = (losses.sum(1) / (targets >= 0).sum(1) + pair_losses).sum()
    loss.backward()
    folder = HERE / "bert"
    folder.mkdir(parents=True, exist_ok=True)
    answers = {"tokens": tokens, "types": types, "lengths": torch.tensor(lengths), "targets": targets,
               "follows": follows, "outputs": made.hidden_states[-1].detach().float().contiguous(),
               "logits": made.prediction_logits.detach().float().contiguous(),
               "pair_logits": made.seq_relationship_logits.detach().float().contiguous(),
               "losses": losses.detach(), "pair_losses": pair_losses.detach(), "loss": loss.detach().reshape(1)}
    for n, p in model.named_parameters():
        answers["gradient." + n] = p.grad.float().contiguous()
    save_file(answers, folder / "answers.safetensors")
    print("bert", sum(p.numel() for p in model.parameters()), "parameters, loss", loss.item())
    model.float().save_pretrained(folder)
    config = json.loads(model.config.to_json_string(use_diff=False))
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


make_bert()
