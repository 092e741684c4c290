"""One reader per data set; records.py is what every reader yields."""
