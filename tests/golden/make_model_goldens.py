#!/usr/bin/env python3
"""Makes tests/golden/model/: tiny GPT-2, LLaMA, Mistral and Qwen2 models by Hugging Face's transformers with random weights, and what
PyTorch computes with them in f64 rounded to f32: logits, loss and gradients of one batch.

    pip install torch transformers safetensors
    tests/golden/make_model_goldens.py

Made with torch 2.15 and transformers 5.24; any recent ones give the same to 1e-6.
"""
import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import (GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig,
                          MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM)

HERE = pathlib.Path(__file__).parent / "model"
VOCAB, CONTEXT, ROWS, COLUMNS = 29, 12, 3, 11


def make(name, model):
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
    weights = {n: p.detach().float().contiguous() for n, p in model.named_parameters() if not (tied and n == "lm_head.weight")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads(model.config.to_json_string(use_diff=False))
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    answers = {"tokens": tokens.long(), "logits": logits.detach().float().contiguous(),
               "loss": loss.detach().double().reshape(1)}
    for n, p in model.named_parameters():
        answers["gradient." + n] = p.grad.float().contiguous()
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
