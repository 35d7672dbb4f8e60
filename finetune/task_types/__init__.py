"""What tasks share: the task interface, answering, pointing, classification."""
