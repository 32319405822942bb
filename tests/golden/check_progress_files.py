#!/usr/bin/env python3
"""Reads a job's curves with the real TensorBoard, and compares them with its metrics.jsonl. Run by hand.

    pip install tensorboard
    tests/golden/check_progress_files.py build/bin/millrace

Trains the tiny job and kills everything half way, so that a recovery takes steps back. TensorBoard must then show every
step of metrics.jsonl as that file is to be read (docs/formats.md), once, with the same values (f32), and the texts of
samples.jsonl. Last run with tensorboard 2.21.
"""
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import numpy
from tensorboard.backend.event_processing import event_accumulator

ROOT = pathlib.Path(__file__).resolve().parents[2]


def curves_of_lines(path):
    """{phase: {tag: {step: value}}} by docs/formats.md, and how many starts there are."""
    phases, starts = {}, 0
    for line in map(json.loads, path.read_text().splitlines()):
        tags = phases.setdefault(line["phase"], {})
        if line["kind"] == "start":
            starts += 1
            for tag in tags.values():
                for step in [step for step in tag if step > line["step"]]:
                    del tag[step]
            continue
        prefix = {"step": "train", "evaluation": "held_out"}[line["kind"]]
        names = {"step": ["loss", "learning_rate", "gradient_norm", "tokens_per_second", "tokens"],
                 "evaluation": ["loss", "perplexity", "bits_per_byte"]}[line["kind"]]
        values = {name: line[name] for name in names if name in line} | line.get("statistics", {})
        for name, value in values.items():
            tags.setdefault(f"{prefix}/{name}", {})[line["step"]] = numpy.float32(value)
    return phases, starts


def curves_of_tensorboard(folder):
    events = event_accumulator.EventAccumulator(str(folder), size_guidance={event_accumulator.SCALARS: 0})
    events.Reload()
    return {tag: [(event.step, numpy.float32(event.value)) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]}


def check_texts(path, folder):
    """Each prompt's texts have a tag of their own."""
    told = {}
    for line in map(json.loads, path.read_text().splitlines()):
        indented = [text.replace("\n", "\n    ") for text in (line["prompt"], line["text"])]
        told.setdefault(line["step"], []).append(f"    {indented[0]}\n\n→\n\n    {indented[1]}")
    events = event_accumulator.EventAccumulator(str(folder), size_guidance={event_accumulator.TENSORS: 0})
    events.Reload()
    for i in range(2):
        tag = f"samples/{i}"
        assert events.SummaryMetadata(tag).plugin_data.plugin_name == "text"
        shown = [(event.step, [text.decode() for text in event.tensor_proto.string_val]) for event in events.Tensors(tag)]
        assert shown == [(step, [texts[i]]) for step, texts in told.items()], (shown, told)
    print(f"{len(told)} evaluations with 2 texts each")


def main():
    millrace = pathlib.Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as work:
        command = [millrace, "train", ROOT / "examples/tiny.yaml", "--set", "phases.0.stop.max_steps=600", "--set",
                   "phases.0.evaluate.samples={prompts: ['The child', ''], max_tokens: 16}", "--workers", "1", "--shards",
                   "1", "--dir", work]
        lines = pathlib.Path(work) / "jobs/tiny/metrics.jsonl"
        first = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
        while not (lines.exists() and '"step":22' in lines.read_text()):
            assert first.poll() is None, "the job ended before it was killed"
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)  # its coordinator, shard and worker end with it
        first.wait()
        subprocess.run(command + ["--resume"], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        phases, starts = curves_of_lines(lines)
        assert starts == 2, f"{starts} starts: the job was not resumed"
        for phase, tags in phases.items():
            shown = curves_of_tensorboard(lines.parent / "tensorboard" / phase)
            assert set(shown) == set(tags), (set(shown), set(tags))
            for tag, points in tags.items():
                assert shown[tag] == sorted(points.items()), (phase, tag, shown[tag], sorted(points.items()))
            check_texts(lines.parent / "samples.jsonl", lines.parent / "tensorboard" / phase)
            print(f"{phase}: {len(tags)} curves, {len(tags['train/loss'])} steps, "
                  f"{len(tags['held_out/loss'])} evaluations")


if __name__ == "__main__":
    main()
