"""The generators behind profile mini: streets, parts, glyphs and time series, written in the real data's layouts."""
