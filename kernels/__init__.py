"""decmem_env.kernels."""
