"""Run directories: initial weights, answers, the data folder of a run, result files, a run as one folder to publish."""
