#!/usr/bin/env python3
"""Exports an encoder by `millrace export` and compares what transformers makes of it with `millrace`: token ids, the
log-probability of every token of a text when it is hidden, and the text's vector. Run by hand.

    pip install torch transformers safetensors
    tests/golden/check_encoder.py build/bin/millrace FOLDER [TEXT]

Last run with torch 2.15 and transformers 5.24.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from transformers import AutoTokenizer, BertForPreTraining


def run(*arguments):
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))}: {done.stderr}")
    return done.stdout


def main():
    millrace, folder = sys.argv[1:3]
    text = sys.argv[3] if len(sys.argv) > 3 else "The child opened the gate on the hill."
    right = json.loads(run(millrace, "score", "--model", folder, "--text", text, "--json"))
    vector = json.loads(run(millrace, "embed", "--model", folder, "--text", text, "--json"))["embedding"]
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "hf"
        run(millrace, "export", "--model", folder, "--format", "hf", "--out", out)
        model, about = BertForPreTraining.from_pretrained(out, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(out)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if about.get(kind):
            sys.exit(f"{kind}: {about[kind]}")
    model.eval()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if ids != [token["id"] for token in right["tokens"]]:
        sys.exit(f"ids differ: {ids}")
    row = torch.tensor([[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]])
    worst = 0
    with torch.no_grad():
        for i, token in enumerate(right["tokens"], 1):
            hidden = row.clone()
            hidden[0, i] = tokenizer.mask_token_id
            logits = model(input_ids=hidden).prediction_logits[0, i].double()
            worst = max(worst, abs(logits.log_softmax(-1)[token["id"]].item() - token["log_probability"]))
        outputs = model.bert(input_ids=row).last_hidden_state[0, 1:-1].mean(0)
    of_vector = (outputs - torch.tensor(vector)).abs().max().item()
    print(f"{len(ids)} tokens, log-probabilities within {worst:.1e}, vector within {of_vector:.1e}")
    if worst > 1e-4 or of_vector > 1e-4:
        sys.exit("they differ")


main()
