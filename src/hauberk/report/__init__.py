"""Reports: a list of findings and their renderers. Nothing here knows of torch."""
