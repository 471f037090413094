"""How samples lie in files: WebDataset tars and MosaicML MDS."""

SHARDS = "shards"  # the folder of a dataset that holds its shards
