"""A neural world model with memory as a gymnasium environment.

Importing the package registers two ids with the same spaces, tasks and options:

- `DecMem-Minecraft-v0`: the world as the model dreams it (`decmem_env.env.DecMemEnv`);
- `DecMem-Voxel-v0`: the true voxel world behind it (`decmem_env.voxel_env.VoxelEnv`).

The engine, the worlds and the trainers need no gymnasium: without it the registration is left out, nothing else.
"""

try:
    from gymnasium.envs.registration import register as _register
    from gymnasium.envs.registration import registry as _registry
except ModuleNotFoundError as _error:
    if _error.name != "gymnasium":
        raise
else:
    for _id, _env, _vector in (
        ("DecMem-Minecraft-v0", "decmem_env.env:DecMemEnv", "decmem_env.vector:DecMemVectorEnv"),
        ("DecMem-Voxel-v0", "decmem_env.voxel_env:VoxelEnv", "decmem_env.voxel_env:VoxelVectorEnv"),
    ):
        if _id not in _registry:
            _register(_id, entry_point=_env, vector_entry_point=_vector, max_episode_steps=1000)
