"""What mlspec costs: one module for each question, each with `main()`; `python -m benchmarks` lists them."""
