"""The parts of bench_extraction.py: see there for the question, the command and the rivals."""
