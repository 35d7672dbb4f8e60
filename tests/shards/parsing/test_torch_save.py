"""Our reader of torch.save's files against torch's own, and on files that were packed again, damaged or planted."""

import io
import zipfile

import numpy as np
import pytest
import torch

from shards.common.errors import UserError
from shards.parsing.tensor_files import read_state_dict

KINDS = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    found = {kind: (torch.randn(3, 4) * 9).to(getattr(torch, kind)) for kind in KINDS}
    whole = torch.randn(6, 5)
    found |= {"part": whole[1:4, ::2], "transposed": whole.T, "same storage": whole, "number": torch.tensor(2.5)}
    return found | {"empty": torch.empty(0, 7), "parameter": torch.nn.Parameter(torch.randn(2, 2))}


def check(path) -> None:
    found, expected = read_state_dict(path), torch.load(path, weights_only=True)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value.detach()), name


def packed_again(path, kind: int) -> None:
    """The same zip with other compression."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_tensors_are_those_that_torch_reads(tmp_path, zipped):
    torch.save(weights(), tmp_path / "w.bin", _use_new_zipfile_serialization=zipped)
    check(tmp_path / "w.bin")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(module.state_dict(), tmp_path / "m.bin", _use_new_zipfile_serialization=zipped)
    check(tmp_path / "m.bin")


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_file_that_was_packed_again_is_read_right(tmp_path, kind):
    """A mapped file whose entries are deflated gave garbage for every tensor, without a word."""
    torch.save(weights(), tmp_path / "w.bin")
    packed_again(tmp_path / "w.bin", kind)
    found, expected = read_state_dict(tmp_path / "w.bin"), weights()
    for name, value in expected.items():
        assert torch.equal(found[name], value.detach()), name


def test_a_file_that_unpacks_to_very_much_is_refused(tmp_path):
    torch.save({"a": torch.zeros(2**25)}, tmp_path / "w.bin")
    packed_again(tmp_path / "w.bin", zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="it expands to 128 MB, more than 100 times its size"):
        read_state_dict(tmp_path / "w.bin")


class Planted:
    def __reduce__(self):
        return print, ("this file ran code",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_a_file_that_names_a_function_is_refused(tmp_path, zipped, capfd):
    torch.save(weights() | {"x": Planted()}, tmp_path / "w.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"it names \w+\.print"):
        read_state_dict(tmp_path / "w.bin")
    assert "ran code" not in capfd.readouterr().out


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    torch.save({"a": torch.arange(8.0)}, tmp_path / "w.bin")
    with zipfile.ZipFile(tmp_path / "w.bin") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "w.bin", "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data[: -len(data) // 2] if name.endswith("data/0") else data)
    with pytest.raises(UserError, match="storage 0 is too short"):
        read_state_dict(tmp_path / "w.bin")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_a_large_tensor_of_one_number_is_refused(tmp_path, zipped):
    """Its first operation would take gigabytes."""
    one = torch.zeros(1).expand(2**33)
    torch.save({"a": one}, tmp_path / "w.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="it has a tensor that is larger than its storage"):
        read_state_dict(tmp_path / "w.bin")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
def test_damaged_files_are_read_or_refused(tmp_path, zipped):
    file, random = io.BytesIO(), np.random.default_rng(zipped)
    torch.save(weights(), file, _use_new_zipfile_serialization=zipped)
    data = file.getvalue()
    for number in range(300):
        changed = bytearray(data)
        for place in random.integers(len(data), size=2).tolist():
            changed[place] = random.integers(256)
        if number % 3 == 0:
            del changed[random.integers(len(changed)) :]
        (tmp_path / "w.bin").write_bytes(changed)
        try:
            for value in read_state_dict(tmp_path / "w.bin").values():
                value.clone()
        except UserError as error:
            assert len(str(error)) < 600
