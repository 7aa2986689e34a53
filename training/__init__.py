"""Training: recipes, data, objectives, trainers and evaluation. May import `demur.decision` and `demur.calibration`."""
