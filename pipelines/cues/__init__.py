"""One cue extractor per file."""
