"""The engine, the worlds and the trainers import on a machine that has neither gymnasium nor pygame nor SB3."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"gymnasium", "pygame", "stable_baselines3"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])

sys.meta_path.insert(0, Block())
"""


def run(code):
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("module", ["model", "worlds", "trainers", "kernels", "conventions.clips", "revisit", "start"])
def test_import_without_gymnasium(module):
    done = run(f"{BLOCKED}\nimport decmem_env\nimport decmem_env.{module}")
    assert done.returncode == 0, done.stderr


def test_the_environment_itself_says_what_it_lacks():
    done = run(f"{BLOCKED}\nimport decmem_env\nimport decmem_env.env")
    assert done.returncode != 0 and "gymnasium" in done.stderr


def test_importing_the_package_is_light():
    done = run("import sys, decmem_env; print(sorted({'torch', 'pygame', 'imageio_ffmpeg'} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stderr


def test_ids_are_registered_once():
    code = (
        "import importlib, decmem_env, gymnasium; importlib.reload(decmem_env); "
        "print(sorted(i for i in gymnasium.registry if 'DecMem' in i)); gymnasium.spec('DecMem-Minecraft-v0').to_json()"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['DecMem-Minecraft-v0', 'DecMem-Voxel-v0']"
