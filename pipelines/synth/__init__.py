"""A procedural driving world rendered by ray casting, written in real data sets' own layouts."""
