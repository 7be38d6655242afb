"""Data files: lazy, random-access rows of text, columnar and compressed files."""
