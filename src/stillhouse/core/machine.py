"""The machine this runs on: its device, whether it multiplies bf16 in hardware, its threads.

It is asked once a process. The environment may choose the device: STILLHOUSE_DEVICE is auto (an
NVIDIA GPU where there is one, else the CPU), cpu, cuda or mps.
"""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from stillhouse.core.errors import UsageError, unknown
from stillhouse.core.terms import AUTO

Device = Literal["cpu", "cuda", "mps"]
Settled = Literal["bf16", "float32"]

BF16_ON_CPU = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX512-BF16",
    "bf16": "ARM's BF16",
    "sysctl bf16": "ARM's BF16",
}
INT8_ON_CPU = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sysctl dotprod"}
APPLE = {
    "sysctl bf16": "hw.optional.arm.FEAT_BF16",
    "sysctl dotprod": "hw.optional.arm.FEAT_DotProd",
}
AMPERE = (8, 0)  # the first of NVIDIA's generations that multiplies bf16
ROWS, WIDTH = 256, 384  # of the product that is timed: rows, and both sides of the weight
ROUNDS = 7
CLEAR = 5.0  # times as long: no need to time it again
GAIN = 0.9  # of float32's time: bf16 also costs casts, so less gained is nothing gained


@dataclass(frozen=True)
class Machine:
    """device: where models are trained. bf16: what multiplies bf16 in hardware there (None:
    nothing does, it is emulated). int8: whether the CPU has instructions for int8 dot products."""

    device: Device
    threads: int
    bf16: str | None
    int8: bool

    @functools.cached_property
    def bf16_time(self) -> float:
        """The time of a product in bf16, as a multiple of the same in float32."""
        return product_times(self.device)

    @functools.cached_property
    def precision(self) -> Settled:
        """The faster of both. Hardware is believed once a product was timed: a library may not use
        what a processor has."""
        return "bf16" if self.bf16 is not None and self.bf16_time <= GAIN else "float32"

    @property
    def why(self) -> str:
        """Why that is the faster one, in words."""
        if self.bf16 is None:
            return f"this {self.kind} has no instructions for products in bf16"
        if self.precision == "bf16":
            return (
                f"this {self.kind} multiplies bf16 in hardware ({self.bf16}), "
                f"{1 / self.bf16_time:.1f} times as fast as float32"
            )
        return f"this {self.kind} has {self.bf16}, but products in bf16 are no faster here"

    @property
    def kind(self) -> str:
        return "CPU" if self.device == "cpu" else "GPU"

    @property
    def cost_of_bf16(self) -> str:
        """How long a product takes in bf16, in words."""
        return f"{self.bf16_time:.2g} times as long as one in float32"

    @property
    def facts(self) -> dict[str, object]:
        """For a manifest."""
        return {
            "device": self.device,
            "threads": self.threads,
            "bf16": self.bf16,
            "int8": self.int8,
        }


@functools.cache
def machine() -> Machine:
    """This machine, asked once. Where torch would use more threads than this process has cores (a
    container's quota), it is given as many as there are, unless OMP_NUM_THREADS says otherwise.

    Raises UsageError for a device that STILLHOUSE_DEVICE names and torch lacks."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores():
        torch.set_num_threads(cores())
    device, flags = _device(), _cpu_flags()
    bf16 = next((name for flag, name in BF16_ON_CPU.items() if flag in flags), None)
    if device == "cuda":
        capability = torch.cuda.get_device_capability()
        bf16 = "tensor cores" if capability >= AMPERE else None
    elif device == "mps":
        bf16 = None
    return Machine(device, torch.get_num_threads(), bf16, bool(flags & INT8_ON_CPU))


def product_times(device: str) -> float:
    """The time of a product in bf16 as a multiple of the same in float32, on one thread of a CPU:
    the best of some rounds, taken in turns."""
    import torch

    weight, x = torch.ones(WIDTH, WIDTH), torch.ones(ROWS, WIDTH)
    pairs = [
        (x.to(device, kind), weight.to(device, kind)) for kind in (torch.float32, torch.bfloat16)
    ]
    wait: Callable[[], Any] = getattr(getattr(torch, device, None), "synchronize", lambda: None)
    threads = torch.get_num_threads()
    best = [math.inf, math.inf]
    try:
        torch.set_num_threads(1)  # a barrier between threads takes longer than the product
        for number in range(ROUNDS + 1):
            for i, pair in enumerate(pairs):
                started = time.perf_counter()
                torch.nn.functional.linear(*pair)
                wait()
                if number:  # the first makes the kernel
                    best[i] = min(best[i], time.perf_counter() - started)
            if number and best[1] > CLEAR * best[0]:
                break
    finally:
        torch.set_num_threads(threads)
    return best[1] / best[0]


def cores() -> int:
    """Cores that this process may use: those it is bound to, or its container's quota of them."""
    bound = getattr(os, "sched_getaffinity", None)
    count = len(bound(0)) if bound else os.cpu_count() or 1
    quota = _quota()
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def _quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores that a container (cgroup 2, or 1) grants; None without a limit."""
    try:
        if (root / "cpu.max").is_file():
            granted, period = (root / "cpu.max").read_text(encoding="ascii").split()
        else:
            parts = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            granted, period = (
                (root / "cpu" / p).read_text(encoding="ascii").strip() for p in parts
            )
        return int(granted) / int(period) if granted not in ("max", "-1") else None
    except (OSError, ValueError):
        return None


def _device() -> Device:
    """What STILLHOUSE_DEVICE says; auto: an NVIDIA GPU where there is one, else the CPU."""
    import torch

    asked = from_environment("STILLHOUSE_DEVICE", (AUTO, *get_args(Device)))
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if asked == AUTO:
        return "cuda" if there["cuda"] else "cpu"
    if not there[asked]:
        raise UsageError(f"STILLHOUSE_DEVICE={asked}: torch finds no such device here")
    return asked  # pyright: ignore[reportReturnType]


def from_environment(name: str, known: tuple[str, ...]) -> str:
    """A variable that is one of `known`; auto where it is not set. Raises UsageError."""
    value = os.environ.get(name) or AUTO
    if value not in known:
        raise UsageError(unknown(name, value, known))
    return value


def _cpu_flags() -> set[str]:
    """What the processor says it can do, by Linux's names; on a Mac by `sysctl`."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.partition(":")[2].split())
    except OSError:
        pass
    if sys.platform != "darwin":
        return set()
    command = ["sysctl", "-n", *APPLE.values()]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return {flag for flag, value in zip(APPLE, said, strict=False) if value == "1"}
