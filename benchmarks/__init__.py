"""Side by side with public libraries: `python -m benchmarks.run`."""
