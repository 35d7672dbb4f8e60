"""The shard format: samples, tars with an index, random access, streaming."""
