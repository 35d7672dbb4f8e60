"""Pages to look at: single HTML files that open from disk, with everything they need inside."""
