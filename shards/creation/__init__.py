"""Creates region shards: extraction from images, conversion of features made by other programs."""
