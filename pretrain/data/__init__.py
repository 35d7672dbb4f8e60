"""Region shards to batches: pairs, collation, the order of batches, data loader workers."""
