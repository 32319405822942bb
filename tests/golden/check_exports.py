#!/usr/bin/env python3
"""Exports models by `millrace export` and compares what transformers and llama.cpp make of them with `millrace`:
token ids, the log-probability of every token of a text, and greedy text. Run by hand.

    pip install torch transformers safetensors gguf llama-cpp-python
    tests/golden/check_exports.py build/bin/millrace FOLDER…
    tests/golden/check_exports.py --make bpe.json OUT      # folders to begin with: transformers' models, random weights

For each folder: a Hugging Face folder in one file and in several, f32, f16 and bf16, and GGUF in f32, f16, bf16 and
q8_0. In f32 log-probabilities must agree to 1e-4 and greedy text must be the same; the rest is printed. llama.cpp's
GELU is a table of f16, where a difference in the last bit of an f32 becomes one of an f16: what it makes of a GPT-2
differs from itself by as much as 7e-4, read token by token and all at once. GPT-2's GGUF must hold the same numbers, agree
to 1e-3, and on average to 1e-4 with transformers' model when that has such a table too. Last run with torch 2.15,
transformers 5.24 and llama-cpp-python 0.3.36.
"""
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy

TEXT = "Today it's 1234 o'clock.\n\n  The cats' names:\tTom, Ann; they'd say \"no\".\n"
PROMPT = "The "


def run(*arguments):
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))}: {done.stderr}")
    return done.stdout


class Millrace:
    """What is right: tokens with their log-probabilities, and greedy text."""

    def __init__(self, binary, folder, text):
        # Without a token before the text nothing predicts the first one.
        self.score = json.loads(run(binary, "score", "--model", folder, "--text", text, "--json"))["tokens"]
        self.greedy = json.loads(run(binary, "generate", "--model", folder, "--prompt", PROMPT, "--max-tokens", 24,
                                     "--temperature", 0, "--json"))


def log_softmax(logits):
    logits = logits.astype(numpy.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - numpy.log(numpy.exp(logits).sum(-1, keepdims=True))


def compare(what, right, text_ids, first, logits, greedy, strict, tolerance=1e-4, longest=24):
    """`logits` [tokens, vocabulary] of `first`, the token before the text if there is one, and of as much of the text as
    the context holds."""
    ids_agree = [token["id"] for token in right.score] == text_ids
    if not ids_agree:
        print(f"  {what:18} ids DIFFER: {text_ids}")
        return False
    ids = first + text_ids
    of_tokens = log_softmax(logits)
    count = min(len(ids), len(logits)) - 1
    predicted = right.score if first else right.score[1:]
    worst = max(abs(of_tokens[i, ids[i + 1]] - predicted[i]["log_probability"]) for i in range(count))
    same_text = greedy == right.greedy["tokens"][:longest]
    print(f"  {what:18} ids same, log-probabilities within {worst:.1e}, "
          f"greedy text {'same' if same_text else 'differs'}")
    return not strict or (worst <= tolerance and same_text)


def check_gpt2_weights(folder, file, layers):
    """Tensors under the names that gguf gives transformers' have their values."""
    import gguf
    from transformers import AutoModelForCausalLM
    tensors = {t.name: t.data for t in gguf.GGUFReader(file).tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, layers)
    model = AutoModelForCausalLM.from_pretrained(folder)
    count = 0
    for name, value in model.named_parameters():
        value = value.detach().numpy()
        turned = value.T if value.ndim == 2 and ".c_" in name else value  # Conv1D
        count += 1
        if not numpy.array_equal(turned, tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))]):
            print(f"  {name} DIFFERS in GGUF")
            return False
    print(f"  {count} tensors of GGUF hold transformers' values, {len(tensors) - count} others")
    return count == len(tensors)


