"""decmem_env.agents."""
