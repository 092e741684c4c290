"""The cue store: schema, writer, commit, reader, verify; imports no other room of the project."""
