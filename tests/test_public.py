"""What is public is what __all__ says, and reading a run needs no torch."""

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import stillhouse
import stillhouse.guard
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


@pytest.mark.parametrize("package", [stillhouse, stillhouse.guard])
def test_names_that_load_late_are_there_and_others_are_not(package: ModuleType) -> None:
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = package.nonsense
    assert package.__all__ == sorted(package.__all__)


def test_the_guards_public_names_are_those_that_types_are_checked_with() -> None:
    source = inspect.getsource(stillhouse.guard)
    imports = source.partition("if TYPE_CHECKING:")[2].partition("__all__")[0]
    names = {
        name.strip()
        for line in imports.splitlines()
        for name in line.partition(" import ")[2].split(",")
        if name.strip()
    }
    assert names == set(stillhouse.guard.__all__)
    assert names == {name for names in stillhouse.guard.HOMES.values() for name in names}


@pytest.mark.parametrize(
    ("use", "needs"),
    [
        ("stillhouse", set()),
        ("stillhouse.__version__", set()),
        ("stillhouse.guard", set()),
        ("stillhouse.guard.new_keys", {"cryptography", "yaml"}),
        ("stillhouse.guard.Registry", {"cryptography", "sqlalchemy", "pydantic", "numpy", "yaml"}),
        ("stillhouse.guard.GuardConfig", {"pydantic"}),
    ],
)
def test_an_import_loads_what_it_needs(use: str, needs: set[str]) -> None:
    code = f"import sys, stillhouse, stillhouse.guard; {use}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {
        "torch", "transformers", "numpy", "scipy", "pandas", "pyarrow", "matplotlib", "pydantic",
        "yaml", "rich", "typer", "sqlalchemy", "alembic", "cryptography", "fastapi", "jinja2",
    }  # fmt: skip
    assert heavy & set(done.stdout.split()) == needs
