"""Parts of bench_heads.py, each with `run(case)`."""
