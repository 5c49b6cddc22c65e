"""The parts of bench_evidence.py: see there for the question, the command and the rivals."""
