"""Files become rows: formats of text, columns and archives, read lazily and by position."""
