"""Charts, histograms, bars and meters, drawn with glyphs."""
