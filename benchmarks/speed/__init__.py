"""python -m benchmarks.speed: see __main__.py."""
