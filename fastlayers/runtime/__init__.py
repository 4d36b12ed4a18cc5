"""What the kernels run on: CPU facts, threads, memory and the compile cache."""
