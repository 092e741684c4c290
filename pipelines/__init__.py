"""Raw driving logs to cached cues: readers, cue extractors, and the flows that run them."""
