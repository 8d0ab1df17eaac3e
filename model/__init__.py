"""decmem_env.model."""
