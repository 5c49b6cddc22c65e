"""The parts of bench_finetune.py."""
