"""Every folder of code is in the wheel, and nothing lands at the top of site-packages."""

import runpy
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
TREES = ("decmem_env", "model", "kernels", "trainers", "agents")


def _setup_arguments(monkeypatch):
    monkeypatch.chdir(ROOT)
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    return setup.call_args.kwargs


def test_every_package_folder_is_listed(monkeypatch):
    listed = set(_setup_arguments(monkeypatch)["packages"])
    found = set()
    for tree in TREES:
        for init in (ROOT / tree).rglob("__init__.py"):
            dotted = ".".join(init.parent.relative_to(ROOT).parts)
            found.add(dotted if tree == "decmem_env" else f"decmem_env.{dotted}")
    assert found == listed
    assert all(name == "decmem_env" or name.startswith("decmem_env.") for name in listed)


def test_every_folder_of_code_is_a_package():
    for tree in TREES:
        for source in (ROOT / tree).rglob("*.py"):
            assert (source.parent / "__init__.py").exists(), f"{source.parent.relative_to(ROOT)} has no __init__.py"


def test_code_never_imports_the_bare_folder_names():
    bare = tuple(f"{kind} {tree}" for tree in TREES[1:] for kind in ("from", "import"))
    for folder in (*TREES, "tests", "examples"):
        for source in (ROOT / folder).rglob("*.py"):
            for line in source.read_text(encoding="utf-8").splitlines():
                words = line.strip()
                if words.startswith(bare):
                    head = words.split()[1].split(".")[0]
                    assert head not in TREES[1:], f"{source.relative_to(ROOT)}: {words}"
