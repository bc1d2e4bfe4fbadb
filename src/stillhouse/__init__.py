"""Stillhouse: make a big model small, and show what it cost.

    import stillhouse as sh
    run = sh.distill(teacher="my-teacher", data="reviews.csv", student=sh.layers(3), out="small")
    print(run.record.student.retention)

Names load when they are first used, so that the import costs nothing, and reading a run or drawing
its report needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.api import (
        Run,
        Tap,
        audit,
        augment,
        bench,
        check,
        distill,
        evaluate,
        find_tickets,
        finetune,
        label,
        layers,
        load_masks,
        load_sparse,
        new,
        predict,
        reading,
        remove,
        to_onnx,
        transfer_tickets,
        write_report,
    )

    __version__: str

__all__ = [
    "Run",
    "Tap",
    "audit",
    "augment",
    "bench",
    "check",
    "distill",
    "evaluate",
    "find_tickets",
    "finetune",
    "label",
    "layers",
    "load_masks",
    "load_sparse",
    "new",
    "predict",
    "reading",
    "remove",
    "to_onnx",
    "transfer_tickets",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "predict":  # an ONNX file needs no torch, which the others load
        from stillhouse.prediction.run import predict

        return predict
    if name in __all__:
        from stillhouse import api

        return getattr(api, name)
    if name == "__version__":
        return _version()
    raise AttributeError(f"module 'stillhouse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _version() -> str:
    """The installed version; 0 for a source tree that is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("stillhouse")
    except PackageNotFoundError:
        return "0"
