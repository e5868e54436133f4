"""Where CuPy keeps its bindings."""
