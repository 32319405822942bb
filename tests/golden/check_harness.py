#!/usr/bin/env python3
"""Lets lm-evaluation-harness score a model over HTTP, through `millrace serve`, and by transformers, and compares what
both say of every example of examples/tasks: log-probabilities of choices and texts, whether a continuation is what the
model would say, and greedy text. Run by hand.

    pip install torch transformers 'lm-eval[api]'
    tests/golden/check_harness.py build/bin/millrace MODEL       # a folder in Hugging Face's layout (millrace export)

Log-probabilities must agree to 1e-5 of their size, the rest must be the same. Last run with torch 2.15, transformers
5.24 and lm-eval 0.4.13.
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

TASKS = pathlib.Path(__file__).resolve().parent.parent.parent / "examples/tasks"
CHOICES = """
output_type: multiple_choice
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
DEFINITIONS = {
    "questions": ("common-sense", CHOICES + 'doc_to_text: "Question: {{question}}\\nAnswer:"\n'
                                            'doc_to_choice: "{{choices}}"\ndoc_to_target: right\n'),
    "few_shot": ("common-sense", CHOICES + 'doc_to_text: "Question: {{question}}\\nAnswer:"\n'
                                           'doc_to_choice: "{{choices}}"\ndoc_to_target: right\n'
                                           'fewshot_split: test\nnum_fewshot: 1\n'),
    "pairs": ("minimal-pairs", CHOICES + 'doc_to_text: ""\ntarget_delimiter: ""\n'
                                         'doc_to_choice: "{{[good, bad]}}"\ndoc_to_target: 0\n'),
    "texts": ("paragraphs", 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
                            "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]\n"),
    "continuations": ("paragraphs", 'output_type: generate_until\ndoc_to_text: "{{text}}"\ndoc_to_target: "{{text}}"\n'
                                    'generation_kwargs: {until: ["."], max_gen_toks: 16, do_sample: false, '
                                    "temperature: 0}\nmetric_list: [{metric: exact_match}]\n"),
}


def run_harness(folder, name, model, arguments):
    """What it says of each task's examples: {task: [responses]}."""
    environment = dict(os.environ, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", arguments,
                           "--tasks", ",".join(DEFINITIONS), "--include_path", folder / "tasks", "--device", "cpu",
                           "--output_path", folder / name, "--log_samples"],
                          capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    print(f"{name}: {time.monotonic() - began:.0f} s")
    said = {}
    for task in DEFINITIONS:
        file, = (folder / name).rglob(f"samples_{task}_*.jsonl")
        samples = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda s: s["doc_id"])
        said[task] = [response for sample in samples for response in sample["resps"]]
    return said


def main(millrace, model):
    good = True
    context = json.loads((model / "config.json").read_text())
    context = context.get("max_position_embeddings", context.get("n_positions"))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "tasks").mkdir()
        for task, (data, definition) in DEFINITIONS.items():
            (folder / "tasks" / f"{task}.yaml").write_text(
                f"task: {task}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {TASKS / data}.jsonl}}}}\n"
                f"test_split: test\n{definition}")
        with subprocess.Popen([millrace, "serve", "--model", f"m={model}", "--port", "0"], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True) as server:
            address = re.search(r"http://\S+", server.stdout.readline()).group()
            ours = run_harness(folder, "millrace serve", "local-completions",
                               f"model=m,base_url={address}/v1/completions,tokenizer={model},max_length={context},"
                               "num_concurrent=4")
            server.terminate()
        theirs = run_harness(folder, "transformers", "hf", f"pretrained={model},dtype=float32,max_length={context}")
    for task in DEFINITIONS:
        pairs = list(zip(ours[task], theirs[task], strict=True))
        if task == "continuations":
            same = sum(a == b for a, b in pairs)
            print(f"  {task:14} {same} of {len(pairs)} greedy texts are the same")
            good &= same == len(pairs) > 0
            continue
        # A response is [log-probability, whether it is what the model would say], or of whole texts the former alone.
        pairs = [(a[0], b[0]) for a, b in pairs]
        numbers = [(float(a[0]), float(b[0])) if isinstance(a, list) else (float(a), float(b)) for a, b in pairs]
        greedy = sum(isinstance(a, list) and str(a[1]) != str(b[1]) for a, b in pairs)
        worst = max(abs(a - b) / abs(b) for a, b in numbers)
        print(f"  {task:14} {len(pairs)} log-probabilities within {worst:.1e}, {greedy} otherwise called greedy")
        good &= worst <= 1e-5 and greedy == 0
    return good


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(0 if main(sys.argv[1], pathlib.Path(sys.argv[2]).resolve()) else 1)