def check_transformers(what, folder, right, text, strict):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, about = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    if about["missing_keys"] or about["unexpected_keys"] or about["mismatched_keys"]:
        print("  ", about)
        strict = True
    ids = tokenizer.encode(text)
    first = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    with torch.no_grad():
        logits = model.float()(torch.tensor([first + ids])).logits[0].numpy()
        prompt = torch.tensor([first + tokenizer.encode(PROMPT)])
        greedy = model.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=0)[0, prompt.shape[1]:].tolist()
    if tokenizer.eos_token_id is not None and greedy and greedy[-1] == tokenizer.eos_token_id:
        greedy.pop()
    if tokenizer.decode(ids) != text:
        sys.exit(f"{folder}: transformers decodes {tokenizer.decode(ids)!r}")
    return compare(what, right, ids, first, logits, greedy, strict)


def logits_with_tabled_gelu(folder, ids):
    """Of transformers' GPT-2, when its GELU rounds as llama.cpp's does: f16 in, f16 out, nothing below -10, all from 10."""
    import torch
    from transformers import AutoModelForCausalLM

    class TabledGelu(torch.nn.Module):
        def forward(self, x):
            inner = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
            return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, inner))

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for block in model.transformer.h:
        block.mlp.act = TabledGelu()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def check_llama_cpp(what, file, right, text, strict, tabled=None):
    """`tabled`: the folder of the same GPT-2."""
    import llama_cpp
    model = llama_cpp.Llama(str(file), n_ctx=0, logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0,
                            flash_attn=False)
    ids = model.tokenize(text.encode(), add_bos=False, special=False)
    end = model.token_eos()
    first = [end] if end >= 0 else []
    # What stands for a sliding window is a context as short.
    context = int(model.metadata[model.metadata["general.architecture"] + ".context_length"])
    together = (first + ids)[:context]
    model.reset()
    model.eval(together)
    logits = numpy.array(model.scores[:len(together)])
    greedy = []
    model.reset()
    prompt = first + model.tokenize(PROMPT.encode(), add_bos=False, special=False)
    longest = min(24, context - len(prompt))
    model.eval(prompt)
    while len(greedy) < longest:
        token = int(numpy.argmax(model.scores[model.n_tokens - 1]))
        if token == end:
            break
        greedy.append(token)
        model.eval([token])
    if model.detokenize(ids).decode() != text:
        sys.exit(f"{file}: llama.cpp decodes {model.detokenize(ids).decode()!r}")
    good = compare(what, right, ids, first, logits, greedy, strict, 1e-3 if tabled else 1e-4, longest)
    if tabled and strict:
        right_of_all = log_softmax(logits_with_tabled_gelu(tabled, together))
        model.reset()
        for token in together:
            model.eval([token])
        one_by_one = log_softmax(numpy.array(model.scores[:len(together)]))
        of_all = log_softmax(logits)
        mean = numpy.sqrt(((of_all - right_of_all) ** 2).mean())
        print(f"  {what:18} of the whole vocabulary on average within {mean:.1e} of transformers with a table as GELU, "
              f"within {abs(of_all - one_by_one).max():.1e} of itself")
        good &= mean <= 1e-4
    return good


def check_q8_0(f32, q8_0):
    """Bytes of blocks against gguf's own."""
    import gguf
    exact = {t.name: t for t in gguf.GGUFReader(f32).tensors}
    count = 0
    for tensor in gguf.GGUFReader(q8_0).tensors:
        if tensor.tensor_type != gguf.GGMLQuantizationType.Q8_0:
            continue
        count += 1
        own = gguf.quants.quantize(exact[tensor.name].data, gguf.GGMLQuantizationType.Q8_0)
        if not numpy.array_equal(own, tensor.data):
            sys.exit(f"{q8_0}: {tensor.name} is quantized otherwise by gguf")
    print(f"  q8_0: {count} tensors of the bytes that gguf makes")


