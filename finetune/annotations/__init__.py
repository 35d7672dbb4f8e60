"""Official annotation files, those of the reference implementation, answers, boxes."""
