"""Official metrics that need more than a few lines: GQA, WUPS."""