def check(binary, folder):
    print(folder)
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    text = TEXT
    if tokenizer["model"]["type"] == "WordLevel":
        text = "".join(c for c in text if c in tokenizer["model"]["vocab"])
    right = Millrace(binary, folder, text)
    good = True
    with tempfile.TemporaryDirectory() as made:
        made = pathlib.Path(made)
        for what, flags in (("hf f32", []), ("hf f32 in files", ["--max-shard-size", "50KB"]),
                            ("hf f16", ["--dtype", "f16"]), ("hf bf16", ["--dtype", "bf16"])):
            out = made / what.replace(" ", "-")
            run(binary, "export", "--model", folder, "--out", out, *flags)
            good &= check_transformers(what, out, right, text, what.startswith("hf f32"))
        print(f"  {len(list((made / 'hf-f32-in-files').glob('*.safetensors')))} files of weights")
        for dtype in "f32", "f16", "bf16", "q8_0":
            out = made / f"{dtype}.gguf"
            run(binary, "export", "--model", folder, "--format", "gguf", "--dtype", dtype, "--out", out)
            gpt2 = config["model_type"] == "gpt2"
            good &= check_llama_cpp("gguf " + dtype, out, right, text, dtype == "f32", made / "hf-f32" if gpt2 else None)
            if gpt2 and dtype == "f32":
                good &= check_gpt2_weights(made / "hf-f32", out, config["n_layer"])
        check_q8_0(made / "f32.gguf", made / "q8_0.gguf")
        if config["model_type"] in ("llama", "qwen2") and tokenizer["model"]["type"] == "BPE":
            import torch
            from transformers import AutoModelForCausalLM
            own = AutoModelForCausalLM.from_pretrained(made / "hf-f32").state_dict()
            other = AutoModelForCausalLM.from_pretrained(made, gguf_file="f32.gguf").state_dict()
            same = all(torch.equal(own[name], other[name]) for name in own)
            print(f"  transformers reads the same weights from GGUF: {same}")
            good &= same
    return good


def make(tokenizer, out):
    import torch
    import transformers as t
    torch.manual_seed(20261125)
    vocab = max(t.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer)).get_vocab().values()) + 1
    sizes = dict(vocab_size=vocab, max_position_embeddings=256, hidden_size=64, num_hidden_layers=3,
                 num_attention_heads=4, num_key_value_heads=2, intermediate_size=96, bos_token_id=0, eos_token_id=0)
    models = {
        "gpt2": t.GPT2LMHeadModel(t.GPT2Config(vocab_size=vocab, n_positions=256, n_embd=64, n_layer=3, n_head=4,
                                               bos_token_id=0, eos_token_id=0)),
        "gpt2-untied": t.GPT2LMHeadModel(t.GPT2Config(vocab_size=vocab, n_positions=256, n_embd=64, n_layer=2, n_head=4,
                                                      tie_word_embeddings=False, bos_token_id=0, eos_token_id=0)),
        "llama": t.LlamaForCausalLM(t.LlamaConfig(**sizes)),
        "llama-tied": t.LlamaForCausalLM(t.LlamaConfig(**sizes, tie_word_embeddings=True)),
        "mistral": t.MistralForCausalLM(t.MistralConfig(**sizes, sliding_window=None)),
        "mistral-window": t.MistralForCausalLM(t.MistralConfig(**sizes, sliding_window=32)),
        "qwen2": t.Qwen2ForCausalLM(t.Qwen2Config(**sizes, tie_word_embeddings=True)),
        "qwen2-window": t.Qwen2ForCausalLM(t.Qwen2Config(**sizes, use_sliding_window=True, sliding_window=32,
                                                         max_window_layers=0)),
    }
    for name, model in models.items():
        for parameter in model.parameters():
            # Far from the usual start, so that every term matters and greedy text does not hang on rounding.
            parameter.data += torch.randn_like(parameter) * 0.08
        model.save_pretrained(out / name, max_shard_size="100KB")
        shutil.copy(tokenizer, out / name / "tokenizer.json")


if __name__ == "__main__":
    if sys.argv[1] == "--make":
        make(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
    else:
        results = [check(sys.argv[1], pathlib.Path(folder)) for folder in sys.argv[2:]]
        sys.exit(0 if all(results) else 1)
