"""Readers that turn other tools' result files into tables."""
