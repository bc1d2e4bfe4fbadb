"""What is asked of the machine, and what `auto` becomes by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stillhouse.core import machine as machines
from stillhouse.core import precision as precisions
from stillhouse.core.config import DistillConfig, StageConfig, TrainingConfig
from stillhouse.core.errors import UsageError
from stillhouse.core.machine import Machine, cores, machine, product_ratio
from stillhouse.core.precision import Auto, precision_of
from stillhouse.core.settings import parse
from stillhouse.guard.settings import LearnConfig, ServeConfig, VerifyConfig


def made(monkeypatch: pytest.MonkeyPatch, *, bf16: str | None, time: float) -> Machine:
    """A machine on which a product in bf16 takes so many times as long as in float32."""
    monkeypatch.delenv("STILLHOUSE_PRECISION", raising=False)
    monkeypatch.setattr(machines, "product_ratio", lambda device: time)
    found = Machine("cpu", 2, bf16, int8=True)
    monkeypatch.setattr(precisions, "machine", lambda device=None: found)
    return found


def config(**changes: object) -> DistillConfig:
    return parse(DistillConfig, {"teacher": "t", "data": {"path": "d"}, **changes})


@pytest.mark.parametrize(
    ("bf16", "time", "wanted"),
    [
        ("AMX", 0.3, "bf16"),
        ("AMX", 25.0, "float32"),
        (None, 0.3, "float32"),
        ("AMX", 0.95, "float32"),
    ],
)
def test_bf16_needs_hardware_and_a_product_that_is_faster(monkeypatch, bf16, time, wanted):
    made(monkeypatch, bf16=bf16, time=time)
    assert precision_of("auto") == wanted


def test_what_is_asked_for_is_taken(monkeypatch):
    made(monkeypatch, bf16="AMX", time=0.3)
    assert precision_of("float32") == "float32"
    made(monkeypatch, bf16=None, time=40.0)
    assert precision_of("bf16") == "bf16"


def test_the_environment_overrules_the_machine(monkeypatch):
    made(monkeypatch, bf16="AMX", time=0.3)
    monkeypatch.setenv("STILLHOUSE_PRECISION", "float32")
    assert precision_of("auto") == "float32"
    monkeypatch.setenv("STILLHOUSE_PRECISION", "bf61")
    with pytest.raises(
        UsageError, match=r"unknown STILLHOUSE_PRECISION 'bf61'.*did you mean 'bf16'"
    ):
        precision_of("auto")


def test_an_unknown_precision_is_refused():
    with pytest.raises(UsageError, match="unknown precision 'fp16'"):
        precision_of("fp16")


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setenv("STILLHOUSE_DEVICE", "mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="STILLHOUSE_DEVICE=mps: torch finds no such device"):
        machine.__wrapped__()


@pytest.mark.parametrize(
    ("capability", "bf16"), [((7, 5), None), ((8, 0), "tensor cores"), ((9, 0), "tensor cores")]
)
def test_a_gpu_multiplies_bf16_from_sm80(monkeypatch, capability, bf16):
    monkeypatch.delenv("STILLHOUSE_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    found = machine.__wrapped__()
    assert (found.device, found.bf16) == ("cuda", bf16)
    monkeypatch.setattr(machines, "product_ratio", lambda device: 1.0)  # its launch, no more
    assert found.precision == ("float32" if bf16 is None else "bf16")
    assert ("times as fast" in found.why) is False


@pytest.mark.parametrize(
    ("line", "bf16", "int8"),
    [
        ("flags\t\t: fpu avx2 fma", None, False),
        ("flags\t\t: avx2 avx512f avx512_vnni", None, True),
        ("flags\t\t: avx512_bf16 amx_bf16 amx_int8", "AMX", True),
        ("flags\t\t: avx512_bf16 avx512_vnni", "AVX512-BF16", True),
        ("Features\t: fp asimd asimddp bf16 i8mm", "ARM's BF16", True),
        ("flags\t\t: avx2 avx512_bf16x amx_bf16x", None, False),  # names are whole words
    ],
)
def test_a_cpu_says_what_it_has(monkeypatch, line, bf16, int8):
    monkeypatch.setenv("STILLHOUSE_DEVICE", "cpu")
    cpuinfo = "processor\t: 0\n" + line + "\nbugs\t\t:\n"
    monkeypatch.setattr(machines.Path, "read_text", lambda path, **how: cpuinfo)
    monkeypatch.setattr(machines, "cores", lambda: 64)
    found = machine.__wrapped__()
    assert (found.bf16, found.int8) == (bf16, int8)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
        ({"cpu.max": "nonsense\n"}, None),
    ],
)
def test_a_containers_quota_is_read(tmp_path, files, wanted):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machines._quota(tmp_path, tmp_path / "nowhere") == wanted


@pytest.mark.parametrize(
    ("own", "files", "wanted"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2.0),
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000", "a/cpu.max": "200000 100000"}, 1.0),
        ("0::/a\n", {"a/b/cpu.max": "100000 100000"}, None),  # a group below is not its own
        (
            "3:memory:/m\n2:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"},
            3.0,
        ),
        ("nonsense\n", {"cpu.max": "100000 100000"}, 1.0),
    ],
)
def test_a_quota_may_be_that_of_any_group_above(tmp_path, own, files, wanted):
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    assert machines._quota(tmp_path / "root", tmp_path / "own") == wanted


def test_a_mac_is_asked_by_name_whatever_it_leaves_out(monkeypatch):
    said = "hw.optional.arm.FEAT_DotProd: 1\n"

    class Done:
        stdout = said

    monkeypatch.setattr(machines.sys, "platform", "darwin")
    monkeypatch.setattr(machines.Path, "read_text", lambda path, **how: "")
    monkeypatch.setattr(machines.subprocess, "run", lambda command, **how: Done)
    assert machines._cpu_flags() == {"sysctl dotprod"}

    def lacking(command, **how):
        raise FileNotFoundError(command[0])

    monkeypatch.setattr(machines.subprocess, "run", lacking)
    assert machines._cpu_flags() == set()


def test_where_nothing_else_says_it_torch_is_asked(monkeypatch):
    monkeypatch.setattr(machines.sys, "platform", "win32")
    monkeypatch.setattr(machines.Path, "read_text", lambda path, **how: "")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    assert machines._cpu_flags() == {"avx512_bf16", "avx512_vnni"}


def test_models_that_are_asked_on_the_cpu_follow_the_cpu(monkeypatch, tmp_path):
    here = {None: Machine("cuda", 2, "tensor cores", True), "cpu": Machine("cpu", 2, None, True)}
    monkeypatch.delenv("STILLHOUSE_PRECISION", raising=False)
    monkeypatch.setattr(precisions, "machine", lambda device=None: here[device])
    auto = Auto.of()
    settled = auto.settle(config())
    assert settled.training.precision == "bf16"
    assert settled.label.precision == "float32"
    assert auto.facts == {"precision": "bf16", "asking": "float32"}
    (tmp_path / "manifest.json").write_text(json.dumps({"auto": auto.facts}))
    assert Auto.of(tmp_path) == Auto("bf16", "float32", begun=True)
    (note,) = auto.notes(config())
    assert note.startswith("precision auto is bf16: this GPU")
    assert note.endswith("; on the CPU float32")
    for kind, given in (
        (ServeConfig, {"model": "m"}),
        (VerifyConfig, {"suspects": ["m"]}),
        (LearnConfig, {"model": "m", "data": {"path": "d"}}),
    ):
        asked = parse(kind, given)
        assert auto.settle(asked).precision == "float32", kind
        (note,) = auto.notes(asked)
        assert note.startswith("precision auto is float32: this CPU has no instructions"), kind


def test_cores_are_the_quotas_rounded_up_and_no_more_than_there_are(monkeypatch):
    there = cores()
    monkeypatch.setattr(machines, "_quota", lambda: 0.5)
    assert cores() == 1
    monkeypatch.setattr(machines, "_quota", lambda: 1e6)
    assert cores() == there


def test_torch_gets_no_more_threads_than_there_are_cores(monkeypatch):
    set_to = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 48)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(machines, "cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    machine.__wrapped__()
    assert set_to == [2]
    monkeypatch.setenv("OMP_NUM_THREADS", "48")
    machine.__wrapped__()
    assert set_to == [2]


def test_the_timed_product_leaves_threads_as_they_were():
    before = torch.get_num_threads()
    assert product_ratio("cpu") > 0
    assert torch.get_num_threads() == before


def test_the_timed_product_is_bf16s_time_over_float32s(monkeypatch):
    now = [0.0]

    def linear(x, weight):
        now[0] += 3.0 if x.dtype == torch.bfloat16 else 2.0

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    monkeypatch.setattr(machines.time, "perf_counter", lambda: now[0])
    assert product_ratio("cpu") == 1.5


def test_every_auto_of_a_config_is_settled(monkeypatch):
    made(monkeypatch, bf16="AMX", time=0.3)
    stages = [
        {"name": "one", "objective": [{"kind": "soft"}], "augment": {}},
        {"name": "two", "objective": [{"kind": "soft"}], "training": {"precision": "float32"}},
    ]
    given = config(stages=stages)
    settled = Auto.of().settle(given)
    assert settled.training.precision == settled.label.precision == "bf16"
    one, two = settled.stages
    assert one.augment.precision == one.training.precision == "bf16"
    assert two.training.precision == "float32"
    assert '"auto"' not in settled.model_dump_json(include={"training", "label", "stages"}).replace(
        '"estimator":"auto"', ""
    )
    assert given.training.precision == "auto", (
        "the config itself is what the folder is claimed with"
    )


def test_a_config_without_auto_stays_the_very_same():
    given = TrainingConfig(precision="bf16")
    assert Auto("float32", "float32").settle(given) is given


def test_nothing_else_of_a_config_changes(monkeypatch):
    made(monkeypatch, bf16=None, time=5.0)
    given = StageConfig.model_validate({"name": "a", "objective": [{"kind": "soft", "beta": 0.3}]})
    settled = Auto.of().settle(given)
    change = {"training": {**given.training.model_dump(), "precision": "float32"}}
    assert settled.model_dump() == {**given.model_dump(), **change}


@pytest.mark.parametrize("held", ["bf16", "float32"])
def test_a_run_goes_on_in_the_precision_it_began_with(monkeypatch, tmp_path, held):
    made(monkeypatch, bf16=None, time=5.0)
    (tmp_path / "manifest.json").write_text(json.dumps({"auto": {"precision": held}}))
    found = Auto.of(tmp_path)
    assert found == Auto(held, held, begun=True)
    (note,) = found.notes(config())
    assert note.startswith(f"precision {held}, as this run began")
    assert ("5 times as long" in note) == (held == "bf16")


@pytest.mark.parametrize(
    "text",
    ["{}", '{"auto": {"precision": "auto"}}', "[]", '{"auto": "x"}', '{"auto": {}}', "{", "\0"],
)
def test_a_manifest_that_does_not_say_leaves_it_to_the_machine(monkeypatch, tmp_path, text):
    made(monkeypatch, bf16="AMX", time=0.25)
    (tmp_path / "manifest.json").write_text(text)
    assert Auto.of(tmp_path) == Auto("bf16", "bf16")
    assert Auto.of(Path("nowhere")) == Auto("bf16", "bf16")


def test_what_auto_became_is_said_with_its_reason(monkeypatch):
    made(monkeypatch, bf16=None, time=5.2)
    (note,) = Auto.of().notes(config())
    assert note == ("precision auto is float32: this CPU has no instructions for products in bf16")
    made(monkeypatch, bf16="AMX", time=0.25)
    (note,) = Auto.of().notes(config())
    assert "precision auto is bf16" in note
    assert "(AMX), 4.0 times as fast as float32" in note
    made(monkeypatch, bf16="AMX", time=8.0)
    (note,) = Auto.of().notes(config())
    assert "this CPU has AMX, but products in bf16 are no faster here" in note


def test_who_asks_for_emulated_bf16_is_told_what_it_costs(monkeypatch):
    made(monkeypatch, bf16=None, time=38.4)
    asked = config(training={"precision": "bf16"}, label={"precision": "float32"})
    (note,) = Auto.of().notes(asked)
    assert "bf16 was asked for" in note
    assert "38 times as long as one in float32" in note
    made(monkeypatch, bf16="AMX", time=0.25)
    assert Auto.of().notes(asked) == []
