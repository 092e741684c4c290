"""Metrics, label quality, pictures and reports."""
