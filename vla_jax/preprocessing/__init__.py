"""Between recorded units and the network's: normalisation and its inverse."""
