"""Figures of a chat deployment, each beside its anchor, measured in one run.

    python bench/serving.py [--json] [--threads 1] [--model FOLDER]

Tokens per second through a real serving process with 1 and 8 callers, beside a bare
loop over the model's forward with the same batch and the same threads; time of the first
request; memory.  A user's own script: `scoring.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROMPT = "Where is my order? It has not arrived and I paid two weeks ago."
NEW = 64
RAW = """
import sys, time, torch
from finery import checkpoint
from transformers import DynamicCache
folder, batch, new, length = sys.argv[1], *map(int, sys.argv[2:])
model = checkpoint.load(folder, dtype="float32")
@torch.inference_mode()
def loop():
    cache = DynamicCache()
    ids = torch.randint(8, 200, (batch, length))
    for _ in range(new):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids = out.logits[:, -1:].argmax(-1)
loop()
began, used = time.perf_counter(), time.process_time()
rounds = 0
while time.process_time() - used < 3:
    loop(); rounds += 1
tokens = rounds * batch * new
print(tokens / (time.perf_counter() - began), tokens / (time.process_time() - used))
"""


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="")
    wanted = parser.parse_args()
    rows: list[tuple[str, float, str]]
    with tempfile.TemporaryDirectory() as place:
        rows = chat(Path(place), wanted.model, wanted.threads)
    if wanted.json:
        print(json.dumps({f"{name} [{unit}]": value for name, value, unit in rows}))
    else:
        for name, value, unit in rows:
            print(f"{name:<58}{value:>12,.2f} {unit}")
    return 0


def chat(place: Path, model: str, threads: int) -> list[tuple[str, float, str]]:
    """The chat figures."""
    folder = model or str(random_phi3(place / "model"))
    rows: list[tuple[str, float, str]] = []
    began = time.perf_counter()
    spec = {"kind": "chat", "model": folder, "request_timeout_ms": 120_000}
    with serving(place, spec, threads) as (port, pid):
        rows.append(("chat: start to ready, with the self-check", time.perf_counter() - began, "s"))
        weights = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
        first = asyncio.run(timed_chat(port, 1, 1))
        rows.append(("chat: first request, 64 tokens", first[1], "s"))
        for callers in (1, 8):
            used = processor_time(pid)
            tokens, seconds = asyncio.run(timed_chat(port, callers, 6 * callers))
            used = processor_time(pid) - used
            wall, cpu = raw_loop(folder, callers, threads)
            rows.append((f"chat: served, {callers} callers", tokens / seconds, "tokens/s"))
            rows.append((f"chat: bare forward, batch {callers}", wall, "tokens/s"))
            # Per second of processor time: what neighbours do changes it little.
            rows.append((f"chat: served, {callers} callers", tokens / used, "tokens/CPU-s"))
            rows.append((f"chat: bare forward, batch {callers}", cpu, "tokens/CPU-s"))
            ratio = tokens / used / cpu
            rows.append((f"chat: served / bare per CPU-s, {callers}", ratio, "(goal 0.8)"))
        above = memory(pid) - weights
        rows.append(("chat: memory above the weights", above / 2**20, "MiB (at most 600)"))
    return rows


async def timed_chat(port: int, callers: int, requests: int) -> tuple[int, float]:
    """Tokens and seconds of so many completions from so many callers."""
    todo = iter(range(requests))
    tokens = 0

    async def caller() -> None:
        nonlocal tokens
        link = await asyncio.open_connection("127.0.0.1", port)
        for number in todo:
            message = {"role": "user", "content": f"{PROMPT} {number}"}
            body = {"messages": [message], "max_tokens": NEW, "temperature": 0}
            answer = json.loads(await ask(link, "POST", "/v1/chat/completions", json.dumps(body)))
            tokens += answer["usage"]["completion_tokens"]

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return tokens, time.perf_counter() - began


async def ask(
    link: tuple[asyncio.StreamReader, asyncio.StreamWriter], method: str, path: str, body: str
) -> bytes:
    """One request on an open connection; the body of its answer, which must be a 200."""
    reader, writer = link
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write((head + body).encode())
    answered = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(answered.split("content-length: ")[1].split("\r\n")[0])
    document = await reader.readexactly(length)
    if " 200 " not in answered.split("\r\n")[0] + " ":
        raise SystemExit(f"{path}: {answered} {document!r}")
    return document


@contextlib.contextmanager
def serving(place: Path, spec: dict[str, Any], threads: int) -> Iterator[tuple[int, int]]:
    """A serving process: its port and its process id."""
    file = place / "serve.json"
    file.write_text(json.dumps(spec))
    process = subprocess.Popen(
        [sys.executable, "-m", "finery.serving.host", str(file)],
        stdout=subprocess.PIPE,
        env=_env(threads),
        text=True,
    )
    assert process.stdout is not None
    ready: dict[str, Any] = {}
    for line in process.stdout:
        ready = json.loads(line) if line.startswith("{") else {}
        if ready.get("event") in ("ready", "cannot be served"):
            break
    if "address" not in ready:
        raise SystemExit(f"it did not start: {ready}")
    drain = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
    try:
        yield int(ready["address"].rsplit(":", 1)[1]), process.pid
    finally:
        process.terminate()
        process.wait(30)
        drain.terminate()
        drain.wait()


def raw_loop(folder: str, batch: int, threads: int) -> tuple[float, float]:
    """Tokens per second, and per second of processor time, of a bare forward loop."""
    length = "36"
    command = [sys.executable, "-c", RAW, folder, str(batch), str(NEW), length]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=_env(threads))
    wall, cpu = done.stdout.split()[-2:]
    return float(wall), float(cpu)


def processor_time(pid: int) -> float:
    """Seconds of processor time that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Bytes that the process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def random_phi3(folder: Path) -> Path:
    """A random model of Phi-3's shape with 4.9 million parameters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [PROMPT], trainers.BpeTrainer(special_tokens=special, initial_alphabet=letters)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=8192,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        original_max_position_embeddings=2048,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    Phi3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _env(threads: int) -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


if __name__ == "__main__":
    sys.exit(main())
