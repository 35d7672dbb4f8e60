"""Tables in the paper's layout, suites of ablations."""
