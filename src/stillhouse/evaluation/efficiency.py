"""What running a model costs: size, FLOPs, latency, throughput, peak memory.

Models are timed in turns, so that a machine that slows down slows them all.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stillhouse.core.results import Efficiency
from stillhouse.models.student import parameters
from stillhouse.tasks.base import Data

Runner = Callable[[Mapping[str, Tensor]], object]
ROUNDS, BURST, BATCH = 40, 5, 32
FEWEST, LONGEST_S = 8, 30.0  # slow models get fewer rounds


@dataclass(frozen=True)
class Timing:
    """Latency of one row of `tokens` tokens; throughput of `batch` rows of `batch_tokens` each."""

    latency_ms: float
    latency_p95_ms: float
    throughput_per_s: float
    tokens: int | None = None
    batch: int | None = None
    batch_tokens: int | None = None


def tokens_of(inputs: Mapping[str, Tensor]) -> int | None:
    """Tokens of each row, padding included; None where rows are no texts."""
    return inputs["input_ids"].shape[1] if "input_ids" in inputs else None


def rows_of(inputs: Mapping[str, Tensor]) -> int:
    return len(next(iter(inputs.values())))


def samples(data: Data) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs of one row of median length, and of 32 rows around it."""
    order = np.argsort(data.lengths, kind="stable")
    middle = len(order) // 2
    start = max(0, min(middle - BATCH // 2, len(order) - BATCH))
    many = order[start : start + BATCH]
    return data.batch(order[middle : middle + 1]).inputs.copy(), data.batch(many).inputs.copy()  # pyright: ignore


def time_all(
    runners: Mapping[str, tuple[Runner, dict[str, Tensor], dict[str, Tensor]]],
    *,
    rounds: int = ROUNDS,
    longest_s: float = LONGEST_S,
) -> dict[str, Timing]:
    """Latency at batch 1 (median and 95th percentile) and throughput at batch 32 of each runner,
    given with its own inputs for both; taken in turns after a warm-up, for about `longest_s`."""
    single: dict[str, list[float]] = {name: [] for name in runners}
    many: dict[str, list[float]] = {name: [] for name in runners}
    for run, one, batch in runners.values():
        for _ in range(3):
            run(one)
            run(batch)
    started = time.perf_counter()
    for round_number in range(rounds):
        if round_number >= FEWEST and time.perf_counter() - started > longest_s:
            break
        for name, (run, one, batch) in runners.items():
            for _ in range(BURST):
                single[name].append(_timed(run, one))
            if round_number % 4 == 0:
                many[name].append(_timed(run, batch) / rows_of(batch))
    return {
        name: Timing(
            latency_ms=float(np.median(single[name]) * 1e3),
            latency_p95_ms=float(np.quantile(single[name], 0.95) * 1e3),
            throughput_per_s=float(1 / np.median(many[name])),
            tokens=tokens_of(one),
            batch=rows_of(batch),
            batch_tokens=tokens_of(batch),
        )
        for name, (_, one, batch) in runners.items()
    }


def _timed(run: Runner, inputs: dict[str, Tensor]) -> float:
    started = time.perf_counter()
    run(inputs)
    return time.perf_counter() - started


def torch_runner(model: nn.Module) -> Runner:
    model.eval()
    on_gpu = next(model.parameters()).is_cuda

    def run(inputs: Mapping[str, Tensor]) -> object:
        with torch.inference_mode():
            output = model(**inputs)
            if on_gpu:
                torch.cuda.synchronize()
            return output

    return run


def flops(model: nn.Module, inputs: dict[str, Tensor]) -> int | None:
    """Floating point operations of one forward on `inputs` (a multiply-add counts as two). None
    where torch can't count them: some models have functions that the counter can't look into."""
    # torch counts the products of attention in its plain form only
    plain = sdpa_kernel(SDPBackend.MATH)
    trained = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(
        False
    )  # or it looks for gradients that functions like DeBERTa's don't have
    try:
        with plain, FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**inputs)
    except Exception:  # of the counter: the model itself was trained and timed before
        return None
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return int(counter.get_total_flops())


def folder_bytes(folder: Path) -> int:
    """Bytes of a saved model's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


PROBE = """
import sys, tempfile, torch
import transformers
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig
from transformers.utils import logging
from stillhouse.models import slim
logging.disable_progress_bar()
def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))
def answer(folder):
    name = AutoConfig.from_pretrained(folder).architectures[0]
    kind = getattr(transformers, name, None) or getattr(slim, name)
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.ones(int(sys.argv[3]), int(sys.argv[2]), dtype=torch.long)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), **more)
with tempfile.TemporaryDirectory() as folder:  # what any model loads, of the libraries too
    small = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, vocab_size=9,
                       intermediate_size=16)
    AutoModelForSequenceClassification.from_config(small).save_pretrained(folder)
    answer(folder)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the high-water mark is now what is held
before = status("VmRSS")
answer(sys.argv[1])
print(status("VmHWM") - before)
"""


def peak_memory(folder: Path, tokens: int) -> int | None:
    """Bytes a fresh process needs beyond its libraries to load the model and answer 32 rows of
    `tokens` tokens. None where it can't be measured."""
    command = [sys.executable, "-c", PROBE, str(folder), str(tokens), str(BATCH)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None
    return int(done.stdout.strip().splitlines()[-1])


def measure(
    model: nn.Module,
    folder: Path,
    timing: Timing | None,
    one: dict[str, Tensor],
    *,
    tokens: int,
    memory: bool,
    written: float | None = None,
) -> Efficiency:
    """Everything about one model's cost, its timing taken beforehand together with others'.
    `written`: the tokens that a text has on average, of a model that writes."""
    return Efficiency(
        parameters=parameters(model),
        bytes=folder_bytes(folder),
        flops=flops(model, one),
        latency_ms=timing.latency_ms if timing else None,
        latency_p95_ms=timing.latency_p95_ms if timing else None,
        throughput_per_s=timing.throughput_per_s if timing else None,
        tokens_per_s=timing.throughput_per_s * written if timing and written else None,
        peak_memory_bytes=peak_memory(folder, tokens) if memory else None,
        tokens=tokens_of(one),
        batch=timing.batch if timing else None,
        batch_tokens=timing.batch_tokens if timing else None,
        memory_batch=BATCH if memory else None,
    )
