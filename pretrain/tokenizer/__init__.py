"""Captions to tokens: BERT's WordPiece, or a vocabulary learned from the captions."""
