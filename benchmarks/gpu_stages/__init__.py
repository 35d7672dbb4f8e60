"""The stages of benchmarks/gpu_record.py: each is a function that adds lines to a Record."""
