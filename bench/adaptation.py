#!/usr/bin/env python3
"""Compares ways to adapt a model: the model of Shakespeare of examples/adapt.yaml learns the Preacher (Ecclesiastes).

  bench/adaptation.py [--millrace build/bin/millrace] [--run runs/adaptation] [--steps 300] [NAME …]

About 25 minutes on 2 cores. Each way has one shard and one worker of two threads, and is tried at each of its learning
rates; the one with the best held-out loss makes the row: how much is trained, what travels in a step, what memory the
shard has, that loss and how fast it went. --run keeps the
model and what became of it, for bench/peft_reference.py. Goal: LoRA comes within 2 % of full fine-tuning's held-out
loss with at most 2 % of its parameters.
"""
import argparse
import json
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Learning rates and adapter of each way.
FULL = (1e-4, 1.5e-4, 3e-4, 1e-3)
LORA = (1.5e-3, 3e-3, 1e-2)
REST = (3e-3, 1e-2)
WAYS = {
    "full": (FULL, ""),
    "lora, rank 1": (LORA, "{type: lora, rank: 1, alpha: 4, targets: [all-linear]}"),
    "lora, rank 3": (LORA, "{type: lora, rank: 3, alpha: 12, targets: [all-linear]}"),
    "lora, rank 16": (LORA, "{type: lora, rank: 16, alpha: 64, targets: [all-linear]}"),
    "lora, c_attn": (LORA, "{type: lora, rank: 4, alpha: 16}"),
    "rslora, rank 16": (LORA, "{type: lora, rank: 16, alpha: 8, rank_stabilized: true, targets: [all-linear]}"),
    "dora, rank 3": (LORA, "{type: lora, rank: 3, alpha: 12, dora: true, targets: [all-linear]}"),
    "adalora": (LORA, "{type: adalora, rank: 4, target_rank: 3, alpha: 16, warmup_steps: 50, final_steps: 100, "
                      "allocate_every: 10, targets: [all-linear]}"),
    "ia3": (REST, "{type: ia3}"),
    "prompt_tuning": (REST, "{type: prompt_tuning, virtual_tokens: 8}"),
    "p_tuning": ((1e-3,), "{type: p_tuning, virtual_tokens: 8}"),
    "prefix_tuning": ((1e-3,), "{type: prefix_tuning, virtual_tokens: 8}"),
    "p_tuning_v2": (REST, "{type: p_tuning_v2, virtual_tokens: 8}"),
    "llama_adapter": (REST, "{type: llama_adapter, virtual_tokens: 8}"),
}


def run(*arguments):
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))}:\n{done.stdout}{done.stderr}")
    return done.stdout


def folder_of(name):
    return re.sub(r"[^a-z0-9_]+", "-", name)


def prepare(millrace, folder):
    """The model, once, and the text that it is to learn."""
    example = (ROOT / "examples/adapt.yaml").read_text()
    if not (folder / "model").exists():
        shakespeare = ROOT / "../shared/data/tinyshakespeare.txt"
        if not shakespeare.exists() or shutil.which("bible") is None:
            sys.exit(f"SKIPPED: {shakespeare} and the command bible (Debian's bible-kjv) are needed")
        pretrain = example[:example.index("  - name: adapt\n")].replace("../../shared/data", str(shakespeare.parent))
        (folder / "pretrain.yaml").write_text(pretrain)
        run(millrace, "train", folder / "pretrain.yaml", "--dir", folder / "pretrain")
        shutil.copytree(folder / "pretrain/jobs/adapt/checkpoints/best", folder / "model")
    if not (folder / "preacher.txt").exists():
        verses = run("bible", "-f", "Ec1:1-Ec12:14").splitlines()
        (folder / "preacher.txt").write_text("".join(verse.split(" ", 1)[1] + "\n" for verse in verses)
                                          .translate({ord(c): None for c in "()"}))  # which Shakespeare lacks
    return re.search(r"^model: .*$", example, re.M).group().replace("bf16", "f32")


def job_file(name, model, rate, adapter, steps):
    return f"""name: {folder_of(name)}
data: {{sources: [{{path: ../preacher.txt}}], held_out: 0.15, split: {{order: file}}}}
tokenizer: {{path: ../model}}
{model}
phases:
  - name: adapt
    from: ../model
{'    adapter: ' + adapter if adapter else ''}
    global_batch: 4
    optimizer: {{lr: {rate}, betas: [0.9, 0.95], weight_decay: 0, warmup_steps: 20}}
    evaluate: {{every_steps: 20}}
    stop: {{max_steps: {steps}}}
"""


