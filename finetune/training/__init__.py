"""Training on one task and on several: schedules, stop-and-go, validation."""
