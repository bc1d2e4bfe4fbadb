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
TORCH = {  # where neither is there to ask
    "amx_bf16": "_is_amx_tile_supported",
    "avx512_bf16": "_is_avx512_bf16_supported",
    "avx512_vnni": "_is_vnni_supported",
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
    def bf16_ratio(self) -> float:
        """The time of a product in bf16, as a multiple of the same in float32."""
        return product_ratio(self.device)

    @functools.cached_property
    def precision(self) -> Settled:
        """The faster of both. A CPU's hardware is believed once a product was timed: a library may
        not use what a processor has. On a GPU a product this small would time its launch."""
        if self.bf16 is None:
            return "float32"
        return "bf16" if self.device == "cuda" or self.bf16_ratio <= GAIN else "float32"

    @property
    def why(self) -> str:
        """Why that is the faster one, in words."""
        if self.bf16 is None:
            return f"this {self.kind} has no instructions for products in bf16"
        if self.precision == "bf16":
            has = f"this {self.kind} multiplies bf16 in hardware ({self.bf16})"
            if self.device == "cuda":  # it was not timed
                return has
            return f"{has}, {1 / self.bf16_ratio:.1f} times as fast as float32"
        return f"this {self.kind} has {self.bf16}, but products in bf16 are no faster here"

    @property
    def kind(self) -> str:
        return "CPU" if self.device == "cpu" else "GPU"

    @property
    def cost_of_bf16(self) -> str:
        """How long a product takes in bf16, in words."""
        return f"{self.bf16_ratio:.2g} times as long as one in float32"

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
def machine(device: Device | None = None) -> Machine:
    """This machine, asked once, as it computes on `device` (left out: where models are trained).
    Where torch would use more threads than this process has cores (a container's quota), it is
    given as many as there are, unless OMP_NUM_THREADS says otherwise.

    Raises UsageError for a device that STILLHOUSE_DEVICE names and torch lacks."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores():
        torch.set_num_threads(cores())
    device, flags = device or _device(), _cpu_flags()
    bf16 = next((name for flag, name in BF16_ON_CPU.items() if flag in flags), None)
    if device == "cuda":
        capability = torch.cuda.get_device_capability()
        bf16 = "tensor cores" if capability >= AMPERE else None
    elif device == "mps":
        bf16 = None
    return Machine(device, torch.get_num_threads(), bf16, bool(flags & INT8_ON_CPU))


def product_ratio(device: str) -> float:
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


def _quota(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float | None:
    """Cores that this process's control group (version 2, or 1) and those above it grant; None
    without a limit."""
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        lines = []
    where = {kinds: path.strip("/") for _, kinds, path in (x for x in lines if len(x) == 3)}
    second = Path(where.get("", ""))
    first = Path(next((path for kinds, path in where.items() if "cpu" in kinds.split(",")), ""))
    granted = [
        *(_granted(root / each, "cpu.max") for each in (second, *second.parents)),
        *(
            _granted(root / "cpu" / each, "cpu.cfs_quota_us", "cpu.cfs_period_us")
            for each in (first, *first.parents)
        ),
    ]
    return min((each for each in granted if each is not None), default=None)


def _granted(folder: Path, *names: str) -> float | None:
    """What one group grants; None where it sets no limit, or there is none."""
    try:
        words = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
        quota, period = words
        return int(quota) / int(period) if quota not in ("max", "-1") else None
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
    """What the processor says it can do, by Linux's names; on a Mac `sysctl` is asked, elsewhere
    torch."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.partition(":")[2].split())
    except OSError:
        pass
    if sys.platform == "darwin":
        return _apple_flags()
    import torch

    return {flag for flag, name in TORCH.items() if getattr(torch.cpu, name, bool)()}


def _apple_flags() -> set[str]:
    command = ["/usr/sbin/sysctl", *APPLE.values()]  # lines of `name: value`, of those it knows
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return set()
    there = {line.partition(":")[0] for line in said.splitlines() if line.endswith(": 1")}
    return {flag for flag, name in APPLE.items() if name in there}
