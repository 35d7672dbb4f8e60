"""External weights: the reference implementation's, BERT's, those of a run."""
