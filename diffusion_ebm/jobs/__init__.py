"""What `main.py` does, a module for each mode with `run(config, workdir, seed, step)`; and tools: benchmark, replay.

Nothing else in the package imports from here, and no job imports another; the tools may import `train`.
"""