def free_address():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def metrics(address):
    """Values by name, as {'millrace_shard_bytes_total{rpc="push"}': 1.0}; nothing before the shard serves."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics") as reply:
            lines = reply.read().decode().splitlines()
    except OSError:
        return {}
    return {name: float(value) for name, value in (l.rsplit(" ", 1) for l in lines if not l.startswith("#"))}


def parameters(file):
    """Numbers that a safetensors file holds."""
    with open(file, "rb") as opened:
        header = json.loads(opened.read(struct.unpack("<Q", opened.read(8))[0]))
    header.pop("__metadata__", None)
    return sum(t["data_offsets"][1] - t["data_offsets"][0] for t in header.values()) // 4


def train(millrace, folder, name, model, rate, adapter, max_steps):
    """Returns what the row says."""
    folder = folder / folder_of(name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "job.yaml").write_text(job_file(name, model, rate, adapter, max_steps))
    processes = []

    def start(what, *arguments, out=None):
        log = open(folder / f"{what}.log", "w")
        processes.append(subprocess.Popen([millrace, *map(str, arguments)], stdout=out or log, stderr=log))
        return processes[-1]

    try:
        start("coordinator", "coordinator", "--dir", folder, "--shards", 1, "--address-file", folder / "address")
        while not (folder / "address").exists() or not (coordinator := (folder / "address").read_text().strip()):
            time.sleep(0.05)
        served = free_address()
        start("shard", "ps", "--coordinator", coordinator, "--metrics", served)
        start("worker", "worker", "--coordinator", coordinator, "--threads", 2)
        with open(folder / "events", "w") as events:
            job = start("submit", "submit", folder / "job.yaml", "--coordinator", coordinator, "--watch", "--json",
                        out=events)
            early, memory = None, 0
            while job.poll() is None:
                now = metrics(served)
                memory = max(memory, now.get("process_resident_memory_bytes", 0))
                # In the first steps gradients have no scale yet.
                if early is None and now.get("millrace_shard_version", 0) >= 20:
                    early = now
                time.sleep(0.2)
        late = metrics(served)
        if job.returncode != 0:
            sys.exit(f"{name}: {(folder / 'events').read_text()[-2000:]}\n{(folder / 'submit.log').read_text()}")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    events = [json.loads(line) for line in (folder / "events").read_text().splitlines()]
    steps = late["millrace_shard_version"] - early["millrace_shard_version"]

    def travelled(rpc):
        of = f'millrace_shard_bytes_total{{rpc="{rpc}"}}'
        return (late[of] - early[of]) / steps

    last = [e["step"] for e in events if "step" in e][-1]
    return {
        "parameters": parameters(folder / "jobs" / folder_of(name) / "checkpoints/last" /
                                 ("adapter_model.safetensors" if adapter else "model.safetensors")),
        "pushed": travelled("push"),
        "pulled": travelled("pull"),
        "memory": memory,
        "loss": min(e["evaluation"]["loss"] for e in events if "evaluation" in e),
        "speed": int(last["tokens"]) / last["seconds_training"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millrace", default=ROOT / "build/bin/millrace", type=pathlib.Path)
    parser.add_argument("--run", default=ROOT / "runs/adaptation", type=pathlib.Path)
    parser.add_argument("--steps", default=300, type=int)
    parser.add_argument("names", nargs="*", help="ways to compare; default: all of them")
    options = parser.parse_args()
    millrace, folder = options.millrace.resolve(), options.run.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    model = prepare(millrace, folder)
    print("| way | learning rate | trained | of all | pushed, kB a step | pulled | shard, MiB | held-out loss | "
          "of full's | speed |\n|---|---|---|---|---|---|---|---|---|---|")
    full = None
    for name in ["full"] + [n for n in options.names or WAYS if n != "full"]:
        rates, adapter = WAYS[name]
        of, rate = min(((train(millrace, folder, f"{name}, {rate:g}", model, rate, adapter, options.steps), rate)
                        for rate in rates), key=lambda tried: tried[0]["loss"])
        full = full or of
        print(f"| {name} | {rate:g} | {of['parameters']:,} | {of['parameters'] / full['parameters']:.2%} "
              f"| {of['pushed'] / 1000:,.1f} | {of['pulled'] / 1000:,.1f} | {of['memory'] / 2**20:.1f} "
              f"| {of['loss']:.4f} | {of['loss'] / full['loss'] - 1:+.1%} | {of['speed'] / full['speed']:.2f} |",
              flush=True)


main()
