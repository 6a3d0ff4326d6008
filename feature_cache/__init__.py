"""The vision-language feature cache: keys, store and reader (numpy only), backbone and exporter (torch)."""
