"""The parts of the benchmark of heads."""
