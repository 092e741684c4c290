"""A procedural driving world rendered by ray casting, written in real data sets' own layouts."""

from pipelines.synth.writer import write_log

__all__ = ["write_log"]
