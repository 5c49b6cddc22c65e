"""The parts of bench_heads.py: see there for the question, the command and the rivals."""
