"""What is public is what __all__ says, and reading a run needs no torch."""

import subprocess
import sys

import stillhouse
from stillhouse import api


def test_all_is_what_is_public() -> None:
    public = {name for name in vars(api) if not name.startswith("_")}
    own = {n for n in public if getattr(getattr(api, n), "__module__", "") == "stillhouse.api"}
    assert own <= set(stillhouse.__all__)
    assert sorted(stillhouse.__all__) == sorted(api.__all__)
    for name in stillhouse.__all__:
        assert getattr(stillhouse, name) is getattr(api, name)
        assert getattr(api, name).__doc__


def test_reading_a_record_and_drawing_its_report_load_no_torch() -> None:
    code = (
        "import sys, stillhouse, stillhouse.core.results, stillhouse.report; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
