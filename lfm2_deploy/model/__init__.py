"""The LFM2 architecture in plain, traceable torch: the truth everything is checked against."""
