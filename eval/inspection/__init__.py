"""Whether a store's labels can be trained on: checks, their verdicts, and the page that shows where they fail."""
