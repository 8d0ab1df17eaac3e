"""Compute the package list: the top-level folders install as sub-packages of `decmem_env`.

`kernels` and `agents` are import names of other well-known packages, so nothing of ours may land at the top of
site-packages. Metadata lives in pyproject.toml.
"""

from setuptools import find_packages, setup

packages = ["decmem_env", *(f"decmem_env.{name}" for name in find_packages("decmem_env"))]
package_dir = {}
for tree in ("model", "kernels", "trainers", "agents"):
    package_dir[f"decmem_env.{tree}"] = tree
    packages.append(f"decmem_env.{tree}")
    packages.extend(f"decmem_env.{tree}.{name}" for name in find_packages(tree))

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={
        "decmem_env": ["py.typed"],
        "decmem_env.worlds": ["*.c", "*.h", "*.npz"],
        "decmem_env.kernels": ["**/*.c", "**/*.h", "*.c", "**/*.cu"],
        "decmem_env.model": ["weights/*/*", "*.c"],
        "decmem_env.trainers": ["configs/*.yaml"],
    },
)
