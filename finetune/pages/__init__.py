"""HTML pages: self-contained single files that can be opened from disk."""
