"""What a rebuild takes from DVC's cache before it trains; whole rebuilds are those of tests/stages/test_chain.py."""

import json
from hashlib import md5

import yaml

from blip_core.versions.rebuild import _take_inputs


def test_a_frozen_model_that_dvc_keeps_below_a_folder_that_the_training_reads_is_there(tmp_path):
    root, out, weights = tmp_path / "root", tmp_path / "out", b"weights of an encoder"
    files = root / ".dvc/cache/files/md5"

    def kept(data: bytes, end: str = "") -> str:
        digest = md5(data).hexdigest() + end
        (files / digest[:2]).mkdir(parents=True, exist_ok=True)
        (files / digest[:2] / digest[2:]).write_bytes(data)
        return digest

    listing = [{"md5": kept(weights), "relpath": "model.safetensors"}]
    encoder = {"md5": kept(json.dumps(listing).encode(), ".dir"), "size": len(weights), "nfiles": 1, "hash": "md5", "path": "encoder"}
    (out / "frozen").mkdir(parents=True)
    (out / ".dvc").mkdir()
    for folder in (root, out):
        (folder / ".dvc/config").write_text(f"[core]\n    no_scm = true\n[cache]\n    dir = {root / '.dvc/cache'}\n")
    (out / "frozen/encoder.dvc").write_text(yaml.safe_dump({"outs": [encoder]}))
    made = {"deps": [{"path": "frozen", "md5": "1.dir"}], "outs": [{"path": "artifacts/models/g0", "md5": "2.dir"}]}
    (out / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"pretrain@g0": made}}))
    assert _take_inputs(out, root, "pretrain@g0", whole=False) == "artifacts/models/g0"
    assert (out / "frozen/encoder/model.safetensors").read_bytes() == weights
