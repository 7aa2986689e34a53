"""What the loop costs, and how it does with much in the store: `python -m benchmarks.loop`."""
