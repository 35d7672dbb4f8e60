"""Clean V&L: which images of a training are a test's, by what names and looks, and what is left without them."""
