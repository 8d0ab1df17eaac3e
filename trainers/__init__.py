"""decmem_env.trainers."""
