"""How fast decisions are served, side by side with what else could serve them: `python -m benchmarks.serving`."""
