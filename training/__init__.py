"""Training: objectives, direct and reasoned trainers. May import `demur.decision` and `demur.calibration`."""
