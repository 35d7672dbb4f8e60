"""Hundreds of shards with few file descriptors: random access and streaming, with data workers."""

import json
from pathlib import Path

import fork_server
import numpy as np
import pytest
from data_sets import make_samples

from shards.storage.dataset import finish_dataset
from shards.storage.writer import write_shard

SHARDS, LIMIT = 200, 64
READ = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT}))
import json, sys
sys.path[:0] = sys.argv[2:]
from shards.storage import merged_index
merged_index.MERGED_FROM = 100
from test_pair_batches import batches_of, open_pairs
found = {{}}
stream = f"pipe:cat {{sys.argv[1]}}/part-{{{{00000..{SHARDS - 1:05d}}}}}.tar"
for kind, data in (("local", sys.argv[1]), ("stream", stream)):
    batches = batches_of(open_pairs(data, 0), epochs=1, workers=2)
    found[kind] = [value for batch in batches for value in batch.features.double().sum((1, 2)).tolist()]
print(json.dumps(found))
"""


@pytest.mark.slow  # test_faults has a run on more shards than descriptors
def test_every_sample_is_read_once(tmp_path):
    samples = make_samples(SHARDS)
    paths = [tmp_path / f"part-{number:05d}.tar" for number in range(SHARDS)]
    for path, sample in zip(paths, samples, strict=True):
        write_shard(path, [sample])
    finish_dataset(tmp_path, paths, detector="random", num_classes=9, extra={})
    tests = Path(__file__).parents[2]
    child = fork_server.start("-c", READ, tmp_path, tests.parent, tests, Path(__file__).parent)
    out, err = child.communicate()
    assert child.returncode == 0, err
    sums = sorted(float(one.features.astype(np.float64).sum()) for one in samples)
    for kind, found in json.loads(out.splitlines()[-1]).items():
        np.testing.assert_allclose(sorted(found), sums, atol=1e-6, err_msg=kind)
