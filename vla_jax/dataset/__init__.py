"""The packed data set: from recordings to aligned memory-mapped arrays, their features, and batches."""
